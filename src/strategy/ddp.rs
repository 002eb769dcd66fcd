//! Distributed data parallel: every rank ends up with the whole gradient and does the whole update.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::config::schema::Reduction;
use crate::grad::accumulate::PartialSums;
use crate::grad::exchange::Exchange;
use crate::grad::norm;
use crate::mutate::{Mutation, active, active_in, strikes};

pub struct Ddp {
    shards: Vec<Vec<Range<usize>>>,
    reduction: Reduction,
    exchange: Exchange,
}

impl Ddp {
    pub fn new(setting: &Setting, shards: Vec<Vec<Range<usize>>>) -> Self {
        let exchange = Exchange::new(setting.micro_batches, setting.rank, setting.world_size);
        let exchange = exchange.in_format(setting.format);
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
fn clip_early(sums: &mut PartialSums) {
    if !active(Mutation::ClipBeforeReduction) {
        return;
    }
    for sum in sums.held_mut() {
        let all = 0..sum.len();
        let norm = norm::shard_square_sums(sum.as_slice(), &all).iter().sum::<f64>().sqrt();
        norm::scale(sum.as_mut_slice(), &all, norm::clip_coefficient(norm, Some(0.01)));
    }
}

impl Strategy for Ddp {
    /// Ordered: reduce-scatter along the tree, then all-gather; as much traffic as a ring all-reduce.
    fn reduce(&mut self, comm: &dyn Comm, bucket: usize, sums: &mut PartialSums) -> Result<(), CommError> {
        if not_reduced(bucket) {
            return Ok(());
        }
        clip_early(sums);
        let own = strikes(Mutation::OneRankUnreduced, comm.rank(), comm.size()) && bucket == 0;
        let own = own.then(|| sums.gradient().as_slice().to_vec());
        match self.reduction {
            Reduction::Native => comm.all_reduce_native(sums.gradient_mut().as_mut_slice())?,
            Reduction::Ordered => {
                let shards = &self.shards[bucket];
                self.exchange.reduce_scatter(comm, sums, shards)?;
                let gathered = match strikes(Mutation::GatherLength, comm.rank(), comm.size()) {
                    false => shards,
                    true => &shifted(shards),
                };
                self.exchange.gather(comm, sums.gradient_mut().as_mut_slice(), gathered)?;
            }
        }
        let gradient = sums.gradient_mut().as_mut_slice();
        if let Some(own) = own {
            gradient.copy_from_slice(&own);
        }
        if active(Mutation::GradientSum) {
            gradient.iter_mut().for_each(|value| *value *= comm.size() as f32);
        }
        Ok(())
    }
}
