//! The training loop. Read [`run`] first: the rest are its parts.

mod capture;
mod digests;
mod evaluate;
mod finish;
mod measure;
mod objective;
mod planted;
mod step;
mod stopwatch;

pub use digests::initial as initial_digests;
pub use finish::{Ending, save_checkpoint};

use std::collections::BTreeSet;

use lockstep_record::{Outcome, RunDir, SampleLine, exit};

use crate::config::Config;
use crate::grad::norm;
use crate::launch::{Failure, StopRequest};
use crate::metrics::{Progress, Recorder};
use crate::mutate::{self, Mutation, active};
use crate::perturb;
use crate::precision::LossScaler;
use crate::reduce::Reduced;
use crate::session::Session;
use crate::strategy::gather_square_sums;
use crate::trace::{About, Category};
use capture::Capture;
use measure::{Measured, Numbers};
use stopwatch::Stopwatch;

/// Which steps to do, and who may ask to stop earlier.
pub struct Course {
    /// Updates done already.
    from_step: u64,
    /// The schedule's last step, or the one that `--stop-after` names.
    last: u64,
    stop_request: StopRequest,
    /// Steps of which everything is written down.
    captures: BTreeSet<u64>,
}

impl Course {
    /// Fails if no step is left.
    pub fn new(
        config: &Config,
        from_step: u64,
        stop_after: Option<u64>,
        stop_request: StopRequest,
    ) -> Result<Self, Failure> {
        let mut last = stop_after.unwrap_or(u64::MAX).min(config.schedule.steps);
        if active(Mutation::StepsHalved) {
            last /= 2;
        }
        if from_step >= last {
            return Err(Failure::shared(exit::NOTHING_TO_DO, format!("all {last} steps are done already")));
        }
        Ok(Self { from_step, last, stop_request, captures: BTreeSet::new() })
    }

    /// Captures these steps. Fails if the course does not come to one of them.
    pub fn capturing(mut self, steps: &[u64]) -> Result<Self, Failure> {
        let Self { from_step, last, .. } = self;
        if let Some(step) = steps.iter().find(|&&step| step <= from_step || step > last) {
            let message = format!(
                "--capture step={step}: this run does steps {} to {last}; name one of them, or start from an earlier \
                 checkpoint (--resume CHECKPOINT --run-dir NEW)",
                from_step + 1
            );
            return Err(Failure::shared(exit::USAGE, message));
        }
        self.captures.extend(steps);
        Ok(self)
    }
}

/// Trains until the schedule, `--stop-after` or a signal ends it. All ranks call it; rank 0 has the recorder.
pub fn run(
    session: &mut Session,
    run: &RunDir,
    mut recorder: Option<&mut Recorder>,
    course: &Course,
) -> Result<Ending, Failure> {
    let last = course.last;
    let mut progress = Progress::new(session.comm.rank(), session.config.schedule.steps, course.from_step);
    for step in course.from_step + 1..=last {
        session.comm.at_step(step);
        session.telemetry.iter().for_each(|telemetry| telemetry.at_step(step));
        mutate::enter_step(step);
        let mut watch = Stopwatch::start(&session.trace, step);
        let samples = session.sampler.step(step);
        let digests_due = digests::due(session.config, step, last);

        let captured = course.captures.contains(&step);
        let mut capture = captured.then(|| Capture::begin(session, run, step)).transpose()?;

        let local =
            step::forward_backward(session, step, &samples, digests_due, capture.as_mut(), &mut watch)?;

        watch.enter(Category::Wait, About::default());
        let Reduced { square_sums, mut prints } = session.reducer.finish(&mut session.accumulator)?;
        planted::change_gradient(session, step)?;
        let sums = gather_square_sums(session.comm, &session.ownership, &square_sums)?;
        let (norms, gradient_norm) = norm::norms(&session.layout, &sums);
        let loss_scale = session.scaler.as_ref().map(LossScaler::state);
        let skipped_for = step::refuse_non_finite(session, step, &norms)?;
        let unused = step::unused_parameters(session, step, &local.usage)?;

        watch.enter(Category::Record, About::default());
        capture.as_mut().map_or(Ok(()), |capture| capture.gradient(session))?;

        watch.enter(Category::Optimizer, About::default());
        let clip = norm::clip_coefficient(gradient_norm, session.config.optim.clip_norm);
        let rate = step::rate(session.config, step);
        let numbers = Numbers { gradient_norm, clip, rate, found_inf: skipped_for.is_some() };
        let numbers = planted::numbers(session, &norms, numbers);
        match skipped_for {
            None => {
                let prints = digests_due.then_some(&mut prints);
                step::update(session, step, &numbers, &unused, prints)?;
            }
            Some(_) => step::skip_update(session),
        }
        planted::move_parameter(session, step)?;
        perturb::parameters(session, step)?;

        watch.enter(Category::Forward, About::default());
        let validation = evaluate::if_due(session, step, last)?;
        watch.enter(Category::Record, About::default());
        let lines = match digests_due {
            true => digests::of_step(session, step, &local, &numbers, &prints)?,
            false => Vec::new(),
        };
        if let Some(capture) = capture {
            capture.finish(session, &local, numbers)?;
        }
        let seen = measure::gather(session, step, &local, course.stop_request.is_set())?;
        let measured = Measured {
            step,
            epoch: samples.epoch,
            numbers,
            targets: local.targets,
            validation,
            skipped_for,
            loss_scale,
            unused_parameters: unused.len(),
        };
        let line = measured.line(session, &seen, &mut watch)?;
        if let Some(recorder) = recorder.as_deref_mut() {
            recorder.digests(&lines)?;
            recorder.step(&line, &SampleLine { step, micro_batches: seen.samples, masks: seen.masks })?;
        }
        progress.step(&line);

        let ending = finish::ending(session.config, step, last, seen.stop);
        if ending.is_some() || finish::checkpoint_due(session.config, step) {
            let _span = session.trace.training(Category::Record, About::default());
            save_checkpoint(session, run, step)?;
        }
        if let Some(outcome) = ending {
            session.trace.close();
            progress.finish();
            return Ok(Ending { step, outcome });
        }
    }
    unreachable!("a course ends with its last step")
}

impl Ending {
    /// The process's exit code.
    pub fn exit_code(&self) -> i32 {
        match self.outcome {
            Outcome::Finished | Outcome::Stopped => exit::OK,
            Outcome::Preempted => exit::PREEMPTED,
        }
    }
}

#[cfg(test)]
mod vla_tests;
