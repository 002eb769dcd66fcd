//! Whether two records of one step part, and in which phase first. Pure.

use std::collections::{BTreeMap, HashMap};

use lockstep_record::{DigestLine, LossScale, LossTerm, Phase as Recorded, RankRange, Real, StepLine};

use super::finding::Phase;
use super::steps::StepRecord;
use crate::compare::{Format, Scalar, Value, scale_text};

/// The first phase in which two records of a step part.
#[derive(Clone, Debug, PartialEq)]
pub struct Parted {
    pub phase: Phase,
    /// All that differs in that phase; the likeliest cause first.
    pub items: Vec<Item>,
    /// Earlier phases that were compared.
    pub agree: Vec<Phase>,
    /// Earlier phases that one of the runs did not record.
    pub unknown: Vec<Phase>,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// A tensor, or a column of the metrics.
    pub what: String,
    pub micro_batch: Option<u32>,
    /// Ranks of the candidate that hold the differing value; empty if all do.
    pub ranks: Vec<RankRange>,
    pub golden: Value,
    pub candidate: Value,
    /// Of a tensor, where only digests are known.
    pub norms: Option<(f64, f64)>,
}

impl Item {
    fn new(what: impl Into<String>, golden: Value, candidate: Value) -> Self {
        Self { what: what.into(), micro_batch: None, ranks: Vec::new(), golden, candidate, norms: None }
    }

    fn of_micro_batch(self, index: usize, owner: Option<u32>) -> Self {
        let ranks = owner.map(|rank| (rank, rank)).into_iter().collect();
        Self { micro_batch: u32::try_from(index).ok(), ranks, ..self }
    }
}

/// What one comparison found; None if there was nothing to compare.
type Compared = Option<Vec<Item>>;

/// Two records of one step, and how many ranks the candidate had.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    pub golden: &'a StepRecord,
    pub candidate: &'a StepRecord,
    pub world: Option<u32>,
}

/// The first phase, in the order of events, in which the records differ.
pub fn part(pair: Pair) -> Option<Parted> {
    type Compare = fn(Pair) -> Compared;
    let order: [(Phase, Compare); 9] = [
        (Phase::Data, data),
        (Phase::Forward, losses),
        (Phase::LocalGradient, |pair| digests(pair, Recorded::LocalGradient)),
        (Phase::ReducedGradient, |pair| digests(pair, Recorded::ReducedGradient)),
        (Phase::Norm, norm),
        (Phase::Schedule, rate),
        (Phase::Optimizer, |pair| digests(pair, Recorded::Optimizer)),
        (Phase::Parameters, parameters),
        (Phase::Forward, validation),
    ];
    let (mut agree, mut unknown) = (Vec::new(), Vec::new());
    for (phase, compare) in order {
        match compare(pair) {
            Some(items) if !items.is_empty() => return Some(Parted { phase, items, agree, unknown }),
            Some(_) if !agree.contains(&phase) => agree.push(phase),
            None if pair.golden.step > 0 && !agree.contains(&phase) => unknown.push(phase),
            _ => {}
        }
    }
    None
}

/// The rank that computes a micro-batch: shares are contiguous, and the first ranks have the larger ones.
pub fn owner(micro_batch: usize, micro_batches: usize, world: Option<u32>) -> Option<u32> {
    let ranks = world.filter(|&world| world > 1)? as usize;
    let (size, larger) = (micro_batches / ranks, micro_batches % ranks);
    let of_larger = larger * (size + 1);
    let rank = match micro_batch < of_larger {
        true => micro_batch / (size + 1),
        false => larger + (micro_batch - of_larger).checked_div(size)?,
    };
    u32::try_from(rank).ok().filter(|&rank| (rank as usize) < ranks)
}

fn data(pair: Pair) -> Compared {
    let mut compared = None;
    if let (Some(golden), Some(candidate)) = (&pair.golden.samples, &pair.candidate.samples) {
        let items: &mut Vec<Item> = compared.get_or_insert_default();
        let count = golden.micro_batches.len().max(candidate.micro_batches.len());
        for index in 0..count {
            let (left, right) = (golden.micro_batches.get(index), candidate.micro_batches.get(index));
            if left != right {
                let ids = |side: Option<&Vec<u64>>| Value::optional(side.map(|ids| format!("{ids:?}")));
                let item = Item::new("sample ids", ids(left), ids(right));
                items.push(item.of_micro_batch(index, owner(index, count, pair.world)));
            }
        }
    }
    if let Some((golden, candidate)) = metrics(pair) {
        let items = compared.get_or_insert_default();
        let columns = [("epoch", golden.epoch, candidate.epoch), ("tokens", golden.tokens, candidate.tokens)];
        let different = columns.iter().filter(|(_, left, right)| left != right);
        items.extend(
            different.map(|&(name, left, right)| Item::new(name, Value::text(left), Value::text(right))),
        );
        for (name, left, right) in terms(&golden.loss_terms, &candidate.loss_terms) {
            if left.targets != right.targets {
                let (left, right) = (Value::text(left.targets), Value::text(right.targets));
                items.push(Item::new(format!("targets of loss_terms.{name}"), left, right));
            }
        }
    }
    if let Some(contents) = digests(pair, Recorded::Data) {
        compared.get_or_insert_default().extend(contents);
    }
    compared
}

fn metrics(pair: Pair<'_>) -> Option<(&StepLine, &StepLine)> {
    Some((pair.golden.metrics.as_ref()?, pair.candidate.metrics.as_ref()?))
}

fn losses(pair: Pair) -> Compared {
    let (golden, candidate) = metrics(pair)?;
    let (left, right) = (&golden.micro_batch_losses, &candidate.micro_batch_losses);
    let mut items = Vec::new();
    if left.len() != right.len() {
        let count = |losses: &[Real]| Value::text(format!("{} micro-batches", losses.len()));
        items.push(Item::new("the loss", count(left), count(right)));
    } else {
        for (index, (&left, &right)) in left.iter().zip(right).enumerate() {
            let rank = owner(index, golden.micro_batch_losses.len(), pair.world);
            items.extend(
                number("the loss", left, right, Format::F32).map(|item| item.of_micro_batch(index, rank)),
            );
        }
    }
    items.extend(numbers_of_terms("loss_terms", &golden.loss_terms, &candidate.loss_terms));
    items.extend(number("loss", golden.loss, candidate.loss, Format::F64));
    // It multiplies the loss before backward, and no loss depends on it.
    if golden.loss_scale != candidate.loss_scale {
        let text = |scale: Option<LossScale>| Value::optional(scale.map(scale_text));
        items.push(Item::new("loss_scale", text(golden.loss_scale), text(candidate.loss_scale)));
    }
    Some(items)
}

/// Losses that both runs recorded apart.
fn terms<'a>(
    golden: &'a BTreeMap<String, LossTerm>,
    candidate: &'a BTreeMap<String, LossTerm>,
) -> impl Iterator<Item = (&'a str, &'a LossTerm, &'a LossTerm)> {
    golden.iter().filter_map(|(name, left)| Some((name.as_str(), left, candidate.get(name)?)))
}

fn numbers_of_terms(
    column: &str,
    golden: &BTreeMap<String, LossTerm>,
    candidate: &BTreeMap<String, LossTerm>,
) -> Vec<Item> {
    let item = |(name, left, right): (&str, &LossTerm, &LossTerm)| {
        number(&format!("{column}.{name}"), left.loss, right.loss, Format::F64)
    };
    terms(golden, candidate).filter_map(item).collect()
}

fn norm(pair: Pair) -> Compared {
    let (golden, candidate) = metrics(pair)?;
    let mut items = Vec::new();
    items.extend(number("gradient_norm", golden.gradient_norm, candidate.gradient_norm, Format::F64));
    items.extend(number(
        "clip_coefficient",
        golden.clip_coefficient,
        candidate.clip_coefficient,
        Format::F32,
    ));
    if golden.skipped_for != candidate.skipped_for {
        let text = |skipped: &Option<String>| Value::text(skipped.as_deref().unwrap_or("updated"));
        items.push(Item::new("skipped_for", text(&golden.skipped_for), text(&candidate.skipped_for)));
    }
    let (left, right) = (golden.unused_parameters, candidate.unused_parameters);
    if left != right {
        items.push(Item::new("unused_parameters", Value::text(left), Value::text(right)));
    }
    if items.is_empty() {
        items.extend(numbers_of_ranks(pair, Recorded::Norm));
    }
    Some(items)
}

fn rate(pair: Pair) -> Compared {
    let (golden, candidate) = metrics(pair)?;
    let rate = number("learning_rate", golden.learning_rate, candidate.learning_rate, Format::F64);
    Some(rate.map_or_else(|| numbers_of_ranks(pair, Recorded::Schedule), |rate| vec![rate]))
}

/// Numbers that each rank has for itself, where metrics have rank 0's: their digests tell who has another one, and their
/// norm is their size.
fn numbers_of_ranks(pair: Pair, phase: Recorded) -> Vec<Item> {
    let size = |size: f64| Value::Scalar(Scalar::of_real(Real(size), Format::F64));
    let shown = |item: Item| match item.norms {
        Some((left, right)) => Item { golden: size(left), candidate: size(right), norms: None, ..item },
        None => item,
    };
    digests(pair, phase).into_iter().flatten().map(shown).collect()
}

fn parameters(pair: Pair) -> Compared {
    let digests = digests(pair, Recorded::Parameters);
    if digests.as_ref().is_some_and(|items| !items.is_empty()) {
        return digests;
    }
    let Some((golden, candidate)) = metrics(pair) else { return digests };
    let norm = number("parameter_norm", golden.parameter_norm, candidate.parameter_norm, Format::F64);
    match norm {
        Some(item) => Some(vec![item]),
        None => digests,
    }
}

/// Runs may evaluate at different steps: only what both measured can differ.
fn validation(pair: Pair) -> Compared {
    let (golden, candidate) = metrics(pair)?;
    let (left, right) = (golden.validation_loss?, candidate.validation_loss?);
    let (terms, others) = (&golden.validation_loss_terms, &candidate.validation_loss_terms);
    let mut items = numbers_of_terms("validation_loss_terms", terms, others);
    items.extend(number("validation_loss", left, right, Format::F64));
    Some(items)
}

/// Two recorded numbers, if their bits differ.
fn number(what: &str, golden: Real, candidate: Real, format: Format) -> Option<Item> {
    if golden == candidate {
        return None;
    }
    let both = |format| (Scalar::of_real(golden, format), Scalar::of_real(candidate, format));
    let (left, right) = match both(format) {
        (left, right) if left.format == right.format => (left, right),
        _ => both(Format::F64),
    };
    Some(Item::new(what, Value::Scalar(left), Value::Scalar(right)))
}

type Key<'a> = (Option<u32>, &'a str);

/// Lines of one phase by tensor, in the order of the file.
struct Lines<'a> {
    order: Vec<Key<'a>>,
    lines: HashMap<Key<'a>, Vec<&'a DigestLine>>,
}

impl<'a> Lines<'a> {
    fn of(record: &'a StepRecord, phase: Recorded) -> Self {
        let mut all = Self { order: Vec::new(), lines: HashMap::new() };
        for line in record.digests.iter().filter(|line| line.phase == phase) {
            let key = (line.micro_batch, line.tensor.as_str());
            let lines = all.lines.entry(key).or_default();
            if lines.is_empty() {
                all.order.push(key);
            }
            lines.push(line);
        }
        all
    }

    fn get(&self, key: &Key<'a>) -> &[&'a DigestLine] {
        self.lines.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value that most ranks hold; of equals, the first.
    fn majority(&self, key: &Key<'a>) -> Option<&'a DigestLine> {
        self.get(key).iter().copied().rev().max_by_key(|line| rank_count(&line.ranks))
    }
}

pub fn rank_count(ranks: &[RankRange]) -> u64 {
    ranks.iter().map(|&(first, last)| (u64::from(last) + 1).saturating_sub(u64::from(first))).sum()
}

/// Digests of one phase. Where the golden run has none, the candidate's replicas are still compared with one another.
fn digests(pair: Pair, phase: Recorded) -> Compared {
    let [golden, candidate] = [pair.golden, pair.candidate].map(|record| Lines::of(record, phase));
    if candidate.order.is_empty() {
        return None;
    }
    let alone = golden.order.is_empty();
    let missing = golden.order.iter().filter(|key| !candidate.lines.contains_key(*key));
    let mut items = Vec::new();
    for key in candidate.order.iter().chain(missing) {
        let reference = if alone { candidate.majority(key) } else { golden.majority(key) };
        items.extend(tensor(key, reference, candidate.get(key), pair.world));
    }
    // Backward runs from the last layer to the first: a fault there moves the gradients of all layers before it.
    if matches!(phase, Recorded::LocalGradient | Recorded::ReducedGradient) {
        items.reverse();
        items.sort_by_key(|item| item.micro_batch);
    }
    match alone && items.is_empty() {
        true => None,
        false => Some(items),
    }
}

/// One tensor, if any rank of the candidate holds another value than the reference.
fn tensor(
    key: &Key,
    reference: Option<&DigestLine>,
    lines: &[&DigestLine],
    world: Option<u32>,
) -> Option<Item> {
    let item = |golden, candidate| Item { micro_batch: key.0, ..Item::new(key.1, golden, candidate) };
    let digest = |line: Option<&DigestLine>| line.map_or(Value::Absent, |line| Value::Digest(line.digest));
    let Some(reference) = reference else { return Some(item(Value::Absent, digest(lines.first().copied()))) };
    let different: Vec<_> = lines.iter().copied().filter(|line| line.digest != reference.digest).collect();
    let Some(first) = different.first() else {
        if lines.is_empty() {
            return Some(item(digest(Some(reference)), Value::Absent));
        }
        let other = lines.iter().find(|line| line.norm != reference.norm)?;
        let norm = number(&format!("norm of {}", key.1), reference.norm, other.norm, Format::F64)?;
        return Some(Item { micro_batch: key.0, ..norm });
    };
    let ranks = joined(different.iter().flat_map(|line| line.ranks.iter().copied()));
    let all = world.is_none_or(|world| rank_count(&ranks) >= u64::from(world)) || first.sharded;
    let ranks = if all && key.0.is_none() { Vec::new() } else { ranks };
    let norms = Some((reference.norm.0, first.norm.0));
    Some(Item { ranks, norms, ..item(digest(Some(reference)), digest(Some(*first))) })
}

/// Neighbouring ranges as one.
pub fn joined(ranges: impl IntoIterator<Item = RankRange>) -> Vec<RankRange> {
    let mut ranges: Vec<RankRange> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let mut all: Vec<RankRange> = Vec::new();
    for (first, last) in ranges {
        match all.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => all.push((first, last)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_record::{Digest, SampleLine};
    use proptest::prelude::*;

    const TENSORS: [&str; 3] = ["a", "b", "c"];
    const WORLD: u32 = 3;
    const MICRO_BATCHES: usize = 4;

    fn line(phase: Recorded, tensor: &str, micro_batch: Option<u32>) -> DigestLine {
        let owner = micro_batch.and_then(|index| owner(index as usize, MICRO_BATCHES, Some(WORLD)));
        DigestLine {
            step: 7,
            phase,
            tensor: tensor.into(),
            micro_batch,
            digest: Digest(u128::from(micro_batch.unwrap_or(9)) + tensor.len() as u128),
            norm: Real(1.5),
            sketch: None,
            ranks: vec![owner.map_or((0, WORLD - 1), |rank| (rank, rank))],
            sharded: false,
        }
    }

    fn record() -> StepRecord {
        let mut digests = Vec::new();
        for index in 0..MICRO_BATCHES as u32 {
            digests.extend(TENSORS.map(|tensor| line(Recorded::LocalGradient, tensor, Some(index))));
        }
        for phase in [Recorded::ReducedGradient, Recorded::Optimizer, Recorded::Parameters] {
            digests.extend(TENSORS.map(|tensor| line(phase, tensor, None)));
        }
        let metrics = serde_json::json!({
            "step": 7, "epoch": 0, "loss": 5.0, "micro_batch_losses": [1.0, 1.25, 1.5, 1.25], "gradient_norm": 2.0,
            "parameter_norm": 9.0, "clip_coefficient": 0.5, "learning_rate": 0.001, "validation_loss": 4.0, "tokens": 64,
            "tokens_per_second": 1.0, "seconds": {"data": 0, "forward": 0, "backward": 0, "communication": 0, "optimizer": 0,
            "record": 0, "total": 0}, "resident_bytes_max": 1,
        });
        StepRecord {
            step: 7,
            samples: Some(SampleLine {
                step: 7,
                micro_batches: vec![vec![1, 2], vec![3, 4], vec![5, 6], vec![7, 8]],
                masks: Vec::new(),
            }),
            metrics: serde_json::from_value(metrics).ok(),
            digests,
        }
    }

    fn parted(candidate: &StepRecord) -> Option<Parted> {
        part(Pair { golden: &record(), candidate, world: Some(WORLD) })
    }

    fn with_losses(ar: (f64, u64), fm: (f64, u64)) -> StepRecord {
        let mut record = record();
        let terms = [("ar", ar), ("fm", fm)]
            .map(|(name, (loss, targets))| (name.to_owned(), LossTerm { loss: Real(loss), targets }));
        record.metrics.as_mut().unwrap().loss_terms = terms.into();
        record
    }

    #[test]
    fn losses_and_their_targets_are_told_apart() {
        let golden = with_losses((1.0, 40), (2.0, 96));
        let part = |candidate: &StepRecord| {
            let parted = part(Pair { golden: &golden, candidate, world: Some(WORLD) })?;
            Some((parted.phase, parted.items[0].what.clone()))
        };
        assert_eq!(part(&golden), None);
        assert_eq!(part(&record()), None, "another trainer does not record them");
        let other = with_losses((1.0, 40), (2.5, 96));
        assert_eq!(part(&other), Some((Phase::Forward, "loss_terms.fm".into())));
        let other = with_losses((1.5, 41), (2.0, 96));
        assert_eq!(part(&other), Some((Phase::Data, "targets of loss_terms.ar".into())));
    }

    /// In the order of events: what spoils one thing, and what must be said then.
    type Spoil = fn(&mut StepRecord);
    const SPOILS: [(Phase, &str, Spoil); 12] = [
        (Phase::Data, "sample ids", |record| record.samples.as_mut().unwrap().micro_batches[3][0] = 99),
        (Phase::Data, "epoch", |record| record.metrics.as_mut().unwrap().epoch = 1),
        (Phase::Forward, "the loss", |record| {
            record.metrics.as_mut().unwrap().micro_batch_losses[2] = Real(1.0)
        }),
        (Phase::Forward, "loss_scale", |record| {
            record.metrics.as_mut().unwrap().loss_scale =
                Some(LossScale { scale: Real(1024.0), finite_steps: 0 });
        }),
        (Phase::LocalGradient, "b", |record| digest(record, Recorded::LocalGradient, "b")),
        (Phase::ReducedGradient, "b", |record| digest(record, Recorded::ReducedGradient, "b")),
        (Phase::Norm, "gradient_norm", |record| record.metrics.as_mut().unwrap().gradient_norm = Real(2.5)),
        (Phase::Norm, "clip_coefficient", |record| {
            record.metrics.as_mut().unwrap().clip_coefficient = Real(1.0)
        }),
        (Phase::Schedule, "learning_rate", |record| {
            record.metrics.as_mut().unwrap().learning_rate = Real(0.1)
        }),
        (Phase::Optimizer, "c", |record| digest(record, Recorded::Optimizer, "c")),
        (Phase::Parameters, "a", |record| digest(record, Recorded::Parameters, "a")),
        (Phase::Forward, "validation_loss", |record| {
            record.metrics.as_mut().unwrap().validation_loss = Some(Real(3.0));
        }),
    ];

    fn digest(record: &mut StepRecord, phase: Recorded, tensor: &str) {
        let wanted = |line: &&mut DigestLine| line.phase == phase && line.tensor == tensor;
        record.digests.iter_mut().find(wanted).unwrap().digest.0 ^= 1;
    }

    proptest! {
        /// Whatever else is spoiled, the first event is the one that is named.
        #[test]
        fn the_cause_is_named_before_its_consequences(spoiled in prop::collection::btree_set(0..SPOILS.len(), 1..6)) {
            let mut candidate = record();
            spoiled.iter().for_each(|&index| SPOILS[index].2(&mut candidate));
            let (phase, what, _) = SPOILS[*spoiled.first().unwrap()];
            let parted = parted(&candidate).unwrap();
            prop_assert_eq!((parted.phase, parted.items[0].what.as_str()), (phase, what));
            prop_assert!(!parted.agree.contains(&phase) || what == "validation_loss");
        }

        /// What one run did not record is unknown, never a difference.
        #[test]
        fn a_phase_that_is_not_recorded_is_no_difference(dropped in prop::collection::vec(0usize..4, 1..4)) {
            let phases = [Recorded::LocalGradient, Recorded::ReducedGradient, Recorded::Optimizer, Recorded::Parameters];
            let mut candidate = record();
            candidate.digests.retain(|line| !dropped.iter().any(|&index| phases[index] == line.phase));
            prop_assert_eq!(parted(&candidate), None);
        }

        #[test]
        fn every_micro_batch_has_one_owner(micro_batches in 1usize..70, world in 2u32..20) {
            let owners: Vec<_> = (0..micro_batches).map(|index| owner(index, micro_batches, Some(world)).unwrap()).collect();
            prop_assert!(owners.windows(2).all(|two| two[0] <= two[1] && two[1] - two[0] <= 1));
            let most = owners.iter().filter(|&&rank| rank == 0).count();
            prop_assert_eq!(most, micro_batches.div_ceil(world as usize));
        }
    }

    #[test]
    fn the_same_record_does_not_part() {
        assert_eq!(parted(&record()), None);
    }

    #[test]
    fn a_replica_that_parted_is_named_by_rank() {
        let mut candidate = record();
        let at = candidate.digests.iter().position(|line| line.phase == Recorded::Parameters).unwrap();
        candidate.digests[at].ranks = vec![(0, 0), (2, 2)];
        let mut other = candidate.digests[at].clone();
        (other.ranks, other.digest) = (vec![(1, 1)], Digest(77));
        candidate.digests.insert(at + 1, other);
        let parted = parted(&candidate).unwrap();
        assert_eq!((parted.phase, &parted.items[0].ranks), (Phase::Parameters, &vec![(1, 1)]));
        // Without any golden digest the replicas still disagree.
        let mut golden = record();
        golden.digests.clear();
        let alone = part(Pair { golden: &golden, candidate: &candidate, world: Some(WORLD) }).unwrap();
        assert_eq!((alone.phase, &alone.items[0].ranks), (Phase::Parameters, &vec![(1, 1)]));
    }

    #[test]
    fn backward_comes_to_the_last_tensor_first() {
        let mut candidate = record();
        for line in
            candidate.digests.iter_mut().filter(|line| line.micro_batch == Some(2) && line.tensor != "c")
        {
            line.digest.0 ^= 1;
        }
        let parted = parted(&candidate).unwrap();
        let item = &parted.items[0];
        assert_eq!((item.what.as_str(), item.micro_batch, &item.ranks), ("b", Some(2), &vec![(1, 1)]));
        assert_eq!(parted.items.len(), 2);
    }

    fn with(lines: impl IntoIterator<Item = DigestLine>) -> StepRecord {
        let mut record = record();
        record.digests.extend(lines);
        record
    }

    /// Metrics have rank 0's number only.
    #[test]
    fn a_rank_that_clips_by_another_number_is_named_with_the_number() {
        let clip = |ranks, size: f64| DigestLine {
            digest: Digest(size.to_bits().into()),
            norm: Real(size),
            ranks: vec![ranks],
            ..line(Recorded::Norm, "clip_coefficient", None)
        };
        let (golden, candidate) = (with([clip((0, 0), 0.5)]), with([clip((0, 1), 0.5), clip((2, 2), 1.0)]));
        let parted = part(Pair { golden: &golden, candidate: &candidate, world: Some(WORLD) }).unwrap();
        let item = &parted.items[0];
        assert_eq!((parted.phase, item.what.as_str()), (Phase::Norm, "clip_coefficient"));
        assert_eq!(item.ranks, [(2, 2)]);
        assert_eq!(item.candidate, Value::Scalar(Scalar::of_real(Real(1.0), Format::F64)));
    }

    #[test]
    fn samples_with_the_right_ids_and_another_content_are_data() {
        let inputs =
            |digest| DigestLine { digest: Digest(digest), ..line(Recorded::Data, "inputs", Some(3)) };
        let (golden, candidate) = (with([inputs(1)]), with([inputs(2)]));
        let pair = Pair { golden: &golden, candidate: &candidate, world: Some(WORLD) };
        let parted = part(pair).unwrap();
        let item = &parted.items[0];
        assert_eq!((parted.phase, item.what.as_str(), item.micro_batch), (Phase::Data, "inputs", Some(3)));
        // A golden run that did not record it says nothing about it.
        assert_eq!(part(Pair { golden: &record(), ..pair }), None);
    }
}
