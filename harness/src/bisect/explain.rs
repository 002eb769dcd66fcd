//! What wrong values look like: multiples, copies of the old value, a sum that lacks a micro-batch. Hints, not verdicts.

use std::collections::BTreeSet;

use lockstep_record::{BLOCK_ELEMENTS, CaptureGroup, CapturedTensor, TensorEntry};

use super::capture::Capture;
use crate::compare::{Checkpoint, CompareError};

/// Elements of a tensor that are looked at, from the first that differs.
const WINDOW: u64 = 4096;
/// How near two sums are that differ by their rounding only, relative to the largest element.
const ROUNDING: f32 = 1e-4;
/// Lanes of a block's sum of squares: see docs/run-record.md.
const LANES: usize = 8;

/// The two captures that part.
pub struct Sides<'a> {
    pub golden: &'a mut Capture,
    pub candidate: &'a mut Capture,
}

/// Looks at the differing elements `first..=last` of a tensor.
pub fn tensor(
    sides: Sides,
    golden: &CapturedTensor,
    candidate: &CapturedTensor,
    (first, last): (u64, u64),
) -> Result<Vec<String>, CompareError> {
    let length = (last - first + 1).min(WINDOW);
    let left = window(&mut sides.golden.archive, &golden.tensor, first, length)?;
    let right = window(&mut sides.candidate.archive, &candidate.tensor, first, length)?;
    let mut hints: Vec<String> = simple(&left, &right).into_iter().collect();
    let name = &candidate.tensor.name;
    match candidate.group {
        CaptureGroup::ReducedGradient => {
            let locals = locals(sides.candidate, name, first, length)?;
            let ranks: Vec<u32> =
                sides.candidate.manifest.micro_batches.iter().map(|batch| batch.rank).collect();
            hints.extend(order(&left, &right, &locals, &ranks));
            if hints.is_empty() {
                hints.extend(sum(&left, &right, &locals, &ranks));
            }
        }
        CaptureGroup::Optimizer | CaptureGroup::Parameters => {
            let before = match candidate.group {
                CaptureGroup::Optimizer => CaptureGroup::OptimizerBefore,
                _ => CaptureGroup::ParametersBefore,
            };
            if let Some(before) =
                sides.candidate.majority(before, None, name).map(|value| value.tensor.clone())
                && window(&mut sides.candidate.archive, &before, first, length)? == right
            {
                hints.push("it is what it was before the step: it was not updated".into());
            }
        }
        _ => {}
    }
    Ok(hints)
}

/// Elements `first..first + length` of a tensor of fp32.
fn window(
    archive: &mut Checkpoint,
    tensor: &TensorEntry,
    first: u64,
    length: u64,
) -> Result<Vec<f32>, CompareError> {
    let mut stream = archive.stream(tensor)?;
    let (mut skip, mut buffer) = (first * 4, vec![0u8; 1 << 20]);
    while skip > 0 {
        let now = skip.min(buffer.len() as u64);
        stream.fill(&mut buffer[..now as usize])?;
        skip -= now;
    }
    let mut bytes = vec![0u8; (length * 4).min(stream.remaining()) as usize];
    stream.fill(&mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// Each micro-batch's own gradient, as the run captured it.
fn locals(capture: &mut Capture, name: &str, first: u64, length: u64) -> Result<Vec<Vec<f32>>, CompareError> {
    let mut all = Vec::new();
    for index in 0..capture.manifest.micro_batches.len() as u32 {
        let found = capture
            .majority(CaptureGroup::LocalGradient, Some(index), name)
            .map(|value| value.tensor.clone());
        let Some(tensor) = found else { return Ok(Vec::new()) };
        all.push(window(&mut capture.archive, &tensor, first, length)?);
    }
    Ok(all)
}

/// What can be said of any tensor.
pub fn simple(golden: &[f32], candidate: &[f32]) -> Option<String> {
    if candidate.iter().any(|value| !value.is_finite()) && golden.iter().all(|value| value.is_finite()) {
        return Some("the candidate has values that are not finite".into());
    }
    if candidate.iter().all(|value| *value == 0.0) {
        return Some("the candidate's are all zero".into());
    }
    if is_bf16(golden, candidate) {
        return Some("they differ by the rounding to bf16".into());
    }
    if near(golden, candidate) {
        return Some("they differ by rounding only: another order of additions, or another precision".into());
    }
    factor(golden, candidate).map(|factor| format!("each is {factor} the golden one"))
}

/// Whether all values fit into 16 bits, which the golden ones do not, and are near them.
fn is_bf16(golden: &[f32], candidate: &[f32]) -> bool {
    let short = |values: &[f32]| values.iter().all(|value| value.to_bits() & 0xffff == 0);
    let rounded = |(left, right): (&f32, &f32)| (left - right).abs() <= left.abs() / 128.0;
    candidate.len() > 3 && short(candidate) && !short(golden) && golden.iter().zip(candidate).all(rounded)
}

/// A factor between all elements that is a whole number, or one over one.
fn factor(golden: &[f32], candidate: &[f32]) -> Option<String> {
    let scaled = |factor: f32| -> Vec<f32> { golden.iter().map(|value| value * factor).collect() };
    let largest = |values: &[f32]| values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let ratio = largest(candidate) / largest(golden);
    if near(&scaled(-1.0), candidate) {
        return Some("the negative of".into());
    }
    let whole = super::records::whole_ratio(1.0, f64::from(ratio))?;
    near(&scaled(ratio), candidate).then_some(whole)
}

/// Whether two lists agree but for rounding.
fn near(left: &[f32], right: &[f32]) -> bool {
    let largest = left.iter().chain(right).fold(0f32, |most, value| most.max(value.abs()));
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| (left - right).abs() <= ROUNDING * largest)
}

/// In which order the micro-batches were added, if it is one that can be told. `ranks[i]` computed micro-batch i.
pub fn order(golden: &[f32], candidate: &[f32], locals: &[Vec<f32>], ranks: &[u32]) -> Option<String> {
    if locals.len() < 2
        || locals.len() != ranks.len()
        || locals.iter().any(|local| local.len() != candidate.len())
    {
        return None;
    }
    let same = |sum: &[f32], other: &[f32]| {
        sum.len() == other.len()
            && sum.iter().zip(other).all(|(left, right)| left.to_bits() == right.to_bits())
    };
    let along_tree = tree(locals);
    if same(&along_tree, candidate) {
        return Some(
            "it is the sum of its own micro-batches along the tree, and the golden one is not".into(),
        );
    }
    let all: BTreeSet<u32> = ranks.iter().copied().collect();
    let of_rank = |rank: u32| -> Vec<Vec<f32>> {
        locals
            .iter()
            .zip(ranks)
            .filter(|(_, owner)| **owner == rank)
            .map(|(local, _)| local.clone())
            .collect()
    };
    let by_rank: Vec<Vec<f32>> = all.iter().map(|&rank| one_after_another(&of_rank(rank))).collect();
    let partials: Vec<Vec<f32>> = all.iter().flat_map(|&rank| partial_sums(locals, ranks, rank)).collect();
    let orders = [
        (one_after_another(&partials), "it is the ranks' partial sums added in the order of the ranks"),
        (
            one_after_another(&by_rank),
            "it is the ranks' own sums, each added one after another, in the order of the ranks",
        ),
        (one_after_another(locals), "it is the sum of the micro-batches one after another"),
    ];
    let known = orders.iter().find(|(sum, _)| same(sum, candidate)).map(|(_, text)| (*text).to_owned());
    known.map(|text| match same(&along_tree, golden) {
        true => format!("{text} instead of along the tree"),
        false => text,
    })
}

/// The sum along the tree of docs/why-the-bits-agree.md: the left child covers the largest power of two of leaves.
fn tree(leaves: &[Vec<f32>]) -> Vec<f32> {
    match leaves {
        [] => Vec::new(),
        [leaf] => leaf.clone(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            added(tree(left), &tree(right))
        }
    }
}

/// What a rank has before anything is exchanged: the sums of the largest subtrees that are all its own.
fn partial_sums(leaves: &[Vec<f32>], ranks: &[u32], rank: u32) -> Vec<Vec<f32>> {
    let own = ranks.iter().filter(|&&owner| owner == rank).count();
    match leaves.len() {
        _ if own == 0 => Vec::new(),
        count if own == count => vec![tree(leaves)],
        count => {
            let at = count.next_power_of_two() / 2;
            let mut sums = partial_sums(&leaves[..at], &ranks[..at], rank);
            sums.extend(partial_sums(&leaves[at..], &ranks[at..], rank));
            sums
        }
    }
}

fn one_after_another(leaves: &[Vec<f32>]) -> Vec<f32> {
    let Some((first, rest)) = leaves.split_first() else { return Vec::new() };
    rest.iter().fold(first.clone(), |sum, leaf| added(sum, leaf))
}

fn added(mut sum: Vec<f32>, other: &[f32]) -> Vec<f32> {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    sum
}

/// What a wrong sum of micro-batches lacks, or has twice. `ranks[i]` computed micro-batch i.
pub fn sum(golden: &[f32], candidate: &[f32], locals: &[Vec<f32>], ranks: &[u32]) -> Option<String> {
    let count = locals.len();
    if count < 2 || near(golden, candidate) {
        return None;
    }
    let of = |wanted: &dyn Fn(usize) -> f32| -> Vec<f32> {
        let element = |at: usize| {
            (0..count).map(|index| wanted(index) * locals[index].get(at).copied().unwrap_or(0.0)).sum::<f32>()
        };
        (0..candidate.len()).map(element).collect()
    };
    let is = |wanted: &dyn Fn(usize) -> f32| near(&of(wanted), candidate);
    for index in 0..count {
        let one = |factor: f32| move |other: usize| if other == index { factor } else { 1.0 };
        if is(&one(0.0)) {
            return Some(format!("it lacks micro-batch {index}"));
        }
        if is(&one(2.0)) {
            return Some(format!("it has micro-batch {index} twice"));
        }
        if is(&|other| if other == index { 1.0 } else { 0.0 }) {
            return Some(format!("it is the gradient of micro-batch {index} alone"));
        }
    }
    let all: BTreeSet<u32> = ranks.iter().copied().collect();
    for &rank in all.iter().filter(|_| all.len() > 1) {
        let of_rank = |other: usize| ranks.get(other) == Some(&rank);
        if is(&|other| if of_rank(other) { 0.0 } else { 1.0 }) {
            return Some(format!("it lacks the micro-batches of rank {rank}"));
        }
        if is(&|other| if of_rank(other) { 2.0 } else { 1.0 }) {
            return Some(format!("it has the micro-batches of rank {rank} twice"));
        }
        if is(&|other| if of_rank(other) { 1.0 } else { 0.0 }) {
            return Some(format!("it is rank {rank}'s own sum: it was not reduced"));
        }
    }
    None
}

/// Whether a run's norm is that of its own reduced gradient.
pub fn norm(capture: &mut Capture) -> Result<Option<String>, CompareError> {
    let reduced = |tensor: &&CapturedTensor| tensor.group == CaptureGroup::ReducedGradient;
    let mut names: Vec<String> = Vec::new();
    for tensor in capture.manifest.tensors.iter().filter(reduced) {
        if names.last() != Some(&tensor.tensor.name) {
            names.push(tensor.tensor.name.clone());
        }
    }
    let mut total = 0.0;
    for name in names {
        let found =
            capture.majority(CaptureGroup::ReducedGradient, None, &name).map(|value| value.tensor.clone());
        let Some(tensor) = found.filter(|tensor| tensor.dtype == "F32") else { return Ok(None) };
        total += square_sum(&mut capture.archive, &tensor)?;
    }
    let (expected, found) = (total.sqrt(), capture.manifest.gradient_norm.0);
    Ok(match expected.to_bits() == found.to_bits() {
        true => None,
        false => Some(format!("the norm of the candidate's own reduced gradient would be {expected:?}")),
    })
}

/// Sum of squares of a tensor, block by block.
fn square_sum(archive: &mut Checkpoint, tensor: &TensorEntry) -> Result<f64, CompareError> {
    let mut stream = archive.stream(tensor)?;
    let mut buffer = vec![0u8; BLOCK_ELEMENTS * 4];
    let mut sum = 0.0;
    while stream.remaining() > 0 {
        let now = stream.remaining().min(buffer.len() as u64) as usize;
        stream.fill(&mut buffer[..now])?;
        sum += block_square_sum(&buffer[..now]);
    }
    Ok(sum)
}

/// As docs/run-record.md prescribes: eight interleaved sums, then those in order.
fn block_square_sum(block: &[u8]) -> f64 {
    let mut lanes = [0f64; LANES];
    for (index, &bytes) in block.as_chunks::<4>().0.iter().enumerate() {
        let value = f64::from(f32::from_le_bytes(bytes));
        lanes[index % LANES] += value * value;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(locals: &[Vec<f32>], weight: impl Fn(usize) -> f32) -> Vec<f32> {
        (0..locals[0].len())
            .map(|at| locals.iter().enumerate().map(|(index, local)| weight(index) * local[at]).sum())
            .collect()
    }

    /// Gradients that no sum of others resembles.
    fn locals() -> Vec<Vec<f32>> {
        (0..6u32)
            .map(|i| (0..40u32).map(|at| ((i * 97 + at * 31) % 89) as f32 / 50.0 - 0.7 * i as f32).collect())
            .collect()
    }

    proptest! {
        #[test]
        fn a_missing_or_doubled_micro_batch_is_named(index in 0usize..6, twice: bool) {
            let (locals, ranks) = (locals(), [0, 0, 1, 1, 2, 2]);
            let golden = total(&locals, |_| 1.0);
            let factor = if twice { 2.0 } else { 0.0 };
            let wrong = total(&locals, |other| if other == index { factor } else { 1.0 });
            let hint = sum(&golden, &wrong, &locals, &ranks).unwrap();
            let expected = match twice {
                true => format!("it has micro-batch {index} twice"),
                false => format!("it lacks micro-batch {index}"),
            };
            prop_assert_eq!(hint, expected);
        }

        #[test]
        fn whatever_the_numbers_nothing_panics(golden in prop::collection::vec(any::<f32>(), 0..9), other in prop::collection::vec(any::<f32>(), 0..9)) {
            let _ = (simple(&golden, &other), sum(&golden, &other, &[golden.clone(), other.clone()], &[0, 1]));
        }
    }

    #[test]
    fn a_rank_that_was_not_reduced_is_named() {
        let (locals, ranks) = (locals(), [0, 0, 1, 1, 2, 2]);
        let golden = total(&locals, |_| 1.0);
        let own = total(&locals, |other| if other / 2 == 1 { 1.0 } else { 0.0 });
        assert_eq!(
            sum(&golden, &own, &locals, &ranks).as_deref(),
            Some("it is rank 1's own sum: it was not reduced")
        );
        let lacking = total(&locals, |other| if other / 2 == 2 { 0.0 } else { 1.0 });
        assert_eq!(
            sum(&golden, &lacking, &locals, &ranks).as_deref(),
            Some("it lacks the micro-batches of rank 2")
        );
        assert_eq!(sum(&golden, &golden, &locals, &ranks), None);
    }

    #[test]
    fn multiples_zeros_and_rounding_are_told_apart() {
        let golden = [0.1f32, -0.7, 0.33, 0.9];
        let of = |change: fn(f32) -> f32| golden.map(change);
        assert_eq!(simple(&golden, &of(|v| v * 4.0)).as_deref(), Some("each is 4 times the golden one"));
        assert_eq!(simple(&golden, &of(|v| v / 8.0)).as_deref(), Some("each is 1/8 of the golden one"));
        assert_eq!(simple(&golden, &of(|v| -v)).as_deref(), Some("each is the negative of the golden one"));
        assert_eq!(simple(&golden, &of(|_| 0.0)).as_deref(), Some("the candidate's are all zero"));
        assert!(simple(&golden, &of(|v| v.next_up())).unwrap().contains("rounding only"));
        assert_eq!(simple(&golden, &of(|v| v * 1.37)), None);
        assert!(simple(&golden, &of(|v| v / 0.0)).unwrap().contains("not finite"));
    }

    #[test]
    fn the_order_of_additions_is_recognised_by_its_bits() {
        let (locals, ranks) = (locals(), [0, 0, 1, 1, 2, 2]);
        let golden = tree(&locals);
        let pairs: Vec<Vec<f32>> = locals.chunks(2).map(one_after_another).collect();
        assert_eq!(golden, added(added(pairs[0].clone(), &pairs[1]), &pairs[2]), "(01 + 23) + 45");
        let sequential = one_after_another(&locals);
        assert_ne!(sequential, golden, "the numbers are such that order matters");
        let hint = order(&golden, &sequential, &locals, &ranks).unwrap();
        assert_eq!(hint, "it is the sum of the micro-batches one after another instead of along the tree");
        // Rank 0 has leaves 0 to 2 of 6, which is two subtrees: 01 and 2; rank 1 has 3 and 45.
        let uneven = [0, 0, 0, 1, 1, 1];
        let partials = [pairs[0].clone(), locals[2].clone(), locals[3].clone(), pairs[2].clone()];
        let hint = order(&golden, &one_after_another(&partials), &locals, &uneven).unwrap();
        assert!(hint.starts_with("it is the ranks' partial sums added in the order of the ranks"), "{hint}");
        let hint = order(&sequential, &golden, &locals, &ranks).unwrap();
        assert!(hint.contains("and the golden one is not"), "{hint}");
        assert_eq!(
            order(&golden, &golden.iter().map(|v| v * 2.0).collect::<Vec<_>>(), &locals, &ranks),
            None
        );
    }

    #[test]
    fn bf16_is_recognised() {
        let golden: Vec<f32> = (1..200).map(|i| (i as f32 * 0.77).sin()).collect();
        let rounded: Vec<f32> =
            golden.iter().map(|v| f32::from_bits((v.to_bits() + 0x8000) & 0xffff_0000)).collect();
        assert_eq!(simple(&golden, &rounded).as_deref(), Some("they differ by the rounding to bf16"));
    }
}
