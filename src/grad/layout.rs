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

impl Layout {
    /// Fills buckets of up to `bucket_bytes` in reverse order of the parameters, which is about the order in which
    /// their gradients become ready. A parameter that is larger than a bucket gets one of its own.
    pub fn plan(parameters: Vec<ParameterSpec>, bucket_bytes: usize) -> Self {
        let frozen = vec![false; parameters.len()];
        Self::plan_with_frozen(parameters, &frozen, bucket_bytes)
    }

    /// As [`Layout::plan`]; parameters that are `frozen` share no bucket with those that are trained.
    pub fn plan_with_frozen(parameters: Vec<ParameterSpec>, frozen: &[bool], bucket_bytes: usize) -> Self {
        let capacity = (bucket_bytes / size_of::<f32>()).max(1);
        let mut slots = vec![Slot { bucket: 0, offset: 0, elements: 0 }; parameters.len()];
        let mut buckets: Vec<Bucket> = Vec::new();
        // The bucket that is being filled, for each kind: decaying or not, frozen or not.
        let mut open: [[Option<usize>; 2]; 2] = Default::default();
        for (index, parameter) in parameters.iter().enumerate().rev() {
            let (decays, frozen) = (parameter.decays(), frozen[index]);
            let open = &mut open[usize::from(frozen)][usize::from(decays)];
            let padded = parameter.elements().next_multiple_of(BLOCK_ELEMENTS);
            let fits = |bucket: &usize| buckets[*bucket].elements + padded <= capacity;
            let bucket = open.filter(fits).unwrap_or_else(|| {
                buckets.push(Bucket { elements: 0, decays, frozen, parameters: Vec::new() });
                buckets.len() - 1
            });
            *open = Some(bucket);
            let offset = buckets[bucket].elements;
            slots[index] = Slot { bucket, offset, elements: parameter.elements() };
            buckets[bucket].elements += padded;
            buckets[bucket].parameters.push(index);
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

    /// What of each parameter lies in `ranges[bucket]`, in the order of the buckets, without padding.
    pub fn parts(&self, ranges: &[Range<usize>]) -> Vec<Part> {
        let mut parts = Vec::new();
        for (bucket, range) in ranges.iter().enumerate() {
            for &parameter in &self.buckets[bucket].parameters {
                let slot = &self.slots[parameter];
                let range = overlap(&slot.range(), range);
                if !range.is_empty() {
                    parts.push(Part { parameter, bucket, offset: range.start - slot.offset, range });
                }
            }
        }
        parts
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

    proptest! {
        #[test]
        fn every_element_has_one_place_and_one_owner(
            shapes in prop::collection::vec(prop::collection::vec(1i64..90, 1..3), 1..20),
            bucket_bytes in 1usize..200_000, world_size in 1usize..9,
        ) {
            let layout = Layout::plan(specs(&shapes), bucket_bytes);
            for (index, bucket) in layout.buckets.iter().enumerate() {
                prop_assert_eq!(bucket.elements % BLOCK_ELEMENTS, 0);
                let mut end = 0;
                for &parameter in &bucket.parameters {
                    let slot = &layout.slots[parameter];
                    prop_assert_eq!((slot.bucket, slot.offset), (index, end));
                    prop_assert_eq!(layout.parameters[parameter].decays(), bucket.decays);
                    end += slot.elements.next_multiple_of(BLOCK_ELEMENTS);
                }
                prop_assert_eq!(end, bucket.elements);
                prop_assert!(bucket.parameters.len() == 1 || bucket.elements * 4 <= bucket_bytes);
            }
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
    }

    proptest! {
        #[test]
        fn frozen_parameters_share_no_bucket_with_trained_ones(
            shapes in prop::collection::vec((prop::collection::vec(1i64..90, 1..3), any::<bool>()), 1..20),
            bucket_bytes in 1usize..200_000,
        ) {
            let (shapes, frozen): (Vec<_>, Vec<_>) = shapes.into_iter().unzip();
            let layout = Layout::plan_with_frozen(specs(&shapes), &frozen, bucket_bytes);
            for bucket in &layout.buckets {
                prop_assert!(bucket.parameters.iter().all(|&parameter| frozen[parameter] == bucket.frozen));
            }
            let trained: Vec<usize> = (0..frozen.len()).filter(|&parameter| !frozen[parameter]).collect();
            prop_assert_eq!(layout.trained().collect::<Vec<_>>(), trained);
        }
    }

    #[test]
    fn a_parameter_larger_than_a_bucket_gets_its_own() {
        let layout = Layout::plan(specs(&[vec![8, 8], vec![4096, 2], vec![8, 8]]), 8192);
        assert_eq!(layout.buckets.iter().map(|b| b.elements).collect::<Vec<_>>(), [1024, 8192, 1024]);
    }

    #[test]
    fn overlap_of_disjoint_ranges_is_empty() {
        assert_eq!(overlap(&(0..4), &(6..9)), 6..6);
        assert_eq!(overlap(&(0..8), &(6..9)), 6..8);
    }
}
