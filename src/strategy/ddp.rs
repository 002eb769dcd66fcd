//! Distributed data parallel: every rank ends up with the whole gradient and does the whole update.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::config::schema::Reduction;
use crate::grad::accumulate::Accumulator;
use crate::grad::exchange::Exchange;
use crate::grad::flat::Flat;

pub struct Ddp {
    shards: Vec<Vec<Range<usize>>>,
    reduction: Reduction,
    exchange: Exchange,
}

impl Ddp {
    pub fn new(setting: &Setting) -> Self {
        Self {
            shards: setting.layout.shards(setting.world_size),
            reduction: setting.reduction,
            exchange: Exchange::new(setting.micro_batches, setting.rank, setting.world_size),
        }
    }

    /// Reduce-scatter along the tree, then all-gather: as much traffic as a ring all-reduce.
    fn reduce_ordered(&mut self, comm: &dyn Comm, gradients: &mut Accumulator) -> Result<(), CommError> {
        for (bucket, shards) in self.shards.iter().enumerate() {
            if gradients.gradient()[bucket].is_empty() {
                continue;
            }
            let counts: Vec<usize> = shards.iter().map(Range::len).collect();
            let shard = self.exchange.reduce_scatter(comm, gradients, bucket, shards)?;
            comm.all_gather(shard, gradients.gradient_mut()[bucket].as_mut_slice(), &counts)?;
        }
        Ok(())
    }
}

impl Strategy for Ddp {
    fn shards(&self) -> &[Vec<Range<usize>>] {
        &self.shards
    }

    fn is_sharded(&self) -> bool {
        false
    }

    fn reduce(&mut self, comm: &dyn Comm, gradients: &mut Accumulator) -> Result<(), CommError> {
        match self.reduction {
            Reduction::Ordered => self.reduce_ordered(comm, gradients),
            Reduction::Native => gradients
                .gradient_mut()
                .iter_mut()
                .filter(|flat| !flat.is_empty())
                .try_for_each(|flat| comm.all_reduce_native(flat.as_mut_slice())),
        }
    }

    fn publish(&mut self, _: &dyn Comm, _: &mut [Flat]) -> Result<(), CommError> {
        Ok(())
    }
}
