//! ZeRO stage 1 (Rajbhandari et al. 2020): each rank keeps the optimizer's state of its shard of every bucket,
//! receives the gradient of that shard only, updates it, and gathers the others' parameters.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::config::schema::Reduction;
use crate::grad::accumulate::Accumulator;
use crate::grad::exchange::Exchange;
use crate::grad::flat::Flat;
use crate::mutate::{Mutation, active};

pub struct Zero1 {
    rank: usize,
    shards: Vec<Vec<Range<usize>>>,
    /// By bucket.
    frozen: Vec<bool>,
    reduction: Reduction,
    exchange: Exchange,
    scratch: Vec<f32>,
}

impl Zero1 {
    pub fn new(setting: &Setting) -> Self {
        let shards = match active(Mutation::ShardAlignment) {
            false => setting.layout.shards(setting.world_size),
            true => unaligned_shards(setting),
        };
        Self {
            rank: setting.rank,
            shards,
            frozen: setting.layout.buckets.iter().map(|bucket| bucket.frozen).collect(),
            reduction: setting.reduction,
            exchange: Exchange::new(setting.micro_batches, setting.rank, setting.world_size),
            scratch: Vec::new(),
        }
    }
}

/// The planted bug: an even split of the elements, which cuts blocks and vectors.
fn unaligned_shards(setting: &Setting) -> Vec<Vec<Range<usize>>> {
    // An odd offset, so that no boundary of a vector is hit by chance.
    let odd = |at: usize, elements: usize| if at == 0 || at == elements { at } else { at + 7 };
    let shard = |elements: usize, rank| {
        let even = crate::partition::share(elements, setting.world_size, rank);
        odd(even.start, elements)..odd(even.end, elements)
    };
    let of_bucket = |elements| (0..setting.world_size).map(|rank| shard(elements, rank)).collect();
    setting.layout.buckets.iter().map(|bucket| of_bucket(bucket.elements)).collect()
}

impl Strategy for Zero1 {
    fn shards(&self) -> &[Vec<Range<usize>>] {
        &self.shards
    }

    fn is_sharded(&self) -> bool {
        true
    }

    fn reduce(&mut self, comm: &dyn Comm, gradients: &mut Accumulator) -> Result<(), CommError> {
        for (bucket, shards) in self.shards.iter().enumerate() {
            if self.frozen[bucket] {
                continue;
            }
            let mine = shards[self.rank].clone();
            match self.reduction {
                Reduction::Ordered => {
                    let shard = self.exchange.reduce_scatter(comm, gradients, bucket, shards)?;
                    gradients.gradient_mut()[bucket].as_mut_slice()[mine].copy_from_slice(shard);
                }
                Reduction::Native => {
                    let counts: Vec<usize> = shards.iter().map(Range::len).collect();
                    self.scratch.resize(mine.len(), 0.0);
                    comm.reduce_scatter_native(
                        gradients.gradient()[bucket].as_slice(),
                        &mut self.scratch,
                        &counts,
                    )?;
                    gradients.gradient_mut()[bucket].as_mut_slice()[mine].copy_from_slice(&self.scratch);
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, comm: &dyn Comm, parameters: &mut [Flat]) -> Result<(), CommError> {
        for (bucket, (flat, shards)) in parameters.iter_mut().zip(&self.shards).enumerate() {
            if self.frozen[bucket] {
                continue;
            }
            let counts: Vec<usize> = shards.iter().map(Range::len).collect();
            self.scratch.clear();
            self.scratch.extend_from_slice(&flat.as_slice()[shards[self.rank].clone()]);
            comm.all_gather(&self.scratch, flat.as_mut_slice(), &counts)?;
        }
        Ok(())
    }
}
