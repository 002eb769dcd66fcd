//! How the ranks divide the work of one update. All strategies share the flat layout and the ordered sum; they
//! differ in who holds which part of the gradient, the optimizer's state and the parameters when.

mod ddp;
mod single;
mod zero1;

use std::ops::Range;

use ddp::Ddp;
use single::Single;
use zero1::Zero1;

use crate::comm::{Comm, CommError};
use crate::config::schema::{Reduction, StrategyKind};
use crate::grad::accumulate::Accumulator;
use crate::grad::flat::Flat;
use crate::grad::layout::{Bucket, Layout};
use crate::grad::norm;
use crate::grad::tree::Accumulation;
use crate::mutate::{Mutation, active};
use crate::partition::share;

/// One way to divide an update.
pub trait Strategy {
    /// How the buckets are divided among the ranks: `shards[bucket][rank]`.
    fn shards(&self) -> &[Vec<Range<usize>>];

    /// Whether a rank holds the gradient and the optimizer's state of its shards only, or of everything.
    fn is_sharded(&self) -> bool;

    /// Turns the ranks' partial sums into the step's gradient, at least over this rank's [`owned`] part of each bucket.
    fn reduce(&mut self, comm: &dyn Comm, gradients: &mut Accumulator) -> Result<(), CommError>;

    /// Brings the updated parameters to every rank.
    fn publish(&mut self, comm: &dyn Comm, parameters: &mut [Flat]) -> Result<(), CommError>;
}

/// The part of each bucket that a rank updates: its shard, or all of it, but nothing of a frozen one.
pub fn owned(strategy: &dyn Strategy, layout: &Layout, rank: usize) -> Vec<Range<usize>> {
    let of_bucket = |(bucket, shards): (&Bucket, &Vec<Range<usize>>)| match strategy.is_sharded() {
        _ if bucket.frozen => 0..0,
        true => shards[rank].clone(),
        false => 0..shards.last().map_or(0, |shard| shard.end),
    };
    layout.buckets.iter().zip(strategy.shards()).map(of_bucket).collect()
}

/// What strategies are made from.
pub struct Setting<'a> {
    pub layout: &'a Layout,
    pub micro_batches: usize,
    pub reduction: Reduction,
    pub rank: usize,
    pub world_size: usize,
}

impl Setting<'_> {
    /// This rank's micro-batches.
    pub fn micro_batches(&self) -> Range<usize> {
        share(self.micro_batches, self.world_size, self.rank)
    }

    /// How this rank adds up its own micro-batches.
    pub fn accumulation(&self) -> Accumulation {
        match self.reduction {
            Reduction::Ordered => Accumulation::along_tree(self.micro_batches(), self.micro_batches),
            Reduction::Native => Accumulation::one_after_another(self.micro_batches(), self.micro_batches),
        }
    }
}

/// The strategy that the configuration names.
pub fn build(kind: StrategyKind, setting: &Setting) -> Box<dyn Strategy> {
    match kind {
        StrategyKind::Single => Box::new(Single::new(setting)),
        StrategyKind::Ddp => Box::new(Ddp::new(setting)),
        StrategyKind::Zero1 => Box::new(Zero1::new(setting)),
    }
}

/// Sums of squares of every block of `buffers`, for every rank: each rank takes those of its shard. A frozen bucket,
/// which has no gradient, counts as zeros.
pub fn square_sums(
    comm: &dyn Comm,
    shards: &[Vec<Range<usize>>],
    buffers: &[Flat],
) -> Result<Vec<Vec<f64>>, CommError> {
    let of_shard = |flat: &Flat, shard: &Range<usize>| match active(Mutation::NormByShard) {
        _ if flat.is_empty() => vec![0.0; shard.len().div_ceil(lockstep_record::BLOCK_ELEMENTS)],
        false => norm::shard_square_sums(flat.as_slice(), shard),
        true => norm::single_precision_square_sum(flat.as_slice(), shard),
    };
    let mine = shards.iter().zip(buffers).flat_map(|(shards, flat)| of_shard(flat, &shards[comm.rank()]));
    let bytes: Vec<u8> = mine.flat_map(f64::to_le_bytes).collect();
    let messages = comm.all_gather_bytes(&bytes)?;
    let mut values: Vec<_> = messages
        .iter()
        .map(|message| message.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)))
        .collect();
    let blocks = |shard: &Range<usize>| shard.len().div_ceil(lockstep_record::BLOCK_ELEMENTS);
    let of_bucket = |shards: &Vec<Range<usize>>| {
        shards
            .iter()
            .zip(&mut values)
            .flat_map(|(shard, values)| values.by_ref().take(blocks(shard)))
            .collect()
    };
    Ok(shards.iter().map(of_bucket).collect())
}
