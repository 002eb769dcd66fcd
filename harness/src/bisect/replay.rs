//! Training a few steps of a run once more, from the nearest checkpoint, with one of them captured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lockstep_record::{RunDir, Segment};

use super::segments::executions;
use crate::compare::Run;
use crate::launch::{Launch, Launcher, complaint};

/// The program whose runs can be trained once more.
const TRAINER: &str = "lockstep";

/// One launch: as one segment of the run was, up to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Index of the segment.
    pub segment: usize,
    pub from: From,
    pub stop_after: u64,
}

/// What a launch starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Nothing,
    /// The run's own checkpoint of this step.
    Checkpoint(u64),
    /// The end of the launch before it.
    Stage,
}

/// The launches that bring a run to the end of `step`, as the run itself came there: from the newest of its
/// `checkpoints` before that step and not after `agreed`. None if it began from a checkpoint that is not its own.
pub fn plan(segments: &[Segment], checkpoints: &[u64], step: u64, agreed: u64) -> Option<Vec<Stage>> {
    let executions = executions(segments);
    let usable =
        checkpoints.iter().copied().filter(|&saved| saved > 0 && saved < step && saved <= agreed).max();
    let start = usable.unwrap_or(0);
    let needed = executions.iter().filter(|execution| execution.from < step && execution.to > start);
    let stages: Vec<Stage> = needed
        .enumerate()
        .map(|(index, execution)| Stage {
            segment: execution.segment,
            from: match (index, usable) {
                (0, Some(saved)) => From::Checkpoint(saved),
                (0, None) => From::Nothing,
                _ => From::Stage,
            },
            stop_after: execution.to.min(step),
        })
        .collect();
    let began = executions.first()?.from;
    (began <= start && !stages.is_empty()).then_some(stages)
}

/// What replays are launched with.
pub struct Tools {
    pub trainer: PathBuf,
    /// Or why there is none: one rank needs none.
    pub launcher: Result<Launcher, String>,
    /// Of each launch.
    pub timeout: Duration,
    pub stop: Arc<AtomicBool>,
    /// Leave out an update whose gradient is not finite instead of ending the run, so that its step can be captured.
    pub skip_non_finite: bool,
}

impl Tools {
    /// Trains `run` up to `step`, and captures that one. Everything goes to `folder`. An error says why there is none.
    pub fn replay(&self, run: &Run, step: u64, agreed: u64, folder: &Path) -> Result<RunDir, String> {
        let who = run.dir.path().display();
        let program = &run.manifest.program.name;
        if program != TRAINER {
            return Err(format!("{who} was trained by {program}, which this program cannot start"));
        }
        let checkpoints = run.dir.checkpoint_steps().map_err(|error| format!("{who}: {error}"))?;
        let stages = plan(&run.manifest.segments, &checkpoints, step, agreed).ok_or_else(|| {
            format!(
                "{who} began from a checkpoint of another run, and has none of its own before step {step}"
            )
        })?;
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let config = folder.join("config.yaml");
        std::fs::write(&config, configuration(&run.manifest.config))
            .map_err(|error| format!("{}: {error}", config.display()))?;
        let target = RunDir::new(folder.join("run"));
        for (index, stage) in stages.iter().enumerate() {
            let segment = &run.manifest.segments[stage.segment];
            let capture = (index + 1 == stages.len()).then_some(step);
            let mut program = command(&self.trainer, &config, segment, (run, &target), stage, capture);
            if self.skip_non_finite {
                program.extend(["--set", "optim.non_finite=skip"].map(str::to_owned));
            }
            let argv = Launcher::wrap(&self.launcher, segment.world_size, program)?;
            let log = folder.join(format!("stage-{}", index + 1));
            let (stdout, stderr) = (log.with_extension("stdout"), log.with_extension("stderr"));
            let launch = Launch { argv, stdout, stderr, timeout: self.timeout, stop: &self.stop };
            let (ended, record) = launch.run();
            if let Some(text) = complaint(&ended, &record) {
                return Err(format!(
                    "training {who} once more up to step {} failed: {text}",
                    stage.stop_after
                ));
            }
        }
        Ok(target)
    }
}

/// The run's configuration as a file of its own: JSON is YAML. Keys that a newer trainer has besides get their defaults.
fn configuration(config: &serde_json::Value) -> String {
    let mut config = config.clone();
    if let Some(root) = config.as_object_mut() {
        root.insert("extends".into(), "base.yaml".into());
    }
    format!("{config:#}\n")
}

/// The command line of one rank.
fn command(
    trainer: &Path,
    config: &Path,
    segment: &Segment,
    (run, target): (&Run, &RunDir),
    stage: &Stage,
    capture: Option<u64>,
) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut argv = vec![text(trainer), "train".into(), "--config".into(), text(config)];
    let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    let mut sets = vec![
        format!("parallel.strategy={}", segment.strategy),
        format!("run.threads_per_rank={}", segment.threads_per_rank),
    ];
    match segment.reduction.as_str() {
        "none" => option("--comm", "none".into()),
        reduction => sets.push(format!("parallel.reduction={reduction}")),
    }
    // What is written down on the way does not decide the result.
    let recorded = ["record.digests_every=1", "record.local_gradients=true"];
    let saved = ["checkpoint.every=0", "checkpoint.milestone_every=0", "checkpoint.at_start=false"];
    sets.extend(recorded.iter().chain(&saved).map(|&set| set.to_owned()));
    sets.into_iter().for_each(|set| option("--set", set));
    option("--run-dir", text(target.path()));
    match stage.from {
        From::Nothing => {}
        From::Checkpoint(step) => option("--resume", text(&run.dir.checkpoint(step))),
        From::Stage => option("--resume", "auto".into()),
    }
    option("--stop-after", stage.stop_after.to_string());
    if let Some(step) = capture {
        option("--capture", format!("step={step}"));
    }
    if let Some(mutation) = &segment.mutation {
        option("--mutate", mutation.clone());
    }
    if let Some(perturbation) = &segment.perturbation {
        option("--perturb", perturbation.to_string());
    }
    argv
}

#[cfg(test)]
mod tests {
    use super::super::segments::{execution_of, tests::segment};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The stages come to the step without a gap, each step under the segment that made it.
        #[test]
        fn a_replay_goes_the_way_that_the_run_went(
            starts in prop::collection::vec(0u64..12, 0..5), saved in prop::collection::btree_set(0u64..14, 0..6),
            step in 1u64..14, agreed in 0u64..14,
        ) {
            let segments: Vec<_> = std::iter::once(0).chain(starts).map(|from| segment(from, 2)).collect();
            let saved: Vec<u64> = saved.into_iter().collect();
            let stages = plan(&segments, &saved, step, agreed).unwrap();
            let start = match stages[0].from {
                From::Checkpoint(saved_step) => {
                    prop_assert!(saved.contains(&saved_step) && saved_step < step && saved_step <= agreed);
                    saved_step
                }
                From::Nothing => 0,
                From::Stage => unreachable!("nothing comes before the first stage"),
            };
            let mut done = start;
            for (index, stage) in stages.iter().enumerate() {
                prop_assert_eq!(stage.from == From::Stage, index > 0);
                for made in done + 1..=stage.stop_after {
                    prop_assert_eq!(execution_of(&segments, made).unwrap().segment, stage.segment);
                }
                prop_assert!(stage.stop_after > done);
                done = stage.stop_after;
            }
            prop_assert_eq!(done, step);
        }
    }

    #[test]
    fn a_resume_just_before_the_step_is_gone_through_again() {
        let segments = [segment(0, 2), segment(3, 3)];
        let resumed = Stage { segment: 1, from: From::Checkpoint(3), stop_after: 4 };
        assert_eq!(plan(&segments, &[3, 6], 4, 3), Some(vec![resumed]));
        let first = Stage { segment: 0, from: From::Nothing, stop_after: 3 };
        let second = Stage { segment: 1, from: From::Stage, stop_after: 4 };
        assert_eq!(plan(&segments, &[6], 4, 3), Some(vec![first, second]));
    }

    #[test]
    fn without_its_own_beginning_a_run_cannot_be_repeated() {
        assert_eq!(plan(&[segment(5, 1)], &[8], 7, 6), None);
        assert!(plan(&[segment(5, 1)], &[5], 7, 6).is_some());
    }

    #[test]
    fn the_configuration_is_yaml_with_what_it_extends() {
        let text = configuration(
            &serde_json::json!({"optim": {"lr": 1e-8, "clip_norm": null}, "precision": "fp32"}),
        );
        let tree: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(tree["extends"], "base.yaml");
        assert_eq!(tree["optim"]["lr"].as_f64(), Some(1e-8));
    }
}
