//! Checkpoints as evidence: whether each holds what its run had at that step, and what the golden run's holds.

use std::collections::BTreeMap;

use anyhow::Context;
use lockstep_record::{DigestLine, Phase as Recorded, RunDir, TensorEntry, TrainingState};

use super::elements::{Reading, compare_streams};
use super::finding::{Finding, Phase, Seen};
use super::part::rank_count;
use crate::compare::{Checkpoint, Value, scale_text};

/// Said of files that do not have their digest.
const CHANGED: &str =
    "its files do not hold what its manifest says: they were changed after the digest was taken";

/// By step: the candidate's digests of its state.
pub type Own = BTreeMap<u64, Vec<DigestLine>>;

/// The first checkpoint of the candidate, of a step below `before` if that is given, that does not hold what it must:
/// what the candidate's own digests say, what the golden run's checkpoint of that step holds, and what its own manifest
/// says.
pub fn first_difference(
    golden: &RunDir,
    candidate: &RunDir,
    before: Option<u64>,
    own: &Own,
) -> anyhow::Result<Option<Finding>> {
    let in_golden = golden.checkpoint_steps().context("the golden run's checkpoints")?;
    for step in candidate.checkpoint_steps().context("the candidate's checkpoints")? {
        if before.is_some_and(|before| step >= before) {
            break;
        }
        let left = match in_golden.contains(&step) {
            true => Some(Checkpoint::open(golden.checkpoint(step))?),
            false => None,
        };
        let right = match Checkpoint::open(candidate.checkpoint(step)) {
            Ok(right) => right,
            Err(error) => return Ok(Some(unreadable(step, &error))),
        };
        let mut pair = Saved { step, golden: left, candidate: right };
        let finding = pair.state().or_else(|| pair.own(own.get(&step)?));
        let finding = match finding {
            Some(finding) => Some(finding),
            None => pair.tensors()?,
        };
        if let Some(mut finding) = finding {
            finding.agreed_until = own.contains_key(&step).then_some(step);
            return Ok(Some(finding));
        }
    }
    Ok(None)
}

fn unreadable(step: u64, error: &dyn std::fmt::Display) -> Finding {
    let mut finding = Finding::new(Some(step), Phase::Checkpoint);
    finding.tensor = Some("content".into());
    finding.candidate.text = error.to_string();
    finding.golden.text = "a sound checkpoint".into();
    finding
}

/// The candidate's checkpoint of a step, and the golden run's if it has one.
struct Saved {
    step: u64,
    golden: Option<Checkpoint>,
    candidate: Checkpoint,
}

impl Saved {
    fn finding(&self, tensor: &str, golden: &Value, candidate: &Value) -> Finding {
        let mut finding = Finding::new(Some(self.step), Phase::Checkpoint).with_values(golden, candidate);
        finding.tensor = Some(tensor.to_owned());
        finding
    }

    /// What a resume needs besides tensors.
    fn state(&self) -> Option<Finding> {
        let (left, right) =
            (facts(&self.golden.as_ref()?.manifest.state), facts(&self.candidate.manifest.state));
        let (golden, candidate) = left.iter().zip(&right).find(|(left, right)| left.1 != right.1)?;
        Some(self.finding(golden.0, &Value::text(&golden.1), &Value::text(&candidate.1)))
    }

    /// Against what the candidate itself recorded of that step.
    fn own(&mut self, lines: &[DigestLine]) -> Option<Finding> {
        let different = |entry: &&TensorEntry| {
            majority(lines, &entry.name).is_some_and(|line| line.digest != entry.digest)
        };
        let entry = self.candidate.manifest.tensors.iter().find(different)?.clone();
        let count = self.candidate.manifest.tensors.iter().filter(different).count();
        let line = majority(lines, &entry.name)?;
        let mut finding =
            self.finding(&entry.name, &Value::Digest(line.digest), &Value::Digest(entry.digest));
        finding.count = count as u64;
        finding.hints.push("it is not what the candidate itself recorded after that step".into());
        // The golden run's has the values that the candidate should have saved.
        if let Some(Ok(Some(reading))) = self.read(&entry)
            && reading.digests[0] == line.digest
        {
            show(&mut finding, &reading, &entry);
        }
        Some(finding)
    }

    /// Against the golden run's checkpoint, and its own content against its manifest.
    fn tensors(&mut self) -> anyhow::Result<Option<Finding>> {
        let entries = self.candidate.manifest.tensors.clone();
        let names =
            |entries: &[TensorEntry]| entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        if let Some(golden) = &self.golden {
            let (left, right) = (names(&golden.manifest.tensors), names(&entries));
            let missing = left.iter().find(|name| !right.contains(name));
            let added = right.iter().find(|name| !left.contains(name));
            if let Some(name) = missing.or(added) {
                let sides = [Value::text("saved"), Value::Absent];
                let [golden, candidate] =
                    if missing.is_some() { sides } else { [Value::Absent, Value::text("saved")] };
                return Ok(Some(self.finding(name, &golden, &candidate)));
            }
        }
        let mut findings = Vec::new();
        for entry in &entries {
            let reading = match self.read(entry) {
                None => continue,
                Some(Err(error)) => return Ok(Some(unreadable(self.step, &error))),
                Some(Ok(None)) => {
                    findings.push(self.finding(
                        &entry.name,
                        &Value::text("another shape or dtype"),
                        &Value::text(format!("{:?}", entry.shape)),
                    ));
                    continue;
                }
                Some(Ok(Some(reading))) => reading,
            };
            if reading.digests[1] != entry.digest {
                let (listed, found) = (Value::Digest(entry.digest), Value::Digest(reading.digests[1]));
                let mut finding = self.finding(&entry.name, &listed, &found);
                finding.hints.push(CHANGED.into());
                show(&mut finding, &reading, entry);
                findings.push(finding);
            } else if reading.elements.is_some() {
                let mut finding = self.finding(&entry.name, &Value::Absent, &Value::Absent);
                show(&mut finding, &reading, entry);
                findings.push(finding);
            }
        }
        let count = findings.len() as u64;
        Ok(findings.into_iter().next().map(|finding| Finding { count, ..finding }))
    }

    /// Reads a tensor from both checkpoints, or from the candidate's alone (then it is compared with itself). None in the
    /// result if the golden one has another form.
    fn read(&mut self, entry: &TensorEntry) -> Option<Result<Option<Reading>, crate::compare::CompareError>> {
        let golden = match &self.golden {
            Some(golden) => {
                Some(golden.manifest.tensors.iter().find(|other| other.name == entry.name)?.clone())
            }
            None => None,
        };
        if golden
            .as_ref()
            .is_some_and(|golden| (&golden.dtype, &golden.shape) != (&entry.dtype, &entry.shape))
        {
            return Some(Ok(None));
        }
        let both = || {
            let Some((checkpoint, golden)) = self.golden.as_mut().zip(golden) else {
                let mut again = self.candidate.again();
                return compare_streams(&entry.dtype, [again.stream(entry)?, self.candidate.stream(entry)?]);
            };
            compare_streams(&entry.dtype, [checkpoint.stream(&golden)?, self.candidate.stream(entry)?])
        };
        Some(both().map(Some))
    }
}

/// Adds the elements and whose file they are in.
fn show(finding: &mut Finding, reading: &Reading, entry: &TensorEntry) {
    let Some(elements) = &reading.elements else { return };
    finding.elements = Some((elements.first, elements.last));
    finding.differing = Some(elements.differing);
    (finding.golden, finding.candidate) = (Seen::from(&elements.golden), Seen::from(&elements.candidate));
    if let (Value::Scalar(golden), Value::Scalar(candidate)) = (&elements.golden, &elements.candidate) {
        finding.ulps = golden.ulps(*candidate);
    }
    let inside =
        |offset: u64, length: u64| offset <= elements.first && elements.last < offset.saturating_add(length);
    if let Some(piece) = entry.pieces.iter().find(|piece| inside(piece.offset, piece.length))
        && entry.pieces.len() > 1
    {
        finding.hints.push(format!("they are all in {}", piece.file));
        let rank = piece.file.strip_prefix("shard-").and_then(|name| name.get(..5)?.parse().ok());
        finding.rank = rank;
        finding.ranks =
            rank.and_then(|rank| u32::try_from(rank).ok()).map(|rank| (rank, rank)).into_iter().collect();
    }
}

/// What a run recorded of a checkpoint's tensor; of parted replicas, what most ranks had.
fn majority<'a>(lines: &'a [DigestLine], name: &str) -> Option<&'a DigestLine> {
    let (phase, tensor) = match name.split_once('/')? {
        ("model", tensor) => (Recorded::Parameters, tensor),
        ("optimizer", tensor) => (Recorded::Optimizer, tensor),
        _ => return None,
    };
    let wanted = lines.iter().filter(|line| line.phase == phase && line.tensor == tensor);
    wanted.rev().max_by_key(|line| rank_count(&line.ranks))
}

fn facts(state: &TrainingState) -> [(&'static str, String); 9] {
    [
        ("step", state.step.to_string()),
        ("seed", state.seed.to_string()),
        ("samples_seen", state.samples_seen.to_string()),
        ("optimizer", state.optimizer.clone()),
        ("tokenizer_digest", state.tokenizer_digest.clone()),
        ("data_digest", state.data_digest.clone()),
        ("updates_left_out", format!("{:?}", state.updates_left_out)),
        ("skipped_in_a_row", state.skipped_in_a_row.to_string()),
        ("loss_scale", state.loss_scale.map_or("none".into(), scale_text)),
    ]
}
