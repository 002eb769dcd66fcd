//! Distributed data parallel: every rank ends up with the whole gradient and does the whole update.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::config::schema::Reduction;
use crate::grad::accumulate::PartialSums;
use crate::grad::exchange::Exchange;
use crate::grad::norm;
use crate::mutate::{Mutation, active, active_in, strikes};
use crate::torch::TorchError;

pub struct Ddp {
    shards: Vec<Vec<Range<usize>>>,
    reduction: Reduction,
    exchange: Exchange,
}

impl Ddp {
    pub fn new(setting: &Setting, shards: Vec<Vec<Range<usize>>>) -> Self {
        let exchange = Exchange::new(setting.micro_batches, setting.rank, setting.world_size);
        let exchange = exchange.in_format(setting.format).in_common(setting.shared.clone());
        Self { shards, reduction: setting.reduction, exchange }
    }
}

/// The planted bug: one element more for the first rank, one less for the last.
fn shifted(shards: &[Range<usize>]) -> Vec<Range<usize>> {
    let end = shards.last().map_or(0, |shard| shard.end);
    let shift = |at: usize| if at == 0 || at == end { at } else { at + 1 };
    shards.iter().map(|shard| shift(shard.start)..shift(shard.end)).collect()
}

/// The planted bugs of a sum that each rank keeps to itself.
fn not_reduced(bucket: usize) -> bool {
    active(Mutation::NoReduction)
        || active_in(Mutation::NoSyncLeftOn, 3)
        || active(Mutation::BucketNotReduced) && bucket == 1
}

/// The planted bug: this rank's sums are clipped, bucket by bucket, before they are exchanged.
fn clip_early(sums: &mut PartialSums) -> Result<(), TorchError> {
    if !active(Mutation::ClipBeforeReduction) {
        return Ok(());
    }
    for sum in sums.held_mut() {
        let all = 0..sum.len();
        let norm = norm::square_sums(&sum.read(all.clone())?).iter().sum::<f64>().sqrt();
        sum.scale(&all, norm::clip_coefficient(norm, Some(0.01)))?;
    }
    Ok(())
}

impl Strategy for Ddp {
    /// Ordered: reduce-scatter along the tree, then all-gather; as much traffic as a ring all-reduce. Where the ranks see one
    /// memory, there is none.
    fn reduce(&mut self, comm: &dyn Comm, bucket: usize, sums: &mut PartialSums) -> Result<(), CommError> {
        if not_reduced(bucket) {
            return Ok(());
        }
        clip_early(sums)?;
        let all = 0..sums.gradient().len();
        let own = strikes(Mutation::OneRankUnreduced, comm.rank(), comm.size()) && bucket == 0;
        let own = if own { Some(sums.gradient().read(all.clone())?.into_owned()) } else { None };
        match self.reduction {
            Reduction::Native => comm.all_reduce_native(sums.gradient_mut().region_mut(&all))?,
            Reduction::Ordered => {
                let shards = &self.shards[bucket];
                let gathered = match strikes(Mutation::GatherLength, comm.rank(), comm.size()) {
                    false => shards,
                    true => &shifted(shards),
                };
                self.exchange.all_reduce(comm, bucket, sums, (shards, gathered))?;
            }
        }
        if let Some(own) = own {
            sums.gradient_mut().overwrite(all.clone(), |values| values.copy_from_slice(&own))?;
        }
        if active(Mutation::GradientSum) {
            sums.gradient_mut().scale(&all, comm.size() as f32)?;
        }
        Ok(())
    }
}
