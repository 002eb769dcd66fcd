//! The newest checkpoint that two runs have in common, tensor by tensor.

use std::collections::BTreeMap;

use lockstep_record::{
    BLOCK_ELEMENTS, Phase, RecordError, RunDir, TensorEntry, block_digests, tensor_digest,
};

use super::CompareError;
use super::bars::{Bars, Subject};
use super::difference::{Check, Difference, Event, Place};
use super::tensors::{Checkpoint, TensorStream, dtype};
use super::values::{Format, Mode, Scalar, Value};

/// Elements that are in memory at a time, of each run: whole blocks, so that digests can be made on the way.
const WINDOW_ELEMENTS: usize = 256 * BLOCK_ELEMENTS;

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
                let judge = Judge::new(bars, step, name);
                let mut pair = TensorPair { judge, check, place: &place, entries: [left, right] };
                pair.compare([golden.stream(left)?, candidate.stream(right)?])?;
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
    let facts = [
        ("step", left.step.to_string(), right.step.to_string()),
        ("seed", left.seed.to_string(), right.seed.to_string()),
        ("samples_seen", left.samples_seen.to_string(), right.samples_seen.to_string()),
        ("optimizer", left.optimizer.clone(), right.optimizer.clone()),
        ("tokenizer_digest", left.tokenizer_digest.clone(), right.tokenizer_digest.clone()),
        ("data_digest", left.data_digest.clone(), right.data_digest.clone()),
        ("updates_left_out", format!("{:?}", left.updates_left_out), format!("{:?}", right.updates_left_out)),
        ("skipped_in_a_row", left.skipped_in_a_row.to_string(), right.skipped_in_a_row.to_string()),
    ];
    for (what, left, right) in facts {
        check.same(&left, &right, || {
            let place = Place::at(step, Event::Checkpoint, what);
            Difference::new(place, Value::text(&left), Value::text(&right))
        });
    }
}

/// What two tensors are judged by.
enum Judge {
    /// Element by element.
    Each(Mode),
    Whole(Whole),
}

/// The Euclidean distance of two tensors.
#[derive(Default)]
struct Whole {
    /// None where the envelope knows nothing.
    allowed: Option<f64>,
    square_sum: f64,
    /// Elements whose bits differ.
    differing: u64,
    /// The farthest of them: its place and its distance.
    farthest: Option<(u64, f64)>,
}

impl Judge {
    fn new(bars: Bars, step: u64, name: &str) -> Self {
        let (phase, name) = match name.split_once('/') {
            Some(("model", name)) => (Phase::Parameters, name),
            Some((_, name)) => (Phase::Optimizer, name),
            None => (Phase::Parameters, name),
        };
        let subject = Subject { step, phase: Some(phase), micro_batch: None, name };
        match bars {
            Bars::Same(mode) => Self::Each(mode),
            Bars::Envelope(_) => Self::Whole(Whole { allowed: bars.distance(subject), ..Whole::default() }),
        }
    }
}

impl Whole {
    fn note(&mut self, index: u64, golden: Scalar, candidate: Scalar) {
        let distance = (golden.to_f64() - candidate.to_f64()).abs();
        self.square_sum += distance * distance;
        self.differing += 1;
        // A NaN is farther than anything.
        if self.farthest.is_none_or(|(_, farthest)| distance > farthest || distance.is_nan()) {
            self.farthest = Some((index, distance));
        }
    }

    fn conclude(&self, check: &mut Check, place: &dyn Fn() -> Place) {
        let Some((element, _)) = self.farthest else { return };
        let Some(allowed) = self.allowed else {
            let note = format!("{} at step {:?} is not in the envelope", place().what, place().step);
            check.note = Some(note);
            return;
        };
        check.compared += self.differing - 1;
        check.within(allowed, self.square_sum.sqrt(), || Place { element: Some(element), ..place() });
    }
}

/// One tensor of both checkpoints, of one dtype and shape.
struct TensorPair<'a, P: Fn() -> Place> {
    judge: Judge,
    check: &'a mut Check,
    place: &'a P,
    /// The golden run's and the candidate's.
    entries: [&'a TensorEntry; 2],
}

impl<P: Fn() -> Place> TensorPair<'_, P> {
    fn compare(&mut self, mut streams: [TensorStream<'_>; 2]) -> Result<(), CompareError> {
        let Some((element_bytes, format)) = dtype(&self.entries[0].dtype) else { return Ok(()) };
        let mut buffers = [Vec::new(), Vec::new()];
        let mut blocks = [Vec::new(), Vec::new()];
        let mut element = 0u64;
        while streams[0].remaining() > 0 {
            let bytes = streams[0].remaining().min((WINDOW_ELEMENTS * element_bytes) as u64) as usize;
            for ((stream, buffer), blocks) in streams.iter_mut().zip(&mut buffers).zip(&mut blocks) {
                buffer.resize(bytes, 0u8);
                stream.fill(buffer)?;
                blocks.extend(block_digests(buffer, BLOCK_ELEMENTS * element_bytes));
            }
            self.window(element, element_bytes, format, [&buffers[0], &buffers[1]]);
            element += (bytes / element_bytes) as u64;
        }
        if let Judge::Whole(whole) = &self.judge {
            whole.conclude(self.check, self.place);
        }
        for (side, (entry, blocks)) in
            ["golden", "candidate"].into_iter().zip(self.entries.into_iter().zip(blocks))
        {
            let found = tensor_digest(blocks);
            if found != entry.digest {
                let (listed, found) = (Value::Digest(entry.digest), Value::Digest(found));
                let difference = Difference::new((self.place)(), listed, found);
                let note = format!(
                    "the {side} checkpoint is damaged: its manifest has the first, its files the second"
                );
                self.check.differ(difference.with_note(note));
            }
        }
        Ok(())
    }

    /// Compares a window that starts at `first`; element by element only where its bytes differ.
    fn window(&mut self, first: u64, element_bytes: usize, format: Option<Format>, windows: [&[u8]; 2]) {
        let [left, right] = windows;
        if left == right {
            self.check.compared += (left.len() / element_bytes) as u64 - u64::from(!left.is_empty());
            return self.check.agree();
        }
        let elements = left.chunks_exact(element_bytes).zip(right.chunks_exact(element_bytes));
        for (index, (left, right)) in (first..).zip(elements) {
            let place = || Place { element: Some(index), ..(self.place)() };
            match format {
                Some(format) => {
                    let (left, right) = (Scalar::from_le(format, left), Scalar::from_le(format, right));
                    match &mut self.judge {
                        Judge::Each(mode) => self.check.scalars(*mode, left, right, place),
                        Judge::Whole(_) if left == right => self.check.agree(),
                        Judge::Whole(whole) => whole.note(index, left, right),
                    }
                }
                None => self.check.same(&left, &right, || {
                    let bytes = |bytes: &[u8]| Value::text(format!("bytes {bytes:02x?}"));
                    Difference::new(place(), bytes(left), bytes(right))
                }),
            }
        }
    }
}
