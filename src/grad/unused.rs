//! Parameters that the loss of a micro-batch did not depend on, so that autograd left them no gradient.
//!
//! Pure functions of what was seen: which micro-batch lacked which parameter is a property of the micro-batch, so the
//! verdict of a step does not depend on how many ranks there are. A missing gradient is a leaf of zeros in the ordered
//! sum, and is really added: −0 + 0 is +0, wherever in the tree it happens.

use std::ops::Range;

use super::layout::Layout;

/// Names in a message, at most; the others are counted.
const NAMED_MAX: usize = 5;

/// A set of parameters, by their index in the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterSet(Vec<u64>);

impl ParameterSet {
    pub fn insert(&mut self, parameter: usize) {
        let word = parameter / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (parameter % 64);
    }

    pub fn contains(&self, parameter: usize) -> bool {
        self.0.get(parameter / 64).is_some_and(|word| word >> (parameter % 64) & 1 == 1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len() * 64).filter(|&parameter| self.contains(parameter))
    }

    /// As ranks send it to one another.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        let words = bytes.as_chunks::<8>().0;
        self.0.resize(self.0.len().max(words.len()), 0);
        for (mine, theirs) in self.0.iter_mut().zip(words) {
            *mine |= u64::from_le_bytes(*theirs);
        }
    }
}

impl FromIterator<usize> for ParameterSet {
    fn from_iter<T: IntoIterator<Item = usize>>(parameters: T) -> Self {
        let mut set = Self::default();
        parameters.into_iter().for_each(|parameter| set.insert(parameter));
        set
    }
}

/// What a rank's micro-batches of one step used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By at least one micro-batch.
    pub used: ParameterSet,
    /// Not by every one.
    pub missed: ParameterSet,
}

impl Usage {
    /// One micro-batch's gradient of one parameter came, or did not.
    pub fn note(&mut self, parameter: usize, has_gradient: bool) {
        let set = if has_gradient { &mut self.used } else { &mut self.missed };
        set.insert(parameter);
    }
}

/// The trained parameters that no micro-batch of the step used, given each rank's [`Usage::used`] as bytes.
pub fn unused_by_all(layout: &Layout, ranks: &[Vec<u8>]) -> ParameterSet {
    let mut used = ParameterSet::default();
    ranks.iter().for_each(|bytes| used.add_bytes(bytes));
    layout.trained().filter(|&parameter| !used.contains(parameter)).collect()
}

/// Some parameters by name: the first few, and how many more.
pub fn names(layout: &Layout, set: &ParameterSet) -> String {
    let named: Vec<&str> =
        set.iter().take(NAMED_MAX).map(|parameter| layout.parameters[parameter].name.as_str()).collect();
    match set.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What `parallel.unused_parameters: error` says.
pub fn complaint(layout: &Layout, step: u64, missed: &ParameterSet) -> String {
    format!(
        "step {step}: the loss of some micro-batch does not depend on {}, so there is no gradient; nothing was updated. \
         Use them in every micro-batch, or set parallel.unused_parameters to detect (a parameter that the whole step \
         leaves unused is not updated) or allow (a missing gradient counts as zero)",
        names(layout, missed)
    )
}

/// A part of a bucket that one kernel call updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateRun {
    /// Elements of the bucket, on block boundaries.
    pub range: Range<usize>,
    /// Updates that its parameters were left out of so far.
    pub left_out: u64,
}

/// The parts of `owned` (in one bucket) that are to be updated: without `unused` parameters, and split where the count
/// of updates changes. Usually that is all of `owned` in one piece.
pub fn update_runs(
    layout: &Layout,
    bucket: usize,
    owned: &Range<usize>,
    left_out: &[u64],
    unused: &ParameterSet,
) -> Vec<UpdateRun> {
    let parameters = &layout.buckets[bucket].parameters;
    let mut runs: Vec<UpdateRun> = Vec::new();
    for (index, &parameter) in parameters.iter().enumerate() {
        let end = parameters
            .get(index + 1)
            .map_or(layout.buckets[bucket].elements, |&next| layout.slots[next].offset);
        let range = layout.slots[parameter].offset.max(owned.start)..end.min(owned.end);
        if range.is_empty() || unused.contains(parameter) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.range.end == range.start && run.left_out == left_out[parameter] => {
                run.range.end = range.end;
            }
            _ => runs.push(UpdateRun { range, left_out: left_out[parameter] }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::layout::ParameterSpec;
    use proptest::prelude::*;

    fn layout(sizes: &[i64], bucket_bytes: usize) -> Layout {
        let spec =
            |(index, &size): (usize, &i64)| ParameterSpec { name: format!("p{index}"), shape: vec![size] };
        Layout::simple(sizes.iter().enumerate().map(spec).collect(), bucket_bytes)
    }

    proptest! {
        /// Whoever computes which micro-batch, the verdict is the same.
        #[test]
        fn ranks_agree_whatever_their_number(
            uses in prop::collection::vec(prop::collection::vec(any::<bool>(), 70), 1..9), ranks in 1usize..9,
        ) {
            let layout = layout(&[10; 70], 4096);
            let share = |rank| crate::partition::share(uses.len(), ranks, rank);
            let usage = |rank: usize| {
                let mut usage = Usage::default();
                for micro_batch in share(rank) {
                    uses[micro_batch].iter().enumerate().for_each(|(index, &used)| usage.note(index, used));
                }
                usage
            };
            let messages: Vec<Vec<u8>> = (0..ranks).map(|rank| usage(rank).used.to_bytes()).collect();
            let expected: Vec<usize> = (0..70).filter(|&index| uses.iter().all(|used| !used[index])).collect();
            prop_assert_eq!(unused_by_all(&layout, &messages).iter().collect::<Vec<_>>(), expected);
            let missed = |index: usize| (0..ranks).any(|rank| usage(rank).missed.contains(index));
            prop_assert!((0..70).all(|index| missed(index) == uses.iter().any(|used| !used[index])));
        }

        /// Every element of a used parameter is updated once, by its owner, and no other.
        #[test]
        fn runs_cover_what_is_used_and_nothing_else(
            sizes in prop::collection::vec(1i64..5000, 1..12), bucket_bytes in 4096usize..40_000,
            left_out in prop::collection::vec(0u64..3, 12), dropped in prop::collection::vec(any::<bool>(), 12),
            ranks in 1usize..7,
        ) {
            let layout = layout(&sizes, bucket_bytes);
            let unused: ParameterSet = (0..sizes.len()).filter(|&index| dropped[index]).collect();
            for (bucket, shards) in layout.shards(ranks).iter().enumerate() {
                let mut updated = vec![None; layout.buckets[bucket].elements];
                for owned in shards {
                    for run in update_runs(&layout, bucket, owned, &left_out, &unused) {
                        prop_assert!(owned.start <= run.range.start && run.range.end <= owned.end);
                        for place in &mut updated[run.range] {
                            prop_assert_eq!(place.replace(run.left_out), None);
                        }
                    }
                }
                for &parameter in &layout.buckets[bucket].parameters {
                    let expected = (!dropped[parameter]).then_some(left_out[parameter]);
                    let range = layout.slots[parameter].range();
                    prop_assert!(updated[range].iter().all(|&place| place == expected));
                }
            }
        }
    }

    #[test]
    fn usually_a_bucket_is_one_run() {
        let layout = layout(&[100, 3000, 20], 1 << 20);
        let elements = layout.buckets[0].elements;
        let none = ParameterSet::default();
        assert_eq!(
            update_runs(&layout, 0, &(0..elements), &[0; 3], &none),
            [UpdateRun { range: 0..elements, left_out: 0 }]
        );
        assert_eq!(update_runs(&layout, 0, &(1024..1024), &[0; 3], &none), []);
    }

    #[test]
    fn the_message_names_five_and_counts_the_others() {
        let layout = layout(&[1; 9], 4096);
        let message = complaint(&layout, 7, &(1..8).collect());
        assert!(message.starts_with("step 7: "), "{message}");
        assert!(message.contains("p1, p2, p3, p4, p5 and 2 more"), "{message}");
        assert!(message.contains("parallel.unused_parameters"), "{message}");
        assert_eq!(names(&layout, &[8].into_iter().collect()), "p8");
    }
}
