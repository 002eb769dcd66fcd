//! The flat layout: where each parameter lies in which bucket, and which rank owns which part.
//!
//! Each parameter starts on a block boundary, so that a block of [`BLOCK_ELEMENTS`] elements belongs to one
//! parameter, and shards consist of whole blocks. Norms, digests and vector kernels then see the same blocks for
//! every number of ranks and every bucket size. The layout itself does not depend on the number of ranks.

use std::ops::Range;

use lockstep_record::BLOCK_ELEMENTS;

use crate::partition::share;

/// A parameter as the model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    pub name: String,
    pub shape: Vec<i64>,
}

impl ParameterSpec {
    pub fn elements(&self) -> usize {
        self.shape.iter().map(|&size| size as usize).product()
    }

    /// Matrices and embeddings decay; vectors (biases, norms) do not.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Where one parameter lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub bucket: usize,
    /// First element in the bucket: a multiple of the block size.
    pub offset: usize,
    pub elements: usize,
}

impl Slot {
    /// Its elements in the bucket, without padding.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements
    }

    /// Its blocks in the bucket; the last one may end in padding.
    pub fn blocks(&self) -> Range<usize> {
        self.offset / BLOCK_ELEMENTS..(self.offset + self.elements).div_ceil(BLOCK_ELEMENTS)
    }
}

/// A flat buffer that is reduced as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Length with padding: a multiple of the block size.
    pub elements: usize,
    /// Whether its parameters decay: one update call serves a whole bucket.
    pub decays: bool,
    /// Whether its parameters are not trained: there is no gradient of it, nothing to reduce and no optimizer state.
    pub frozen: bool,
    /// Indices of its parameters, in order of offset.
    pub parameters: Vec<usize>,
}

/// The layout of all parameters; `slots[i]` belongs to parameter `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub parameters: Vec<ParameterSpec>,
    pub slots: Vec<Slot>,
    pub buckets: Vec<Bucket>,
}

/// How large buckets may become, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub bucket: usize,
    /// Of the first bucket, so that communication starts early, and of the last one, which nothing hides.
    pub edge: usize,
}

impl Layout {
    /// Fills buckets with the parameters in the order in which their gradients become ready: `ready[i]` is the index
    /// of the i-th. A parameter that is larger than a bucket gets one of its own. Buckets stand in the order in which
    /// their last gradient becomes ready; those of parameters that are `frozen` come after all others.
    ///
    /// # Panics
    /// If `ready` is not a permutation of the parameters.
    pub fn plan(
        parameters: Vec<ParameterSpec>,
        frozen: &[bool],
        ready: &[usize],
        capacity: Capacity,
    ) -> Self {
        let mut seen = vec![false; parameters.len()];
        ready.iter().for_each(|&index| assert!(!std::mem::replace(&mut seen[index], true), "{index} twice"));
        assert_eq!(ready.len(), parameters.len());
        let bytes = |index: usize| padded(&parameters[index]) * size_of::<f32>();
        let mut groups = Vec::new();
        for kind in [(false, false), (false, true), (true, false), (true, true)] {
            let of_kind = |&&index: &&usize| (frozen[index], parameters[index].decays()) == kind;
            let order: Vec<usize> = ready.iter().filter(of_kind).copied().collect();
            groups.extend(groups_of(&order, &bytes, capacity));
        }
        let position = |index: usize| ready.iter().position(|&other| other == index);
        groups.sort_by_key(|group| group.last().map(|&index| (frozen[index], position(index))));
        Self::of_groups(parameters, frozen, groups)
    }

    fn of_groups(parameters: Vec<ParameterSpec>, frozen: &[bool], groups: Vec<Vec<usize>>) -> Self {
        let mut slots = vec![Slot { bucket: 0, offset: 0, elements: 0 }; parameters.len()];
        let mut buckets = Vec::new();
        for (bucket, group) in groups.into_iter().enumerate() {
            let mut elements = 0;
            for &index in &group {
                slots[index] = Slot { bucket, offset: elements, elements: parameters[index].elements() };
                elements += padded(&parameters[index]);
            }
            let (decays, frozen) = (parameters[group[0]].decays(), frozen[group[0]]);
            buckets.push(Bucket { elements, decays, frozen, parameters: group });
        }
        Self { parameters, slots, buckets }
    }

    /// Parameters of the model, without padding.
    pub fn elements(&self) -> usize {
        self.slots.iter().map(|slot| slot.elements).sum()
    }

    pub fn is_frozen(&self, parameter: usize) -> bool {
        self.buckets[self.slots[parameter].bucket].frozen
    }

    /// The parameters that are trained, in the model's order.
    pub fn trained(&self) -> impl Iterator<Item = usize> {
        (0..self.parameters.len()).filter(|&parameter| !self.is_frozen(parameter))
    }

    /// Buckets with a gradient: the first ones.
    pub fn trained_buckets(&self) -> usize {
        self.buckets.iter().filter(|bucket| !bucket.frozen).count()
    }

    /// What of each parameter lies in `ranges[bucket]`, in the order of the buckets, without padding.
    pub fn parts(&self, ranges: &[Range<usize>]) -> Vec<Part> {
        ranges.iter().enumerate().flat_map(|(bucket, range)| self.parts_of(bucket, range)).collect()
    }

    /// What of each parameter lies in a range of one bucket, in order.
    pub fn parts_of(&self, bucket: usize, range: &Range<usize>) -> impl Iterator<Item = Part> {
        let part = move |&parameter: &usize| {
            let slot = &self.slots[parameter];
            let range = overlap(&slot.range(), range);
            (!range.is_empty()).then(|| Part { parameter, bucket, offset: range.start - slot.offset, range })
        };
        self.buckets[bucket].parameters.iter().filter_map(part)
    }

    /// The part of each bucket that each rank owns: `shards[bucket][rank]`, in elements, on block boundaries.
    pub fn shards(&self, world_size: usize) -> Vec<Vec<Range<usize>>> {
        let shard = |bucket: &Bucket, rank| {
            let blocks = share(bucket.elements / BLOCK_ELEMENTS, world_size, rank);
            blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS
        };
        let of_bucket = |bucket| (0..world_size).map(|rank| shard(bucket, rank)).collect();
        self.buckets.iter().map(of_bucket).collect()
    }
}

/// Elements with padding to whole blocks.
fn padded(parameter: &ParameterSpec) -> usize {
    parameter.elements().next_multiple_of(BLOCK_ELEMENTS)
}

/// Cuts `order` into runs that fit: the first and the last within `capacity.edge`, the others within `capacity.bucket`.
fn groups_of(order: &[usize], bytes: &dyn Fn(usize) -> usize, capacity: Capacity) -> Vec<Vec<usize>> {
    let total = |group: &[usize]| group.iter().map(|&index| bytes(index)).sum::<usize>();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &index in order {
        let limit = if groups.len() <= 1 { capacity.edge } else { capacity.bucket };
        match groups.last_mut() {
            Some(group) if total(group) + bytes(index) <= limit => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    let Some(last) = groups.last_mut().filter(|last| total(last) > capacity.edge) else { return groups };
    let fits = |&at: &usize| total(&last[at..]) <= capacity.edge;
    let cut = (1..last.len()).find(fits);
    let tail = cut.map(|cut| last.split_off(cut));
    groups.extend(tail);
    groups
}

#[cfg(test)]
impl Layout {
    /// Nothing frozen, the last parameter ready first, all buckets of one capacity.
    pub fn simple(parameters: Vec<ParameterSpec>, bucket_bytes: usize) -> Self {
        let (count, capacity) = (parameters.len(), Capacity { bucket: bucket_bytes, edge: bucket_bytes });
        let ready: Vec<usize> = (0..count).rev().collect();
        Self::plan(parameters, &vec![false; count], &ready, capacity)
    }
}

/// The part of one parameter that lies in a range of its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub parameter: usize,
    pub bucket: usize,
    /// In the bucket.
    pub range: Range<usize>,
    /// Of the part's first element, in the parameter.
    pub offset: usize,
}

/// The elements of `a` that also lie in `b`; empty if none.
pub fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn specs(shapes: &[Vec<i64>]) -> Vec<ParameterSpec> {
        let spec = |(index, shape): (usize, &Vec<i64>)| ParameterSpec {
            name: format!("p{index}"),
            shape: shape.clone(),
        };
        shapes.iter().enumerate().map(spec).collect()
    }

    fn capacity(bucket: usize, edge: usize) -> Capacity {
        Capacity { bucket, edge }
    }

    proptest! {
        #[test]
        fn every_element_has_one_place_and_one_owner(
            shapes in prop::collection::vec(prop::collection::vec(1i64..90, 1..3), 1..20),
            bucket in 1usize..200_000, edge in 1usize..20_000, world_size in 1usize..9, shuffle in any::<u64>(),
        ) {
            let mut ready: Vec<usize> = (0..shapes.len()).collect();
            ready.sort_by_key(|&index| (index as u64 + 1).wrapping_mul(shuffle | 1));
            let layout = Layout::plan(specs(&shapes), &vec![false; shapes.len()], &ready, capacity(bucket, edge));
            for (index, bucket_plan) in layout.buckets.iter().enumerate() {
                prop_assert_eq!(bucket_plan.elements % BLOCK_ELEMENTS, 0);
                let mut end = 0;
                for &parameter in &bucket_plan.parameters {
                    let slot = &layout.slots[parameter];
                    prop_assert_eq!((slot.bucket, slot.offset), (index, end));
                    prop_assert_eq!(layout.parameters[parameter].decays(), bucket_plan.decays);
                    end += slot.elements.next_multiple_of(BLOCK_ELEMENTS);
                }
                prop_assert_eq!(end, bucket_plan.elements);
                let alone = bucket_plan.parameters.len() == 1;
                prop_assert!(alone || bucket_plan.elements * 4 <= bucket.max(edge));
            }
            let placed: usize = layout.buckets.iter().map(|bucket| bucket.parameters.len()).sum();
            prop_assert_eq!(placed, shapes.len());
            for (bucket, shards) in layout.buckets.iter().zip(layout.shards(world_size)) {
                let mut end = 0;
                for shard in shards {
                    prop_assert_eq!(shard.start, end);
                    prop_assert_eq!(shard.end % BLOCK_ELEMENTS, 0);
                    end = shard.end;
                }
                prop_assert_eq!(end, bucket.elements);
            }
        }

        #[test]
        fn a_bucket_is_complete_before_the_next_one(
            shapes in prop::collection::vec(prop::collection::vec(1i64..60, 1..3), 1..20), edge in 1usize..9_000,
        ) {
            let ready: Vec<usize> = (0..shapes.len()).rev().collect();
            let layout = Layout::plan(specs(&shapes), &vec![false; shapes.len()], &ready, capacity(40_000, edge));
            let complete = |bucket: &Bucket| bucket.parameters.iter().map(|&index| shapes.len() - index).max();
            prop_assert!(layout.buckets.iter().map(complete).is_sorted());
        }
    }

    proptest! {
        #[test]
        fn frozen_parameters_share_no_bucket_with_trained_ones(
            shapes in prop::collection::vec((prop::collection::vec(1i64..90, 1..3), any::<bool>()), 1..20),
            bucket_bytes in 1usize..200_000,
        ) {
            let (shapes, frozen): (Vec<_>, Vec<_>) = shapes.into_iter().unzip();
            let ready: Vec<usize> = (0..shapes.len()).collect();
            let layout = Layout::plan(specs(&shapes), &frozen, &ready, capacity(bucket_bytes, 4096));
            prop_assert!(layout.buckets[..layout.trained_buckets()].iter().all(|bucket| !bucket.frozen));
            for bucket in &layout.buckets {
                prop_assert!(bucket.parameters.iter().all(|&parameter| frozen[parameter] == bucket.frozen));
            }
            let trained: Vec<usize> = (0..frozen.len()).filter(|&parameter| !frozen[parameter]).collect();
            prop_assert_eq!(layout.trained().collect::<Vec<_>>(), trained);
        }
    }

    #[test]
    fn a_parameter_larger_than_a_bucket_gets_its_own() {
        let shapes = [vec![8, 8], vec![4096, 2], vec![8, 8]];
        let layout = Layout::simple(specs(&shapes), 8192);
        assert_eq!(layout.buckets.iter().map(|b| b.elements).collect::<Vec<_>>(), [1024, 8192, 1024]);
    }

    #[test]
    fn the_first_and_the_last_bucket_are_small() {
        let ready: Vec<usize> = (0..10).collect();
        let layout =
            Layout::plan(specs(&vec![vec![32, 32]; 10]), &[false; 10], &ready, capacity(4 * 4096, 4096));
        let sizes: Vec<usize> = layout.buckets.iter().map(|bucket| bucket.parameters.len()).collect();
        assert_eq!(sizes, [1, 4, 4, 1]);
    }

    #[test]
    fn overlap_of_disjoint_ranges_is_empty() {
        assert_eq!(overlap(&(0..4), &(6..9)), 6..6);
        assert_eq!(overlap(&(0..8), &(6..9)), 6..8);
    }
}
