//! Which part of each bucket belongs to which rank.

use std::ops::Range;

use crate::grad::layout::Layout;

/// Shards of every bucket, and whether a rank holds state for its own only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    shards: Vec<Vec<Range<usize>>>,
    /// By bucket.
    frozen: Vec<bool>,
    sharded: bool,
}

impl Ownership {
    pub fn new(shards: Vec<Vec<Range<usize>>>, layout: &Layout, sharded: bool) -> Self {
        Self { shards, frozen: layout.buckets.iter().map(|bucket| bucket.frozen).collect(), sharded }
    }

    /// How the buckets are divided among the ranks: `shards[bucket][rank]`.
    pub fn shards(&self) -> &[Vec<Range<usize>>] {
        &self.shards
    }

    /// Whether a rank holds the gradient and the optimizer's state of its shards only, or of everything.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// The part of each bucket that a rank updates: its shard, or all of it, but nothing of a frozen one.
    pub fn owned(&self, rank: usize) -> Vec<Range<usize>> {
        let of_bucket = |(shards, frozen): (&Vec<Range<usize>>, &bool)| match self.sharded {
            _ if *frozen => 0..0,
            true => shards[rank].clone(),
            false => 0..shards.last().map_or(0, |shard| shard.end),
        };
        self.shards.iter().zip(&self.frozen).map(of_bucket).collect()
    }
}
