//! Half the traffic: partial sums travel in 16 bits, and under DDP the step's gradient does, too.
//!
//! PyTorch's `bf16_compress_hook` and `fp16_compress_hook` round alike, but add in 16 bits and forget what rounding left
//! out. Here the additions are those of the ordered sum, in fp32. Feedback on both ways is that of DoubleSqueeze (Tang et
//! al. 2019).

use std::ops::Range;

use crate::comm::{Comm, CommError, Region, RegionMut};
use crate::grad::accumulate::PartialSums;
use crate::grad::exchange::{Exchange, all_gather};
use crate::grad::flat::Flat;
use crate::mutate::{Mutation, active};
use crate::precision::Format;
use crate::strategy::{Ownership, Setting, Strategy};
use crate::torch::TorchError;

pub struct Rounded {
    inner: Box<dyn Strategy>,
    format: Format,
    rank: usize,
    shards: Vec<Vec<Range<usize>>>,
    /// Whether every rank needs the whole gradient.
    gathers: bool,
    exchange: Exchange,
    residuals: Vec<Residuals>,
    /// Messages: this rank's subtrees, and the others' before and after they are widened.
    outgoing: Vec<Vec<u16>>,
    incoming: Vec<u16>,
    received: Flat,
}

/// What rounding left out of a bucket so far.
#[derive(Clone, Default)]
struct Residuals {
    /// Of each of this rank's subtrees.
    sums: Vec<Vec<f32>>,
    /// Of the step's gradient, over this rank's shard.
    gradient: Vec<f32>,
}

impl Rounded {
    pub fn new(inner: Box<dyn Strategy>, format: Format, setting: &Setting, ownership: &Ownership) -> Self {
        Self {
            inner,
            format,
            rank: setting.rank,
            shards: ownership.shards().to_vec(),
            gathers: !ownership.is_sharded(),
            exchange: Exchange::new(setting.micro_batches, setting.rank, setting.world_size),
            residuals: vec![Residuals::default(); ownership.shards().len()],
            outgoing: Vec::new(),
            incoming: Vec::new(),
            received: Flat::default(),
        }
    }

    /// This rank's subtrees in 16 bits, but for its own shard, which stays here as it is.
    fn round(&mut self, bucket: usize, sums: &PartialSums) -> Result<(), TorchError> {
        let mine = &self.shards[bucket][self.rank];
        let residuals = &mut self.residuals[bucket].sums;
        residuals.resize_with(sums.held().len(), Vec::new);
        self.outgoing.resize_with(sums.held().len(), Vec::new);
        for ((sum, residual), rounded) in sums.held().iter().zip(residuals).zip(&mut self.outgoing) {
            let sum = sum.read(0..sum.len())?;
            residual.resize(sum.len(), 0.0);
            rounded.resize(sum.len(), 0);
            for part in [0..mine.start, mine.end..sum.len()] {
                self.format.round_with_feedback(
                    &sum[part.clone()],
                    &mut residual[part.clone()],
                    &mut rounded[part],
                );
            }
        }
        Ok(())
    }

    /// The other ranks' shards of the step's gradient. This rank takes its own rounded, too: all replicas are the same.
    fn gather(&mut self, comm: &dyn Comm, bucket: usize, gradient: &mut Flat) -> Result<(), CommError> {
        let shards = &self.shards[bucket];
        let mine = shards[self.rank].clone();
        let residual = &mut self.residuals[bucket].gradient;
        residual.resize(mine.len(), 0.0);
        let rounded = &mut self.outgoing[0];
        let own = gradient.read(mine.clone())?;
        self.format.round_with_feedback(&own, residual, &mut rounded[mine.clone()]);
        let own = active(Mutation::OwnShardNotRounded).then(|| own.into_owned());
        all_gather(comm, RegionMut::parts(rounded, shards))?;
        gradient.overwrite(0..rounded.len(), |values| self.format.widen(rounded, values))?;
        if let Some(own) = own {
            gradient.overwrite(mine, |values| values.copy_from_slice(&own))?;
        }
        Ok(())
    }
}

impl Strategy for Rounded {
    fn reduce(&mut self, comm: &dyn Comm, bucket: usize, sums: &mut PartialSums) -> Result<(), CommError> {
        self.round(bucket, sums)?;
        let shards = &self.shards[bucket];
        let places = self.exchange.places(shards[self.rank].len());
        let length = places.last().map_or(0, |last| last.end);
        self.incoming.resize(length, 0);
        let subtree = |index: usize, chunk: &Range<usize>| Region::of(&self.outgoing[index][chunk.clone()]);
        let received = RegionMut::parts(&mut self.incoming, &places);
        self.exchange.swap(comm, shards, &subtree, received)?;
        self.received.make_room(sums.home(), length)?;
        self.received.overwrite(0..length, |values| self.format.widen(&self.incoming, values))?;
        self.exchange.add_up(sums, shards[self.rank].clone(), &mut self.received)?;
        match self.gathers {
            true => self.gather(comm, bucket, sums.gradient_mut()),
            false => Ok(()),
        }
    }

    fn publishes(&self) -> bool {
        self.inner.publishes()
    }

    fn publish(&mut self, comm: &dyn Comm, bucket: usize, parameters: &mut Flat) -> Result<(), CommError> {
        self.inner.publish(comm, bucket, parameters)
    }
}
