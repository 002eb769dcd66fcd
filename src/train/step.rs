//! The parts of one step that compute.

use lockstep_record::{Digest, exit};
use tch::{Kind, Tensor};

use super::capture::Capture;
use super::digests;
use super::measure::Numbers;
use super::objective::Objective;
use super::planted;
use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::config::schema::{NonFinite, UnusedParameters};
use crate::data::{Split, StepSamples};
use crate::grad::accumulate::Accumulator;
use crate::grad::flat;
use crate::grad::layout::Layout;
use crate::grad::unused::{self, ParameterSet, Usage};
use crate::launch::Failure;
use crate::metrics::{BucketPrints, Fingerprint, Pen};
use crate::model::Dropout;
use crate::optim::{Optimizer, learning_rate};
use crate::perturb;
use crate::precision::{self, LossScaler, SKIPPED_IN_A_ROW_MAX, Verdict, verdict};
use crate::reduce::EarlyUpdate;
use crate::session::Session;
use crate::torch::TorchError;
use crate::trace::{About, Category};

/// What this rank's micro-batches yielded, in micro-batch order.
#[derive(Default)]
pub struct Local {
    /// Each micro-batch's share of the step's loss.
    pub losses: Vec<f64>,
    /// Each micro-batch's share of the means of the model's losses, in the order of its terms.
    pub terms: Vec<Vec<f64>>,
    /// Targets of each of them in the global batch.
    pub targets: Vec<u64>,
    /// Ids of the samples that were really used.
    pub samples: Vec<Vec<u64>>,
    /// Evidence of each micro-batch's dropout masks; empty without dropout.
    pub masks: Vec<Digest>,
    /// Of each micro-batch's own gradient, one a trained parameter, where they are recorded.
    pub gradients: Vec<Vec<Fingerprint>>,
    /// Of what the model was given of each micro-batch, where it is recorded.
    pub contents: Vec<Vec<(&'static str, Fingerprint)>>,
    /// Which parameters got a gradient.
    pub usage: Usage,
}

/// Runs this rank's micro-batches. Their gradients are added up as they become ready; in the last micro-batch each
/// bucket that is complete starts to be reduced.
pub fn forward_backward(
    session: &mut Session,
    step: u64,
    samples: &StepSamples,
    digests_due: bool,
    mut capture: Option<&mut Capture>,
    watch: &mut Stopwatch,
) -> Result<Local, Failure> {
    planted::begin(session, step);
    session.reducer.unscale_by(session.scaler.as_ref().map_or(1.0, LossScaler::inverse));
    let targets = session.targets(Split::Train, &samples.micro_batches)?;
    let mut local = Local { targets, ..Local::default() };
    for (position, micro_batch) in session.micro_batches.clone().enumerate() {
        watch.enter(Category::Data, About::micro_batch(micro_batch));
        let ids = planted::samples(session, position, &samples.micro_batches);
        let split = planted::split(micro_batch);
        let batch = session.micro_batch(split, &ids, Some(&samples.epochs[micro_batch]))?;
        if digests_due {
            local.contents.push(digests::contents(&batch));
        }
        let dropout = Dropout {
            probability: session.config.model.dropout,
            seed: session.config.run.seed,
            step,
            micro_batch,
            rank: session.comm.rank(),
        };
        local.masks.extend(dropout.evidence());
        watch.enter(Category::Forward, About::micro_batch(micro_batch));
        let losses = session.losses(&batch, Some(&dropout))?;
        let divisors = planted::divisors(session, &local.targets, &samples.micro_batches, micro_batch)?;
        let shares = Objective::new(session.model.terms(), divisors).shares(&losses)?;
        let loss = shares.total;
        local.losses.push(loss.f_double_value(&[])?);
        local.terms.push(shares.terms);
        watch.enter(Category::Backward, About::micro_batch(micro_batch));
        let loss = match &session.scaler {
            None => loss,
            Some(scaler) => loss.f_mul_scalar(f64::from(scaler.scale()))?,
        };
        let loss = planted::scale(step, micro_batch, loss);
        let mut gradients = capture.is_some().then(Vec::new);
        let prints =
            backward(session, &loss, (step, position), digests_due, gradients.as_mut(), &mut local.usage)?;
        local.gradients.push(prints);
        if let (Some(capture), Some(gradients)) = (capture.as_deref_mut(), gradients) {
            let loss = local.losses[position];
            capture.micro_batch(session, micro_batch, (&batch, &ids, loss), gradients)?;
        }
        local.samples.push(ids);
    }
    watch.stop();
    if !local.usage.missed.is_empty() && session.config.parallel.unused_parameters == UnusedParameters::Error
    {
        let message = unused::complaint(&session.layout, step, &local.usage.missed);
        return Err(Failure::alone(exit::INTERNAL, message));
    }
    Ok(local)
}

/// Whether a bucket is updated as soon as it is reduced: nothing needs to know the whole gradient first. A norm that is
/// not finite still ends the run, and with it what was updated; where the loss is scaled, it is an everyday event.
fn updates_early(config: &Config) -> bool {
    config.optim.clip_norm.is_none()
        && config.optim.non_finite == NonFinite::Stop
        && !precision::scales_loss(config)
        && config.parallel.unused_parameters != UnusedParameters::Detect
}

/// Records a bucket around its update.
fn pen(optimizer: &Optimizer, layout: &Layout, bucket: usize, sketched: bool) -> Pen {
    Pen::new(layout, bucket, &optimizer.owned()[bucket], optimizer.state_of(bucket), sketched)
}

/// The backward pass of this rank's `position`-th micro-batch. Returns each gradient's fingerprint, if they are recorded;
/// `captured` gets the gradients themselves.
fn backward(
    session: &mut Session,
    loss: &Tensor,
    (step, position): (u64, usize),
    digests_due: bool,
    mut captured: Option<&mut Vec<(usize, Tensor)>>,
    usage: &mut Usage,
) -> Result<Vec<Fingerprint>, Failure> {
    let early = updates_early(session.config);
    let rate = rate(session.config, step);
    let lost = planted::lost_hook(session, step);
    let (record, micro_batch) = (&session.config.record, session.micro_batches.start + position);
    let inverse = session.scaler.as_ref().map(LossScaler::inverse);
    // What is recorded is the loss's own gradient, as the reduced one is.
    let unscaled = |gradient: &Tensor| match inverse {
        None => gradient.shallow_clone(),
        Some(inverse) => gradient * f64::from(inverse),
    };
    let Session { hooks, accumulator, reducer, layout, optimizer, parameters, perturbation, home, .. } =
        session;
    let (none, perturbation) = (ParameterSet::default(), *perturbation);
    let update = |bucket: usize| {
        early.then(|| EarlyUpdate {
            update: optimizer.prepare(layout, bucket, &none, step, rate),
            parameters: parameters.buffers()[bucket].same_memory(),
            pen: digests_due.then(|| pen(optimizer, layout, bucket, record.sketches)),
        })
    };
    let recorded = digests_due && record.local_gradients;
    let mut prints = vec![None; if recorded { layout.parameters.len() } else { 0 }];
    accumulator.begin(layout, position);
    let mut add = |accumulator: &mut Accumulator, index: usize, gradient: Tensor| {
        if let Some(print) = prints.get_mut(index) {
            *print = Some(Fingerprint::of(&flat::values(&unscaled(&gradient))?, record.sketches));
        }
        if let Some(captured) = captured.as_deref_mut() {
            captured.push((index, unscaled(&gradient)));
        }
        let gradient = match &perturbation {
            None => gradient,
            Some(perturbation) => perturb::gradient(perturbation, &gradient, index, micro_batch, step)?,
        };
        if accumulator.add(layout, index, gradient)? && accumulator.is_last() {
            reducer.complete(layout.slots[index].bucket, accumulator, &update)?;
        }
        Ok::<(), TorchError>(())
    };
    // Autograd cannot be stopped: after an error the rest of the pass is for nothing.
    let mut outcome = Ok(());
    hooks.backward(loss, &mut |index, gradient| {
        usage.note(index, true);
        let gradient = if lost == Some(index) { gradient.zeros_like() } else { gradient };
        if outcome.is_ok() {
            outcome = add(accumulator, index, gradient.contiguous());
        }
    })?;
    outcome?;
    // What the loss does not depend on counts as zero, and is really added: −0 + 0 is +0.
    for index in accumulator.missing() {
        usage.note(index, false);
        let shape = [layout.slots[index].elements as i64];
        add(accumulator, index, Tensor::f_zeros(shape, (Kind::Float, home.device()))?)?;
    }
    Ok(prints.into_iter().flatten().collect())
}

/// The parameters to leave out of the update, the same on all ranks: under `detect`, those that no micro-batch used.
/// Each is named once in the log.
pub fn unused_parameters(session: &mut Session, step: u64, usage: &Usage) -> Result<ParameterSet, Failure> {
    if session.config.parallel.unused_parameters != UnusedParameters::Detect {
        return Ok(ParameterSet::default());
    }
    let ranks = session.comm.all_gather_bytes("gather of unused", &usage.used.to_bytes())?;
    let unused = unused::unused_by_all(&session.layout, &ranks);
    let new: ParameterSet = unused.iter().filter(|&index| !session.named_unused.contains(index)).collect();
    new.iter().for_each(|index| session.named_unused.insert(index));
    if session.comm.rank() == 0 && !new.is_empty() {
        let names: Vec<&str> =
            new.iter().map(|index| session.layout.parameters[index].name.as_str()).collect();
        tracing::warn!(
            step,
            "no micro-batch used these parameters, so they were not updated: {}",
            names.join(", ")
        );
    }
    Ok(unused)
}

/// Keeps a gradient that is not finite from the parameters. All ranks know the norms of all shards and decide alike: to end, or
/// to leave out this update, and then the tensor that is the reason is returned. The loss scale follows.
pub fn refuse_non_finite(session: &mut Session, step: u64, norms: &[f64]) -> Result<Option<String>, Failure> {
    let found = norms.iter().position(|norm| !norm.is_finite()).filter(|_| !planted::overlooks(session));
    let scale = session.scaler.as_ref().map(LossScaler::scale);
    let policy = session.config.optim.non_finite;
    let verdict = verdict(found.is_none(), scale, policy, session.skipped_in_a_row);
    if let Some(scaler) = &mut session.scaler {
        scaler.update(found.is_none());
    }
    let Some(index) = found else {
        session.skipped_in_a_row = 0;
        return Ok(None);
    };
    let name = session.layout.parameters[index].name.clone();
    let fault = format!("step {step}: the gradient of {name} is not finite (norm {})", norms[index]);
    let remedy = "With a lower optim.lr, or with optim.clip_norm, go on from the last checkpoint in a new run directory: \
                  --run-dir NEW --resume CHECKPOINT";
    let what = match verdict {
        Verdict::Stop => {
            let message = format!("{fault}; the step is lost, and nothing of it was saved. {remedy}");
            return Err(Failure::shared(exit::INTERNAL, message));
        }
        Verdict::GiveUp => {
            let count = SKIPPED_IN_A_ROW_MAX;
            let message =
                format!("{fault}, and so it was in {count} steps in a row, which were skipped. {remedy}");
            return Err(Failure::shared(exit::INTERNAL, message));
        }
        Verdict::Skip | Verdict::Update => {
            session.skipped_in_a_row += 1;
            "the update is skipped".to_owned()
        }
        Verdict::Rescale => {
            let scale = session.scaler.as_ref().map_or(1.0, LossScaler::scale);
            format!("the update is skipped, and the loss scale is now {scale}")
        }
    };
    if session.comm.rank() == 0 {
        tracing::warn!("{fault}; {what}");
    }
    Ok(Some(name))
}

/// Clips the owned part of the gradient and updates the owned part of the parameters, bucket by bucket, without those
/// that are `unused`; each is published as soon as it is updated. The last buckets come first: they hold what the next
/// forward pass needs first. Where digests are due, `prints` gets those of the buckets that are updated here.
pub fn update(
    session: &mut Session,
    step: u64,
    numbers: &Numbers,
    unused: &ParameterSet,
    mut prints: Option<&mut Vec<Option<BucketPrints>>>,
) -> Result<(), Failure> {
    let sketched = session.config.record.sketches;
    let (early, Numbers { clip, rate, .. }) = (updates_early(session.config), *numbers);
    let (left_out, stale) = (planted::update_left_out(session, step), planted::gathers_early());
    let Session { layout, optimizer, accumulator, parameters, reducer, .. } = session;
    for bucket in (0..layout.trained_buckets()).rev() {
        let parameters = &mut parameters.buffers_mut()[bucket];
        if stale {
            reducer.publish(bucket, parameters)?;
            reducer.arrive(bucket)?;
        }
        if !early && !left_out {
            let update = optimizer.prepare(layout, bucket, unused, step, rate);
            let pen = prints.is_some().then(|| pen(optimizer, layout, bucket, sketched));
            let seen = Pen::around(pen, accumulator.gradient_mut(bucket), |gradient| {
                gradient.scale(&optimizer.owned()[bucket], planted::clip_of(bucket, clip))?;
                update.apply(parameters, gradient)
            })?;
            if let Some(prints) = prints.as_deref_mut() {
                prints[bucket] = seen;
            }
            planted::cut_masters(parameters)?;
        }
        if !stale {
            reducer.publish(bucket, parameters)?;
        }
    }
    optimizer.leave_out(unused.iter());
    Ok(())
}

/// The step's learning rate.
pub fn rate(config: &Config, step: u64) -> f64 {
    learning_rate(&config.schedule, config.optim.lr, step)
}

/// Leaves all parameters out of this update.
pub fn skip_update(session: &mut Session) {
    session.optimizer.leave_out(session.layout.trained());
}
