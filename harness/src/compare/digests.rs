//! Digests of every tensor, phase by phase, and whether the replicas of a run agree among themselves.

use std::collections::HashMap;

use lockstep_record::{Digest, DigestLine, Phase};

use super::CompareError;
use super::bars::{Bars, Subject, Uncovered};
use super::difference::{Check, Difference, Event, Place, Verdict, rank_text};
use super::join::{Group, Join, Pair};
use super::values::{Format, Mode, Value};

/// Why nothing is known about distances.
const NO_SKETCHES: &str = "it needs sketches in the golden run and in the candidate: record.sketches=true";

/// The steps' digests are compared where both runs have them; within a tolerance their norms are, and within an envelope the
/// distances of their tensors.
/// `worlds` tell how many ranks were at work in a step.
pub fn compare_digests<W: Fn(u64) -> Option<u32>>(
    golden: impl Iterator<Item = Result<Group<DigestLine>, CompareError>>,
    candidate: impl Iterator<Item = Result<Group<DigestLine>, CompareError>>,
    bars: Bars,
    worlds: [W; 2],
) -> Result<Vec<Check>, CompareError> {
    let mut checks = Checks::new(bars);
    for pair in Join::new(golden, candidate) {
        let Pair { step, golden, candidate } = pair?;
        let [left, right] = [golden, candidate].map(|group| group.map(|group| Tensors::new(group.lines)));
        for (tensors, (check, world)) in
            [&left, &right].into_iter().zip(checks.replicas.iter_mut().zip(&worlds))
        {
            if let Some(tensors) = tensors {
                compare_replicas(check, step, tensors, world(step));
            }
        }
        if let (Some(golden), Some(candidate)) = (left, right) {
            checks.compare_step(step, &golden, &candidate);
        }
    }
    Ok(checks.into_list())
}

/// What a value was taken of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    phase: Phase,
    micro_batch: Option<u32>,
    tensor: String,
}

impl Key {
    fn place(&self, step: u64) -> Place {
        let place = Place::at(step, self.phase.into(), self.tensor.clone());
        Place { micro_batch: self.micro_batch, ..place }
    }

    fn subject(&self, step: u64) -> Subject<'_> {
        Subject { step, phase: Some(self.phase), micro_batch: self.micro_batch, name: &self.tensor }
    }
}

/// The lines of one step of one run. More than one line for a tensor means that its replicas parted.
struct Tensors {
    /// In the order of events, and within one in the order of the file, which is the model's.
    order: Vec<Key>,
    lines: HashMap<Key, Vec<DigestLine>>,
}

impl Tensors {
    fn new(lines: Vec<DigestLine>) -> Self {
        let mut tensors = Self { order: Vec::new(), lines: HashMap::new() };
        for line in lines {
            let key = Key { phase: line.phase, micro_batch: line.micro_batch, tensor: line.tensor.clone() };
            let held = tensors.lines.entry(key.clone()).or_default();
            if held.is_empty() {
                tensors.order.push(key);
            }
            held.push(line);
        }
        tensors.order.sort_by_key(|key| (key.phase, key.micro_batch));
        tensors
    }

    fn of(&self, key: &Key) -> &[DigestLine] {
        self.lines.get(key).map_or(&[], Vec::as_slice)
    }

    fn has_phase(&self, phase: Phase) -> bool {
        self.order.iter().any(|key| key.phase == phase)
    }
}

/// How many ranks a line speaks for.
fn rank_count(line: &DigestLine) -> u64 {
    line.ranks.iter().map(|&(first, last)| (u64::from(last) + 1).saturating_sub(u64::from(first))).sum()
}

/// The value that most ranks hold; of equals, the first.
fn majority(lines: &[DigestLine]) -> Option<&DigestLine> {
    lines.iter().rev().max_by_key(|line| rank_count(line))
}

/// Within one run, every rank must hold the same value.
fn compare_replicas(check: &mut Check, step: u64, tensors: &Tensors, world: Option<u32>) {
    for key in &tensors.order {
        let lines = tensors.of(key);
        let Some(reference) = majority(lines) else { continue };
        let held: u64 = lines.iter().map(rank_count).sum();
        if key.phase == Phase::Parameters && world.is_some_and(|world| held < u64::from(world)) {
            let ranks: Vec<_> = lines.iter().flat_map(|line| line.ranks.iter().copied()).collect();
            let ranks = rank_text(&ranks);
            check
                .note
                .get_or_insert_with(|| format!("only rank {ranks} recorded its {}, step {step}", key.tensor));
        }
        let parted = lines.iter().filter(|line| line.digest != reference.digest);
        let mut agreed = held > rank_count(reference) || rank_count(reference) > 1;
        for line in parted {
            agreed = false;
            let place = Place { ranks: line.ranks.clone(), ..key.place(step) };
            let difference =
                Difference::new(place, Value::Digest(reference.digest), Value::Digest(line.digest));
            check.differ(difference.with_note(format!(
                "replicas of one run have parted: rank {} holds the first value, rank {} the second",
                rank_text(&reference.ranks),
                rank_text(&line.ranks)
            )));
        }
        if agreed {
            check.agree();
        }
    }
}

struct Checks<'a> {
    bars: Bars<'a>,
    replicas: [Check; 2],
    phases: [(Phase, Check); 7],
    values: Values,
}

/// What can be compared of tensors that have not the same bits.
struct Values {
    norms: Check,
    distances: Check,
    uncovered: Uncovered,
}

impl<'a> Checks<'a> {
    fn new(bars: Bars<'a>) -> Self {
        let phase = |phase, name| (phase, Check::new(name));
        let mut checks = Self {
            bars,
            replicas: [Check::new("replicas of the golden run"), Check::new("replicas of the candidate run")],
            phases: [
                phase(Phase::Data, "inputs and targets"),
                phase(Phase::LocalGradient, "local gradients"),
                phase(Phase::ReducedGradient, "reduced gradients"),
                phase(Phase::Norm, "norm and clipping of each rank"),
                phase(Phase::Schedule, "learning rate of each rank"),
                phase(Phase::Optimizer, "optimizer state"),
                phase(Phase::Parameters, "parameters"),
            ],
            values: Values {
                norms: Check::new("norms of tensors"),
                distances: Check::new("distances of tensors"),
                uncovered: Uncovered::default(),
            },
        };
        for (_, check) in checks.phases.iter_mut().filter(|(phase, _)| !bars.same_bits(*phase)) {
            check.note = Some("digests have no distance: see norms of tensors".into());
        }
        checks
    }

    fn into_list(self) -> Vec<Check> {
        let phases = self.phases.into_iter().map(|(_, check)| check);
        let Values { mut norms, mut distances, uncovered } = self.values;
        norms.note = norms.note.or(uncovered.text());
        let distances = match self.bars {
            Bars::Same(_) => None,
            Bars::Envelope(_) if distances.verdict == Verdict::NotCompared => {
                distances.note = Some(NO_SKETCHES.into());
                Some(distances)
            }
            Bars::Envelope(_) => Some(distances),
        };
        phases.chain([norms]).chain(distances).chain(self.replicas).collect()
    }

    /// A phase that one run did not record in this step is not compared; in one that both recorded, the tensors
    /// must be the same ones.
    fn compare_step(&mut self, step: u64, golden: &Tensors, candidate: &Tensors) {
        for (phase, check) in &mut self.phases {
            if !golden.has_phase(*phase) || !candidate.has_phase(*phase) {
                continue;
            }
            let only_candidate = candidate.order.iter().filter(|key| !golden.lines.contains_key(*key));
            for key in golden.order.iter().chain(only_candidate).filter(|key| key.phase == *phase) {
                match (majority(golden.of(key)), candidate.of(key)) {
                    (Some(golden), lines @ [_, ..]) => {
                        compare_key(self.bars, check, &mut self.values, key, golden, lines);
                    }
                    (golden, lines) => check.differ(Difference::new(
                        key.place(step),
                        digest(golden.map(|line| line.digest)),
                        digest(lines.first().map(|line| line.digest)),
                    )),
                }
            }
        }
    }
}

fn digest(value: Option<Digest>) -> Value {
    value.map_or(Value::Absent, Value::Digest)
}

/// Every rank of the candidate must hold what the golden run has.
fn compare_key(
    bars: Bars,
    check: &mut Check,
    values: &mut Values,
    key: &Key,
    golden: &DigestLine,
    candidate: &[DigestLine],
) {
    for line in candidate {
        let place = || Place { ranks: line.ranks.clone(), ..key.place(golden.step) };
        if !bars.same_bits(key.phase) {
            values.compare(bars, key.subject(golden.step), (golden, line), place);
            continue;
        }
        if golden.digest == line.digest {
            check.agree();
            // Equal tensors with unequal norms: the norm is at fault, and clipping hangs on it.
            values.norms.reals(Mode::Exact, (golden.norm, line.norm), Format::F64, || Place {
                event: Some(Event::Norm.max(key.phase.into())),
                what: format!("norm of {}", key.tensor),
                ..place()
            });
        } else {
            let difference =
                Difference::new(place(), Value::Digest(golden.digest), Value::Digest(line.digest));
            check.differ(difference.with_note(format!("norms {} and {}", golden.norm, line.norm)));
        }
    }
}

impl Values {
    /// Norms see what all elements have in common, such as a wrong scale; distances see the rest.
    fn compare(
        &mut self,
        bars: Bars,
        subject: Subject,
        (golden, candidate): (&DigestLine, &DigestLine),
        place: impl Fn() -> Place,
    ) {
        let norms = (golden.norm, candidate.norm);
        match bars.value(subject, norms) {
            Some(mode) => self.norms.reals(mode, norms, Format::F64, &place),
            None => self.uncovered.note(subject),
        }
        if let (Some(one), Some(other), Some(allowed)) =
            (&golden.sketch, &candidate.sketch, bars.distance(subject))
        {
            self.distances.within(allowed, one.distance(other), place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::join::{by_step, in_order};
    use lockstep_record::Real;

    fn line(step: u64, tensor: &str, value: u128, ranks: (u32, u32)) -> DigestLine {
        DigestLine {
            step,
            phase: Phase::Parameters,
            tensor: tensor.into(),
            micro_batch: None,
            digest: Digest(value),
            norm: Real(value as f64),
            sketch: None,
            ranks: vec![ranks],
            sharded: false,
        }
    }

    fn run(golden: Vec<DigestLine>, candidate: Vec<DigestLine>, mode: Mode, world: u32) -> Vec<Check> {
        let stream = |lines: Vec<DigestLine>| {
            by_step("digests.jsonl".into(), in_order("digests.jsonl".into(), lines.into_iter().map(Ok)))
        };
        let worlds = [1, world].map(|world| move |_| Some(world));
        compare_digests(stream(golden), stream(candidate), Bars::Same(mode), worlds).unwrap()
    }

    fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_parted_replica_is_named_by_its_rank() {
        let parted = vec![line(1, "w", 7, (0, 2)), line(1, "w", 8, (3, 3))];
        let checks = run(vec![line(1, "w", 7, (0, 0))], parted, Mode::Exact, 4);
        let check = named(&checks, "replicas of the candidate run");
        assert_eq!(check.differences, 1);
        assert_eq!(check.first.as_ref().unwrap().place.ranks, [(3, 3)]);
        assert_eq!(named(&checks, "parameters").first.as_ref().unwrap().place.ranks, [(3, 3)]);
        assert_eq!(named(&checks, "replicas of the golden run").verdict, Verdict::NotCompared);
    }

    #[test]
    fn a_missing_tensor_is_a_difference_but_a_missing_phase_is_not() {
        let two = vec![line(1, "w", 7, (0, 0)), line(1, "b", 7, (0, 0))];
        let checks = run(two.clone(), vec![line(1, "w", 7, (0, 0))], Mode::Exact, 1);
        assert_eq!(named(&checks, "parameters").first.as_ref().unwrap().place.what, "b");
        let mut other = line(1, "w", 7, (0, 0));
        other.phase = Phase::Optimizer;
        let checks = run(two, vec![other], Mode::Exact, 1);
        assert!(checks.iter().all(|check| check.verdict == Verdict::NotCompared), "{checks:?}");
    }

    #[test]
    fn equal_tensors_with_other_norms_are_caught() {
        let mut other = line(2, "w", 7, (0, 0));
        other.norm = Real(7.0f64.next_up());
        let checks = run(vec![line(2, "w", 7, (0, 0))], vec![other], Mode::Exact, 1);
        let first = named(&checks, "norms of tensors").first.clone().unwrap();
        assert_eq!(first.ulps, Some(1));
    }

    #[test]
    fn ranks_that_said_nothing_are_noted() {
        let checks = run(vec![line(1, "w", 7, (0, 0))], vec![line(1, "w", 7, (0, 1))], Mode::Exact, 4);
        let note = named(&checks, "replicas of the candidate run").note.clone().unwrap();
        assert_eq!(note, "only rank 0-1 recorded its w, step 1");
    }

    #[test]
    fn absurd_rank_ranges_do_not_count_for_ever() {
        let checks = run(vec![line(1, "w", 7, (5, 0))], vec![line(1, "w", 7, (0, u32::MAX))], Mode::Exact, 1);
        assert_eq!(named(&checks, "parameters").verdict, Verdict::Equal);
    }
}
