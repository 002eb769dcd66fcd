//! Two streams of lines, side by side by step.

use std::iter::Peekable;
use std::path::PathBuf;

use lockstep_record::{DigestLine, RecordError, SampleLine, StepLine};

use super::CompareError;

/// A line that belongs to a step.
pub trait Stepped {
    /// Whether several lines may share a step.
    const REPEATS: bool;
    fn step(&self) -> u64;
}

impl Stepped for StepLine {
    const REPEATS: bool = false;
    fn step(&self) -> u64 {
        self.step
    }
}

impl Stepped for SampleLine {
    const REPEATS: bool = false;
    fn step(&self) -> u64 {
        self.step
    }
}

impl Stepped for DigestLine {
    const REPEATS: bool = true;
    fn step(&self) -> u64 {
        self.step
    }
}

/// All lines of one step.
pub struct Group<T> {
    pub step: u64,
    pub lines: Vec<T>,
}

impl<T> Stepped for Group<T> {
    const REPEATS: bool = false;
    fn step(&self) -> u64 {
        self.step
    }
}

/// Refuses lines whose steps go backwards (or repeat, where they must not): a join would silently miss them.
pub fn in_order<T: Stepped>(
    path: PathBuf,
    lines: impl Iterator<Item = Result<T, RecordError>>,
) -> impl Iterator<Item = Result<T, CompareError>> {
    let mut last: Option<u64> = None;
    lines.zip(1u64..).map(move |(line, number)| {
        let line = line?;
        let step = line.step();
        if let Some(last) = last
            && (step < last || (step == last && !T::REPEATS))
        {
            let path = path.clone();
            let problem = format!(
                "line {number}: step {step} after step {last}: a step has its place once; a run that goes on \
                 from an earlier checkpoint must first drop the lines after it"
            );
            return Err(CompareError::Malformed { path, problem });
        }
        last = Some(step);
        Ok(line)
    })
}

/// Lines of one step that are held at a time: a thousand ranks' micro-batches of a thousand tensors, twice.
const STEP_LINES_MAX: usize = 1 << 21;

/// Collects the neighbouring lines that share a step.
pub fn by_step<T: Stepped>(
    path: PathBuf,
    lines: impl Iterator<Item = Result<T, CompareError>>,
) -> impl Iterator<Item = Result<Group<T>, CompareError>> {
    by_step_up_to(STEP_LINES_MAX, path, lines)
}

fn by_step_up_to<T: Stepped>(
    lines_max: usize,
    path: PathBuf,
    lines: impl Iterator<Item = Result<T, CompareError>>,
) -> impl Iterator<Item = Result<Group<T>, CompareError>> {
    let mut lines = lines.peekable();
    std::iter::from_fn(move || {
        let first = match lines.next()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        let mut group = Group { step: first.step(), lines: vec![first] };
        while let Some(line) = lines.next_if(|next| next.as_ref().is_ok_and(|line| line.step() == group.step))
        {
            match line {
                Ok(_) if group.lines.len() == lines_max => {
                    let problem = format!("step {} has more than {lines_max} lines", group.step);
                    return Some(Err(CompareError::Malformed { path: path.clone(), problem }));
                }
                Ok(line) => group.lines.push(line),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(group))
    })
}

/// What each run has of a step; at least one has something.
pub struct Pair<T> {
    pub step: u64,
    pub golden: Option<T>,
    pub candidate: Option<T>,
}

/// A merge of two streams with rising steps, one line in memory of each.
pub struct Join<G: Iterator, C: Iterator> {
    golden: Peekable<G>,
    candidate: Peekable<C>,
}

impl<T, G, C> Join<G, C>
where
    T: Stepped,
    G: Iterator<Item = Result<T, CompareError>>,
    C: Iterator<Item = Result<T, CompareError>>,
{
    pub fn new(golden: G, candidate: C) -> Self {
        Self { golden: golden.peekable(), candidate: candidate.peekable() }
    }
}

impl<T, G, C> Iterator for Join<G, C>
where
    T: Stepped,
    G: Iterator<Item = Result<T, CompareError>>,
    C: Iterator<Item = Result<T, CompareError>>,
{
    type Item = Result<Pair<T>, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        // An error sorts first, so that it surfaces at once.
        let step = |item: Option<&Result<T, CompareError>>| {
            item.map(|line| line.as_ref().map(Stepped::step).unwrap_or_default())
        };
        let (left, right) = (step(self.golden.peek()), step(self.candidate.peek()));
        let step = left.into_iter().chain(right).min()?;
        let golden = if left == Some(step) { self.golden.next().transpose() } else { Ok(None) };
        let candidate = if right == Some(step) { self.candidate.next().transpose() } else { Ok(None) };
        Some(golden.and_then(|golden| candidate.map(|candidate| Pair { step, golden, candidate })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn line(step: u64) -> SampleLine {
        SampleLine { step, micro_batches: Vec::new(), masks: Vec::new() }
    }

    fn stream(steps: Vec<u64>) -> impl Iterator<Item = Result<SampleLine, CompareError>> {
        in_order("samples.jsonl".into(), steps.into_iter().map(|step| Ok(line(step))))
    }

    proptest! {
        #[test]
        fn the_join_loses_nothing(
            left in proptest::collection::btree_set(0u64..30, 0..20),
            right in proptest::collection::btree_set(0u64..30, 0..20),
        ) {
            let join = Join::new(stream(left.iter().copied().collect()), stream(right.iter().copied().collect()));
            let pairs: Vec<_> = join.map(Result::unwrap).collect();
            let steps = |side: fn(&Pair<SampleLine>) -> bool| -> BTreeSet<u64> {
                pairs.iter().filter(|pair| side(pair)).map(|pair| pair.step).collect()
            };
            prop_assert_eq!(steps(|pair| pair.golden.is_some()), left);
            prop_assert_eq!(steps(|pair| pair.candidate.is_some()), right);
            prop_assert!(pairs.windows(2).all(|two| two[0].step < two[1].step));
        }
    }

    #[test]
    fn a_step_that_repeats_or_goes_back_is_an_error() {
        for steps in [vec![1, 1], vec![2, 1]] {
            let error = stream(steps).last().unwrap().unwrap_err().to_string();
            assert!(error.contains("line 2: step 1 after step"), "{error}");
        }
    }

    #[test]
    fn groups_follow_steps() {
        let lines = || [1, 1, 3].map(|step| Ok(line(step))).into_iter();
        let groups: Vec<_> = by_step("digests.jsonl".into(), lines()).map(Result::unwrap).collect();
        assert_eq!(groups.iter().map(|g| (g.step, g.lines.len())).collect::<Vec<_>>(), [(1, 2), (3, 1)]);
        let error = by_step_up_to(1, "digests.jsonl".into(), lines()).next().unwrap().err().unwrap();
        assert_eq!(error.to_string(), "digests.jsonl: step 1 has more than 1 lines");
    }
}
