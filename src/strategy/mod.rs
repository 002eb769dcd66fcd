//! How the ranks divide the work of one update. All strategies share the flat layout and the ordered sum; they
//! differ in who holds which part of the gradient, the optimizer's state and the parameters when.

mod ddp;
mod local;
mod ownership;
mod zero1;

use std::ops::Range;
use std::sync::Arc;

pub use ownership::Ownership;

use ddp::Ddp;
use local::Local;
use zero1::Zero1;

use crate::comm::{Comm, CommError};
use crate::config::schema::{Reduction, StrategyKind};
use crate::grad::accumulate::PartialSums;
use crate::grad::flat::Flat;
use crate::grad::layout::Layout;
use crate::grad::norm;
use crate::grad::shared::{Places, SharedSums};
use crate::grad::tree::Accumulation;
use crate::mutate::{Mutation, active};
use crate::partition::share;
use crate::precision::Format;
use crate::torch::TorchError;

/// One way to divide an update: what is sent when. It works on one bucket at a time, on the communication thread.
pub trait Strategy: Send {
    /// Turns the ranks' partial sums of a bucket into the step's gradient, at least over the part that this rank owns.
    fn reduce(&mut self, comm: &dyn Comm, bucket: usize, sums: &mut PartialSums) -> Result<(), CommError>;

    /// Whether updated parameters have to be brought to the other ranks.
    fn publishes(&self) -> bool {
        false
    }

    /// Brings a bucket's updated parameters to every rank, under a strategy that publishes.
    fn publish(&mut self, _: &dyn Comm, _: usize, _: &mut Flat) -> Result<(), CommError> {
        Ok(())
    }
}

/// What strategies are made from.
pub struct Setting<'a> {
    pub layout: &'a Layout,
    pub micro_batches: usize,
    pub reduction: Reduction,
    /// In which gradients are added up, unless that is fp32.
    pub format: Option<Format>,
    pub rank: usize,
    pub world_size: usize,
    /// Where partial sums lie, if all ranks see each other's.
    pub shared: Option<Arc<SharedSums>>,
}

impl Setting<'_> {
    /// This rank's micro-batches.
    pub fn micro_batches(&self) -> Range<usize> {
        share(self.micro_batches, self.world_size, self.rank)
    }

    /// Where the partial sums of all ranks would lie in one memory.
    pub fn places(&self) -> Places {
        let held = |rank| self.accumulation_of(rank).partials.len();
        Places::new(self.layout, (0..self.world_size).map(held).collect())
    }

    /// How this rank adds up its own micro-batches.
    pub fn accumulation(&self) -> Accumulation {
        self.accumulation_of(self.rank)
    }

    fn accumulation_of(&self, rank: usize) -> Accumulation {
        let leaves = share(self.micro_batches, self.world_size, rank);
        match self.reduction {
            Reduction::Ordered if !active(Mutation::SequentialLeaves) => {
                Accumulation::along_tree(leaves, self.micro_batches)
            }
            _ => Accumulation::one_after_another(leaves, self.micro_batches),
        }
    }
}

/// Who owns what under the strategy that the configuration names.
pub fn ownership(kind: StrategyKind, setting: &Setting) -> Ownership {
    let shards = match kind == StrategyKind::Zero1 && active(Mutation::ShardAlignment) {
        false => setting.layout.shards(setting.world_size),
        true => zero1::unaligned_shards(setting),
    };
    Ownership::new(shards, setting.layout, kind == StrategyKind::Zero1)
}

/// The strategy that the configuration names. One that is `isolated` exchanges nothing: what is left of a step's time
/// is the most that communication could ever be hidden to, and its result is wrong.
pub fn build(
    kind: StrategyKind,
    setting: &Setting,
    ownership: &Ownership,
    isolated: bool,
) -> Box<dyn Strategy> {
    let shards = ownership.shards().to_vec();
    match kind {
        _ if isolated || setting.world_size == 1 => Box::new(Local),
        StrategyKind::Single => Box::new(Local),
        StrategyKind::Ddp => Box::new(Ddp::new(setting, shards)),
        StrategyKind::Zero1 => Box::new(Zero1::new(setting, shards)),
    }
}

/// Sums of squares of the blocks of this rank's shard of a bucket. They have an order of their own, which is the host's: from a
/// device the shard is copied.
pub fn square_sums(buffer: &Flat, shard: &Range<usize>) -> Result<Vec<f64>, TorchError> {
    let shard = buffer.read(shard.clone())?;
    Ok(match active(Mutation::NormByShard) {
        false => norm::square_sums(&shard),
        true => norm::single_precision_square_sum(&shard),
    })
}

/// Every bucket's sums of squares, for every rank: `mine[bucket]` are those of this rank's shard. What is missing at
/// the end counts as zeros: frozen buckets, which have no gradient.
pub fn gather_square_sums(
    comm: &dyn Comm,
    ownership: &Ownership,
    mine: &[Vec<f64>],
) -> Result<Vec<Vec<f64>>, CommError> {
    let blocks = |shard: &Range<usize>| shard.len().div_ceil(lockstep_record::BLOCK_ELEMENTS);
    let bytes: Vec<u8> = mine.iter().flatten().copied().flat_map(f64::to_le_bytes).collect();
    let mut messages = comm.all_gather_bytes("gather of square sums", &bytes)?;
    if active(Mutation::NormOfOwnShard) {
        let others = messages.iter_mut().enumerate().filter(|(rank, _)| *rank != comm.rank());
        others.for_each(|(_, message)| message.clear());
    }
    let mut values: Vec<_> = messages
        .iter()
        .map(|message| message.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)))
        .collect();
    let of_bucket = |shards: &Vec<Range<usize>>| {
        let mut sums = Vec::new();
        for (shard, values) in shards.iter().zip(&mut values) {
            sums.extend(values.by_ref().chain(std::iter::repeat(0.0)).take(blocks(shard)));
        }
        if active(Mutation::NormReducedTwice) {
            sums.iter_mut().for_each(|sum| *sum *= comm.size() as f64);
        }
        sums
    };
    Ok(ownership.shards().iter().map(of_bucket).collect())
}
