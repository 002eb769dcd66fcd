//! ZeRO stage 1 (Rajbhandari et al. 2020): each rank keeps the optimizer's state of its shard of every bucket,
//! receives the gradient of that shard only, updates it, and gathers the others' parameters.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::config::schema::Reduction;
use crate::grad::accumulate::PartialSums;
use crate::grad::exchange::{Exchange, all_gather};
use crate::grad::flat::Flat;
use crate::mutate::{Mutation, active};
use crate::partition::share;
use crate::torch::TorchError;

pub struct Zero1 {
    rank: usize,
    shards: Vec<Vec<Range<usize>>>,
    reduction: Reduction,
    exchange: Exchange,
    scratch: Flat,
}

impl Zero1 {
    pub fn new(setting: &Setting, shards: Vec<Vec<Range<usize>>>) -> Self {
        Self {
            rank: setting.rank,
            shards,
            reduction: setting.reduction,
            exchange: Exchange::new(setting.micro_batches, setting.rank, setting.world_size)
                .in_format(setting.format)
                .in_common(setting.shared.clone()),
            scratch: Flat::default(),
        }
    }
}

/// The planted bug: an even split of the elements, which cuts blocks and vectors.
pub fn unaligned_shards(setting: &Setting) -> Vec<Vec<Range<usize>>> {
    // An odd offset, so that no boundary of a vector is hit by chance.
    let odd = |at: usize, elements: usize| if at == 0 || at == elements { at } else { at + 7 };
    let shard = |elements: usize, rank| {
        let even = share(elements, setting.world_size, rank);
        odd(even.start, elements)..odd(even.end, elements)
    };
    let of_bucket = |elements| (0..setting.world_size).map(|rank| shard(elements, rank)).collect();
    setting.layout.buckets.iter().map(|bucket| of_bucket(bucket.elements)).collect()
}

/// The planted bugs of a shard of the gradient.
fn plant(gradient: &mut Flat, shard: &Range<usize>) -> Result<(), TorchError> {
    if active(Mutation::WrongGroupSize) {
        gradient.scale(shard, 0.5)?;
    }
    if active(Mutation::ShiftedShard) && !shard.is_empty() {
        gradient.edit(shard.clone(), |values| values.rotate_right(1))?;
    }
    Ok(())
}

impl Strategy for Zero1 {
    fn reduce(&mut self, comm: &dyn Comm, bucket: usize, sums: &mut PartialSums) -> Result<(), CommError> {
        let shards = &self.shards[bucket];
        if self.reduction == Reduction::Ordered {
            self.exchange.reduce_scatter(comm, bucket, sums, shards)?;
            return Ok(plant(sums.gradient_mut(), &shards[self.rank])?);
        }
        let (mine, whole) = (&shards[self.rank], 0..sums.gradient().len());
        let counts: Vec<usize> = shards.iter().map(Range::len).collect();
        self.scratch.make_room(sums.home(), mine.len())?;
        let place = self.scratch.region_mut(&(0..mine.len()));
        comm.reduce_scatter_native(sums.gradient().region(&whole), place, &counts)?;
        Ok(sums.gradient_mut().copy_from(mine, &self.scratch)?)
    }

    fn publishes(&self) -> bool {
        true
    }

    fn publish(&mut self, comm: &dyn Comm, bucket: usize, parameters: &mut Flat) -> Result<(), CommError> {
        if active(Mutation::GatherSkipped) || active(Mutation::GatherSkipsABucket) && bucket == 1 {
            return Ok(());
        }
        all_gather(comm, parameters.regions_mut(&self.shards[bucket]))
    }
}
