//! Which part of each bucket belongs to which rank.

use std::ops::Range;

/// Shards of every bucket, and whether a rank holds state for its own only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    shards: Vec<Vec<Range<usize>>>,
    sharded: bool,
}

impl Ownership {
    pub fn new(shards: Vec<Vec<Range<usize>>>, sharded: bool) -> Self {
        Self { shards, sharded }
    }

    /// How the buckets are divided among the ranks: `shards[bucket][rank]`.
    pub fn shards(&self) -> &[Vec<Range<usize>>] {
        &self.shards
    }

    /// Whether a rank holds the gradient and the optimizer's state of its shards only, or of everything.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// The part of each bucket that a rank updates: its shard, or all of it.
    pub fn owned(&self, rank: usize) -> Vec<Range<usize>> {
        let of_bucket = |shards: &Vec<Range<usize>>| match self.sharded {
            true => shards[rank].clone(),
            false => 0..shards.last().map_or(0, |shard| shard.end),
        };
        self.shards.iter().map(of_bucket).collect()
    }
}
