//! Both passes: the records first, then the guilty step of both runs with full tensors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_record::{RunDir, exit};

use super::capture::{Capture, compare_captures};
use super::finding::{Finding, Phase};
use super::records::bisect_records;
use super::replay::Tools;
use crate::compare::{CompareError, Run};
use crate::launch::{Launcher, PlaceError, find_trainer, make_work_dir, stop_flag};

/// Times that an earlier guilty step may come to light when its steps are recorded more closely.
const ATTEMPTS_MAX: usize = 4;

/// What `bisect` was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub golden: PathBuf,
    pub candidate: PathBuf,
    /// Whether runs may be trained once more.
    pub replay: bool,
    pub trainer: Option<PathBuf>,
    pub launcher: Option<String>,
    pub work_dir: Option<PathBuf>,
    /// Of each launch.
    pub timeout: Duration,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Bisection {
    pub finding: Option<Finding>,
    /// What the second pass did, or why there was none.
    pub notes: Vec<String>,
    /// Where replays lie, if there were any.
    pub work_dir: Option<PathBuf>,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum BisectError {
    #[error("{0:#}")]
    Records(anyhow::Error),
    #[error(transparent)]
    Place(#[from] PlaceError),
}

impl BisectError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Records(error) => match error.downcast_ref::<CompareError>() {
                Some(CompareError::NotARun(_)) => exit::USAGE,
                _ => exit::CASE_FAILED,
            },
            Self::Place(PlaceError::Io { .. }) => exit::INTERNAL,
            Self::Place(_) => exit::USAGE,
        }
    }
}

/// Where two runs part, as precisely as can be found out.
pub fn bisect(options: &Options) -> Result<Bisection, BisectError> {
    let finding = bisect_records(&options.golden, &options.candidate).map_err(BisectError::Records)?;
    let mut bisection = Bisection { finding, notes: Vec::new(), work_dir: None };
    let Some(finding) = bisection.finding.clone().filter(is_worth_a_capture) else { return Ok(bisection) };
    let step = finding.step.unwrap_or_default().max(1);
    let captured = [&options.golden, &options.candidate].map(RunDir::new);
    match refine(&finding, &captured, step) {
        Ok(Some(refined)) => {
            bisection.finding = Some(refined);
            bisection.notes.push(format!("both runs have a capture of step {step}"));
        }
        Err(problem) => bisection.notes.push(problem),
        Ok(None) if !options.replay => {
            bisection.notes.push("from the records alone; a replay with full tensors would say more".into());
        }
        Ok(None) => second_pass(options, finding, &mut bisection)?,
    }
    Ok(bisection)
}

/// Whether full tensors of the step can say more than the records did.
fn is_worth_a_capture(finding: &Finding) -> bool {
    let of_tensors =
        !matches!(finding.phase, Phase::Data | Phase::Schedule | Phase::Checkpoint | Phase::Outcome);
    let more = of_tensors && finding.tensor.as_deref() != Some("validation_loss");
    finding.step.is_some() && (more || ended_for_its_gradient(finding))
}

/// Whether the candidate ended because a gradient was not finite: with such updates left out, the step can be seen.
fn ended_for_its_gradient(finding: &Finding) -> bool {
    finding.phase == Phase::Outcome && finding.hints.iter().any(|hint| hint.contains("is not finite"))
}

/// Trains the steps up to the guilty one once more, on both sides.
fn second_pass(options: &Options, first: Finding, bisection: &mut Bisection) -> Result<(), BisectError> {
    let trainer = match find_trainer(options.trainer.as_deref()) {
        Err(missing) if options.trainer.is_none() => {
            bisection.notes.push(format!("from the records alone, since {missing}"));
            return Ok(());
        }
        found => found?,
    };
    let work_dir = make_work_dir(options.work_dir.as_deref(), "bisect", &options.candidate)?;
    let launcher = Launcher::find(options.launcher.as_deref(), None, &trainer);
    let stop = stop_flag(&work_dir)?;
    bisection.work_dir = Some(work_dir.clone());
    let open = |path: &Path| Run::open(path).map_err(|error| BisectError::Records(error.into()));
    let runs = [open(&options.golden)?, open(&options.candidate)?];
    let tools = Tools {
        trainer,
        launcher,
        timeout: options.timeout,
        stop,
        skip_non_finite: ended_for_its_gradient(&first),
    };
    let mut step = first.step.unwrap_or_default().max(1);
    let agreed = first.agreed_until.unwrap_or(0).min(step - 1);
    for attempt in 1..=ATTEMPTS_MAX {
        let folder =
            if attempt == 1 { work_dir.clone() } else { work_dir.join(format!("again-{}", attempt - 1)) };
        let replayed = match replays(&tools, &runs, (step, agreed), &folder) {
            Ok(replayed) => replayed,
            Err(problem) => {
                bisection.notes.push(problem);
                return Ok(());
            }
        };
        bisection.notes.push(format!("both runs were trained again up to step {step}, which was captured"));
        bisection.notes.extend(unlike_before(&runs, &replayed));
        let again = bisect_records(replayed[0].path(), replayed[1].path()).map_err(BisectError::Records)?;
        let earlier =
            again.as_ref().and_then(|finding| finding.step).filter(|&other| 0 < other && other < step);
        match (earlier, again) {
            (Some(earlier), Some(again)) if is_worth_a_capture(&again) => step = earlier,
            (earlier, again) => {
                // A capture of a later step shows consequences only.
                let refined = if earlier.is_none() { refine(&first, &replayed, step) } else { Ok(None) };
                conclude(bisection, first, again, refined, (step, agreed));
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Puts together what the records, the replays' records and their captures say.
fn conclude(
    bisection: &mut Bisection,
    first: Finding,
    again: Option<Finding>,
    refined: Result<Option<Finding>, String>,
    (step, agreed): (u64, u64),
) {
    let refined = refined.unwrap_or_else(|problem| {
        bisection.notes.push(problem);
        None
    });
    bisection.finding = Some(match (refined, again) {
        (Some(refined), Some(again)) => with_context(refined, &again).conclude(),
        (Some(refined), None) => refined,
        (None, Some(again)) => with_context(again, &first).conclude(),
        (None, None) => {
            let mut finding = first;
            finding.hints.push(format!(
                "the same steps, trained again from step {} on, do not differ: it depends on what happened before (in the \
                 process, or in memory), on timing, or on the machine",
                agreed.min(step - 1)
            ));
            finding.conclude()
        }
    });
}

/// Trains both runs again; an error says why that could not be done.
fn replays(
    tools: &Tools,
    runs: &[Run; 2],
    (step, agreed): (u64, u64),
    folder: &Path,
) -> Result<[RunDir; 2], String> {
    let golden = tools.replay(&runs[0], step, agreed, &folder.join("golden"))?;
    let candidate = tools.replay(&runs[1], step, agreed, &folder.join("candidate"))?;
    Ok([golden, candidate])
}

/// Says so where a replay does not repeat its own run.
fn unlike_before(runs: &[Run; 2], replayed: &[RunDir; 2]) -> Vec<String> {
    let unlike = |(who, run, again): (&str, &Run, &RunDir)| {
        let finding = bisect_records(run.dir.path(), again.path()).ok()??;
        let step = finding.step?;
        // The run goes on where the replay ends.
        (finding.phase != Phase::Outcome && finding.phase != Phase::Checkpoint)
            .then(|| format!("the replay of the {who} is not what the {who} was: it parts from it at step {step}, in the phase {}", finding.phase))
    };
    [("golden run", &runs[0], &replayed[0]), ("candidate", &runs[1], &replayed[1])]
        .into_iter()
        .filter_map(unlike)
        .collect()
}

/// What captures of both say; None if one is missing or they do not differ.
fn refine(first: &Finding, runs: &[RunDir; 2], step: u64) -> Result<Option<Finding>, String> {
    let open = |run: &RunDir| Capture::open(run, step).map_err(|error| error.to_string());
    let (Some(mut golden), Some(mut candidate)) = (open(&runs[0])?, open(&runs[1])?) else { return Ok(None) };
    let found = compare_captures(&mut golden, &mut candidate).map_err(|error| error.to_string())?;
    let Some(mut finding) = found else { return Ok(None) };
    if first.step == Some(0) {
        finding.step = Some(0);
        finding.hints.retain(|hint| !hint.starts_with("it differs before"));
    }
    Ok(Some(with_context(finding, first).conclude()))
}

/// Keeps what the records of the whole run said about the circumstances.
fn with_context(mut finding: Finding, first: &Finding) -> Finding {
    let circumstances = ["the candidate had just been resumed", "the runs were asked for"];
    let parts = ["which moves bits", " said last: "];
    let about_the_run = |hint: &&String| {
        circumstances.iter().any(|start| hint.starts_with(start))
            || parts.iter().any(|part| hint.contains(part))
    };
    for hint in first.hints.iter().filter(about_the_run) {
        if !finding.hints.contains(hint) {
            finding.hints.push(hint.clone());
        }
    }
    // Captures have no masks.
    let place = |finding: &Finding| (finding.step, finding.phase, finding.micro_batch);
    if finding.masks.is_none() && place(&finding) == place(first) {
        finding.masks.clone_from(&first.masks);
    }
    finding.agreed_until = finding.agreed_until.max(first.agreed_until);
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_known_already_need_no_replay() {
        let worth = |phase, tensor: &str| {
            let mut finding = Finding::new(Some(3), phase);
            finding.tensor = Some(tensor.into());
            is_worth_a_capture(&finding)
        };
        assert!(
            worth(Phase::ReducedGradient, "w")
                && worth(Phase::Norm, "gradient_norm")
                && worth(Phase::Forward, "loss")
        );
        assert!(
            !worth(Phase::Data, "sample ids")
                && !worth(Phase::Outcome, "")
                && !worth(Phase::Forward, "validation_loss")
        );
    }

    #[test]
    fn the_circumstances_of_the_run_stay_in_the_sentence() {
        let mut first = Finding::new(Some(4), Phase::Optimizer);
        first.hints = vec![
            "the candidate had just been resumed from step 3".into(),
            "its norm is 2 times the golden one".into(),
        ];
        first.agreed_until = Some(3);
        let finding = with_context(Finding::new(Some(4), Phase::Optimizer), &first);
        assert_eq!(finding.hints, first.hints[..1]);
        assert_eq!(finding.agreed_until, Some(3));
    }
}
