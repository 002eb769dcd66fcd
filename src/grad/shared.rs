//! Where the ranks of one host keep their partial sums, so that all of them can read and write them: each rank adds up its
//! shard of everybody's where they lie.

use std::ops::Range;
use std::sync::Arc;

use super::flat::Flat;
use super::layout::{Bucket, Layout};
use crate::comm::Commons;
use crate::mutate::{Mutation, active};

/// Each subtree begins on a page: no two ranks write to one cache line, and vectors are aligned as libtorch aligns them.
const ALIGNMENT: usize = 1024;

/// The partial sums of all ranks and buckets.
pub struct SharedSums {
    commons: Arc<Commons>,
    places: Places,
}

/// Where each subtree begins, in elements.
#[derive(Debug)]
pub struct Places {
    /// Elements of each bucket.
    lengths: Vec<usize>,
    /// Where each bucket begins behind the start of a subtree, and how far a subtree reaches.
    offsets: Vec<usize>,
    /// How many subtrees each rank holds after its own accumulation.
    held: Vec<usize>,
}

impl Places {
    /// `held[r]` subtrees of rank r, of each bucket that is trained.
    pub fn new(layout: &Layout, held: Vec<usize>) -> Self {
        let length = |bucket: &Bucket| if bucket.frozen { 0 } else { bucket.elements };
        let lengths: Vec<usize> = layout.buckets.iter().map(length).collect();
        let mut offsets = vec![0];
        let mut end = 0;
        for length in &lengths {
            end += length.next_multiple_of(ALIGNMENT);
            offsets.push(end);
        }
        Self { lengths, offsets, held }
    }

    /// The room that all of them take.
    pub fn elements(&self) -> usize {
        self.held.iter().sum::<usize>() * self.reach()
    }

    /// What a subtree of all buckets takes.
    fn reach(&self) -> usize {
        self.offsets[self.lengths.len()]
    }

    /// The start of a subtree, by its number over all ranks, in leaf order.
    fn start(&self, bucket: usize, subtree: usize) -> usize {
        subtree * self.reach() + self.offsets[bucket]
    }
}

impl SharedSums {
    /// # Panics
    /// If the memory is too small.
    pub fn new(commons: Commons, places: Places) -> Self {
        assert!(commons.elements() >= places.elements(), "shared memory is too small");
        Self { commons: Arc::new(commons), places }
    }

    pub fn commons(&self) -> &Commons {
        &self.commons
    }

    /// A rank's subtrees of a bucket, in leaf order.
    pub fn of_rank(&self, rank: usize, bucket: usize) -> Vec<Flat> {
        let first: usize = self.places.held[..rank].iter().sum();
        let own = |subtree| {
            let start = self.places.start(bucket, subtree);
            Flat::in_common(Arc::clone(&self.commons), start..start + self.places.lengths[bucket])
        };
        (first..first + self.places.held[rank]).map(own).collect()
    }

    /// Lets `work` have the same elements of all ranks' subtrees of a bucket, in leaf order.
    ///
    /// # Safety
    /// Between the meetings before and after, no other rank touches these elements, and this one does so only here.
    pub unsafe fn on_slots(
        &self,
        bucket: usize,
        elements: &Range<usize>,
        work: impl FnOnce(&mut [&mut [f32]]),
    ) {
        assert!(elements.end <= self.places.lengths[bucket]);
        let slot = |subtree| {
            let mut start = self.places.start(bucket, subtree) + elements.start;
            if active(Mutation::NeighboursOffset) && subtree > 0 && elements.start > 0 {
                start -= 1;
            }
            // SAFETY: within the memory, which `new` has checked; subtrees do not overlap; the caller keeps others away.
            unsafe { std::slice::from_raw_parts_mut(self.commons.numbers().add(start), elements.len()) }
        };
        let mut slots: Vec<&mut [f32]> = (0..self.places.held.iter().sum()).map(slot).collect();
        work(&mut slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::commons_in_one_process;
    use crate::grad::layout::ParameterSpec;

    #[test]
    fn subtrees_do_not_overlap_and_ranks_agree_where_they_are() {
        let spec = |name: &str, size: i64| ParameterSpec { name: name.into(), shape: vec![size] };
        let layout = Layout::simple(vec![spec("a", 1500), spec("b", 700), spec("c", 1)], 4096);
        assert!(layout.buckets.len() > 1);
        let held = vec![2, 1, 3];
        let places = || Places::new(&layout, held.clone());
        let ranks: Vec<SharedSums> = commons_in_one_process(3, places().elements())
            .into_iter()
            .map(|commons| SharedSums::new(commons, places()))
            .collect();
        for bucket in 0..layout.buckets.len() {
            for (rank, sums) in ranks.iter().enumerate() {
                for (index, mut subtree) in sums.of_rank(rank, bucket).into_iter().enumerate() {
                    subtree.as_mut_slice().fill((100 * bucket + 10 * rank + index) as f32);
                }
            }
        }
        for (bucket, Bucket { elements, .. }) in layout.buckets.iter().enumerate() {
            let expected = (0..3)
                .flat_map(|rank| (0..held[rank]).map(move |index| (100 * bucket + 10 * rank + index) as f32));
            // SAFETY: one thread, one at a time.
            unsafe {
                ranks[1].on_slots(bucket, &(0..*elements), |slots| {
                    assert_eq!(slots.len(), 6);
                    for (slot, expected) in slots.iter().zip(expected) {
                        assert!(slot.len() == *elements && slot.iter().all(|&value| value == expected));
                    }
                });
            }
        }
    }
}
