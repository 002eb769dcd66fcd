//! Which samples a step trains on: a pure function of the seed, the batch's shape and the step.
//!
//! The epochs, each a permutation of all samples, follow one another in one endless stream, and every step takes the
//! next `micro_batches * micro_batch_size` ids of it. Ranks are not in the formula: a rank reads the micro-batches
//! that [`crate::partition::share`] gives it out of the same [`StepSamples`]. So ranks agree on the number of steps,
//! their ids are disjoint and complete, and a run goes on at any step with any number of ranks.

use crate::mutate::{Mutation, active, since_resume};
use crate::random::Stream;

/// Why there is no sampler for these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    #[error("there is no sample to train on: use a longer text, or a smaller model.context")]
    NoSamples,
    #[error("{0} samples are more than a sampler can permute (4294967295): set data.max_samples")]
    TooManySamples(u64),
    #[error(
        "a step of {micro_batches} micro-batches of {micro_batch_size} samples is empty or too large: \
         check batch.micro_batches and batch.micro_batch_size"
    )]
    BatchShape { micro_batches: usize, micro_batch_size: usize },
}

/// The samples of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSamples {
    /// Epoch of the step's first sample, from 0.
    pub epoch: u64,
    /// Sample ids of every micro-batch, over all ranks, in micro-batch order.
    pub micro_batches: Vec<Vec<u64>>,
    /// Epoch that each of them is visited in: a step may straddle two.
    pub epochs: Vec<Vec<u64>>,
}

/// Yields the samples of any step. Its only state is a cache of the permutation used last.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    samples: u32,
    micro_batches: usize,
    micro_batch_size: usize,
    cached: Option<(u64, Vec<u32>)>,
}

impl Sampler {
    /// A sampler of `samples` samples, reshuffled every epoch by `seed`.
    pub fn new(
        seed: u64,
        samples: u64,
        micro_batches: usize,
        micro_batch_size: usize,
    ) -> Result<Self, SamplerError> {
        match micro_batches.checked_mul(micro_batch_size) {
            Some(1..=0xffff_ffff) => {}
            _ => return Err(SamplerError::BatchShape { micro_batches, micro_batch_size }),
        }
        match u32::try_from(samples) {
            Ok(0) => Err(SamplerError::NoSamples),
            Ok(samples) => Ok(Self { seed, samples, micro_batches, micro_batch_size, cached: None }),
            Err(_) => Err(SamplerError::TooManySamples(samples)),
        }
    }

    /// The samples of update `step`, counted from 1. Any order of calls gives the same answers; ascending steps are
    /// quick, because neighbours share a permutation.
    ///
    /// # Panics
    /// At step 0, which is the initial state and trains on nothing.
    pub fn step(&mut self, step: u64) -> StepSamples {
        assert!(step > 0, "steps are counted from 1");
        let step = planted_step(step);
        let (size, per_step) = (self.micro_batch_size, (self.micro_batches * self.micro_batch_size) as u128);
        let first = u128::from(step - 1) * per_step;
        let epoch = first / u128::from(self.samples);
        let position = |index: usize, j: usize| first + (index * size + j) as u128;
        let micro_batches = (0..self.micro_batches)
            .map(|index| (0..size).map(|j| self.id_at(position(index, j))).collect())
            .collect();
        let epoch_at = |position: u128| (position / u128::from(self.samples)) as u64;
        let epochs = (0..self.micro_batches)
            .map(|index| (0..size).map(|j| epoch_at(position(index, j))).collect())
            .collect();
        StepSamples { epoch: epoch as u64, micro_batches, epochs }
    }

    /// The sample id at one position of the stream of epochs.
    fn id_at(&mut self, position: u128) -> u64 {
        let mut whole = u128::from(self.samples);
        if active(Mutation::DropLast) {
            whole -= whole % (self.micro_batches * self.micro_batch_size) as u128;
        }
        let (epoch, within) = (position / whole, position % whole);
        let epoch = epoch as u64;
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.cached = Some((epoch, permutation(self.seed, epoch, self.samples)));
        }
        self.cached.as_ref().map_or(0, |(_, order)| u64::from(order[within as usize]))
    }
}

/// The step itself, unless a bug is planted: a resume that does not find its place.
fn planted_step(step: u64) -> u64 {
    let restarted = since_resume(Mutation::SamplerRestarts).map(|from| step - from);
    let skipped = since_resume(Mutation::SkipsTwice).map(|from| step + from);
    restarted.or(skipped).unwrap_or(step)
}

/// The order of an epoch: Fisher–Yates from the last place to the first, driven by the epoch's own random stream.
fn permutation(seed: u64, epoch: u64, samples: u32) -> Vec<u32> {
    let seed = if active(Mutation::SeedNotUsed) { 0 } else { seed };
    let epoch = if active(Mutation::EpochNotSet) { 0 } else { epoch };
    let mut order: Vec<u32> = (0..samples).collect();
    let mut draws = Draws { stream: Stream::sample_order(seed, epoch), buffer: [0; 256], next: 0 };
    for place in (1..samples).rev() {
        order.swap(place as usize, draws.below(place + 1) as usize);
    }
    order
}

/// Reads a random stream from its start.
struct Draws {
    stream: Stream,
    buffer: [u32; 256],
    next: u64,
}

impl Draws {
    /// A number in `0..bound`, each equally likely: the multiplication of Lemire ("Fast random integer generation in
    /// an interval", 2019), which draws again in the few cases that would favour some numbers.
    fn below(&mut self, bound: u32) -> u32 {
        let biased = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.word()) * u64::from(bound);
            if product as u32 >= biased {
                return (product >> 32) as u32;
            }
        }
    }

    fn word(&mut self) -> u32 {
        let within = (self.next % 256) as usize;
        if within == 0 {
            self.stream.fill_u32_at(self.next, &mut self.buffer);
        }
        self.next += 1;
        self.buffer[within]
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
