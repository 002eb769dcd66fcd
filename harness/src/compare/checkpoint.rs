//! The newest checkpoint that two runs have in common, tensor by tensor.

use std::collections::BTreeMap;

use lockstep_record::{Phase, RecordError, RunDir, TensorEntry, TrainingState, refuse_link};

use super::CompareError;
use super::bars::{Bars, Subject};
use super::difference::{Check, Difference, Event, Place};
use super::elements::{Judge, TensorPair};
use super::steps::scale_text;
use super::tensors::Checkpoint;
use super::values::Value;

/// Compares the newest checkpoints of the same step: state, model and optimizer, however either was sharded.
pub fn compare_checkpoints(
    golden: &RunDir,
    candidate: &RunDir,
    bars: Bars,
) -> Result<Vec<Check>, CompareError> {
    let mut checks = Checks::new();
    let (left, right) = (steps(golden)?, steps(candidate)?);
    let Some(step) = left.into_iter().rev().find(|step| right.contains(step)) else {
        checks.state.note = Some("the runs have no checkpoint of the same step".into());
        return Ok(checks.into_list());
    };
    let mut golden = Checkpoint::open(golden.checkpoint(step))?;
    let mut candidate = Checkpoint::open(candidate.checkpoint(step))?;
    checks.state.note = Some(format!("of step {step}"));
    compare_state(&mut checks.state, step, &golden, &candidate);

    let tensors = |checkpoint: &Checkpoint| -> BTreeMap<String, TensorEntry> {
        checkpoint.manifest.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
    };
    let (left, right) = (tensors(&golden), tensors(&candidate));
    // Parameters first: the optimizer's state of the same update is no cause of theirs here.
    let mut names: Vec<&String> =
        left.keys().chain(right.keys().filter(|name| !left.contains_key(*name))).collect();
    names.sort_by_key(|name| !name.starts_with("model/"));
    for name in names {
        let check = if name.starts_with("model/") { &mut checks.model } else { &mut checks.optimizer };
        let place = || Place::at(step, Event::Checkpoint, name.clone());
        let form = |tensor: &TensorEntry| format!("{} {:?}", tensor.dtype, tensor.shape);
        match (left.get(name), right.get(name)) {
            (Some(left), Some(right)) if (&left.dtype, &left.shape) == (&right.dtype, &right.shape) => {
                let streams = [golden.stream(left)?, candidate.stream(right)?];
                let judge = judge(bars, step, name);
                check.absorb(TensorPair { judge, place: &place, entries: [left, right], streams }.compare()?);
            }
            (left, right) => {
                let (left, right) = (Value::optional(left.map(form)), Value::optional(right.map(form)));
                check.differ(Difference::new(place(), left, right));
            }
        }
    }
    Ok(checks.into_list())
}

fn steps(run: &RunDir) -> Result<Vec<u64>, CompareError> {
    refuse_link(&run.checkpoints())?;
    run.checkpoint_steps()
        .map_err(|source| CompareError::Record(RecordError::Io { path: run.checkpoints(), source }))
}

struct Checks {
    state: Check,
    model: Check,
    optimizer: Check,
}

impl Checks {
    fn new() -> Self {
        Self {
            state: Check::new("checkpoint state"),
            model: Check::new("checkpoint parameters"),
            optimizer: Check::new("checkpoint optimizer state"),
        }
    }

    fn into_list(self) -> Vec<Check> {
        vec![self.state, self.model, self.optimizer]
    }
}

/// What a resume needs besides tensors; how the checkpoint was written may differ.
fn compare_state(check: &mut Check, step: u64, golden: &Checkpoint, candidate: &Checkpoint) {
    let (left, right) = (&golden.manifest.state, &candidate.manifest.state);
    let scale = |state: &TrainingState| state.loss_scale.map_or("none".into(), scale_text);
    let facts = [
        ("step", left.step.to_string(), right.step.to_string()),
        ("seed", left.seed.to_string(), right.seed.to_string()),
        ("samples_seen", left.samples_seen.to_string(), right.samples_seen.to_string()),
        ("optimizer", left.optimizer.clone(), right.optimizer.clone()),
        ("tokenizer_digest", left.tokenizer_digest.clone(), right.tokenizer_digest.clone()),
        ("data_digest", left.data_digest.clone(), right.data_digest.clone()),
        ("updates_left_out", format!("{:?}", left.updates_left_out), format!("{:?}", right.updates_left_out)),
        ("skipped_in_a_row", left.skipped_in_a_row.to_string(), right.skipped_in_a_row.to_string()),
        ("loss_scale", scale(left), scale(right)),
    ];
    for (what, left, right) in facts {
        check.same(&left, &right, || {
            let place = Place::at(step, Event::Checkpoint, what);
            Difference::new(place, Value::text(&left), Value::text(&right))
        });
    }
}

/// What a tensor of a checkpoint is judged by.
fn judge(bars: Bars, step: u64, name: &str) -> Judge {
    let (phase, name) = match name.split_once('/') {
        Some(("model", name)) => (Phase::Parameters, name),
        Some((_, name)) => (Phase::Optimizer, name),
        None => (Phase::Parameters, name),
    };
    let subject = Subject { step, phase: Some(phase), micro_batch: None, name };
    match bars {
        Bars::Same(mode) => Judge::Each(mode),
        Bars::Envelope(_) => Judge::Whole { allowed: bars.distance(subject) },
    }
}
