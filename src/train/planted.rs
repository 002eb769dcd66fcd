//! The planted bugs of a step: what is done instead of the right thing while one of them is on. See [`crate::mutate`].

use std::sync::{Mutex, PoisonError};

use tch::Tensor;

use super::measure::Numbers;
use crate::data::{DataError, Split};
use crate::grad::flat::Flat;
use crate::grad::norm;
use crate::launch::Failure;
use crate::mutate::{Mutation, active, active_from, active_in, cut_to_bf16, strikes};
use crate::session::Session;
use crate::torch::TorchError;

/// The parameter whose hook is lost: the weight of the GPT's first feed-forward layer.
const LOST: usize = 10;

/// Whether a bug strikes this rank.
fn struck(session: &Session, mutation: Mutation) -> bool {
    strikes(mutation, session.comm.rank(), session.comm.size())
}

/// Ranks that do not go on.
pub fn begin(session: &Session, step: u64) {
    while struck(session, Mutation::EndlessLoop) && step == 3 {
        std::hint::spin_loop();
    }
    if struck(session, Mutation::RankLeaves) && step == 3 {
        std::process::exit(0);
    }
}

/// What each of a micro-batch's losses is divided by: its targets in the global batch, `targets`, unless a bug is planted.
/// `samples` are those of the whole step.
pub fn divisors(
    session: &Session,
    targets: &[u64],
    samples: &[Vec<u64>],
    micro_batch: usize,
) -> Result<Vec<f64>, DataError> {
    let count = |ids: &[Vec<u64>]| session.targets(Split::Train, ids);
    let (ranks, micro_batches) = (session.comm.size() as f64, samples.len() as f64);
    let mut divisors: Vec<f64> = targets.iter().map(|&count| count as f64).collect();
    let own = || count(&samples[session.micro_batches.clone()]);
    match () {
        () if active(Mutation::MeanPerRank) => scaled(&mut divisors, &own()?, ranks),
        () if active(Mutation::ActionsPerRank) => {
            let last = divisors.len() - 1;
            scaled(&mut divisors[last..], &own()?[last..], ranks);
        }
        () if active(Mutation::MeanOfMeans) => {
            let alone = count(&samples[micro_batch..=micro_batch])?;
            scaled(&mut divisors, &alone, micro_batches);
        }
        () if active(Mutation::LocalMean) => scaled(&mut divisors, &own()?, 1.0),
        () if active(Mutation::OneCount) => divisors.fill(targets.iter().sum::<u64>() as f64),
        () if active(Mutation::LossOffByOne) => divisors.iter_mut().for_each(|divisor| *divisor += 1.0),
        () => {}
    }
    Ok(divisors)
}

fn scaled(divisors: &mut [f64], counts: &[u64], factor: f64) {
    for (divisor, &count) in divisors.iter_mut().zip(counts) {
        *divisor = count as f64 * factor;
    }
}

/// The ids of this rank's `position`-th micro-batch, given the sampler's for all.
pub fn samples(session: &Session, position: usize, all: &[Vec<u64>]) -> Vec<u64> {
    let micro_batch = session.micro_batches.start + position;
    let index = match () {
        () if active(Mutation::RanksOverlap) => position,
        () if active(Mutation::SwappedRanks) => all.len() - 1 - micro_batch,
        () => micro_batch,
    };
    let mut ids = all[index].clone();
    if struck(session, Mutation::OneSampleId) && micro_batch + 1 == session.micro_batches.end {
        ids[0] = (ids[0] + 1) % session.corpus.info().train_samples;
    }
    ids
}

/// The part of the data that a micro-batch is taken from.
pub fn split(micro_batch: usize) -> Split {
    let validation = active_in(Mutation::TrainsOnValidation, 3) && micro_batch == 1;
    if validation { Split::Validation } else { Split::Train }
}

/// The loss that goes backward: of one micro-batch NaN, in steps 3 and 4 or from step 3 on; or without a loss scale that
/// was never put in.
pub fn scale(step: u64, micro_batch: usize, loss: Tensor) -> Tensor {
    let nan =
        active(Mutation::NanGradient) && matches!(step, 3 | 4) || active(Mutation::NanGradients) && step >= 3;
    match () {
        () if nan && micro_batch == 1 => loss * f64::NAN,
        // Finite in fp32: what it meets in fp16 overflows.
        () if active(Mutation::LossSpike) && step == 3 && micro_batch == 1 => loss * 1e12,
        () if active(Mutation::UnscaledTwice) => loss / 65536.0,
        () => loss,
    }
}

/// Whether this rank does not see that another's gradient is not finite.
pub fn overlooks(session: &Session) -> bool {
    struck(session, Mutation::FoundInfOnOneRank)
}

/// The parameter whose gradient does not arrive.
pub fn lost_hook(session: &Session, step: u64) -> Option<usize> {
    (struck(session, Mutation::LostHook) && step >= 3).then_some(LOST)
}

/// A gradient that is reduced already: that of the model's first parameter, or of the last bucket.
pub fn change_gradient(session: &mut Session, step: u64) -> Result<(), Failure> {
    static EARLIER: Mutex<Vec<f32>> = Mutex::new(Vec::new());
    if active(Mutation::ScaledTensor) {
        let slot = session.layout.slots[0].clone();
        session.accumulator.gradient_mut(slot.bucket).scale(&slot.range(), 1.000_001)?;
    }
    if active(Mutation::StaleBucket) {
        let bucket = session.layout.trained_buckets() - 1;
        let gradient = session.accumulator.gradient_mut(bucket);
        let mut earlier = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
        gradient.edit(0..gradient.len(), |gradient| {
            if step == 4 && earlier.len() == gradient.len() {
                gradient.copy_from_slice(&earlier);
            }
            *earlier = gradient.to_vec();
        })?;
    }
    Ok(())
}

/// What this rank's update is scaled by, given each tensor's norm.
pub fn numbers(session: &Session, norms: &[f64], numbers: Numbers) -> Numbers {
    let largest = || norms.iter().copied().fold(0.0, f64::max);
    let limit = session.config.optim.clip_norm;
    match () {
        () if struck(session, Mutation::RateOnOneRank) => Numbers { rate: numbers.rate * 1.5, ..numbers },
        () if struck(session, Mutation::ClipOnSomeRanks) => Numbers { clip: 1.0, ..numbers },
        () if active(Mutation::ClipByLargestTensor) => {
            Numbers { clip: norm::clip_coefficient(largest(), limit), ..numbers }
        }
        () => numbers,
    }
}

/// What one bucket is scaled by, instead of `clip`.
pub fn clip_of(bucket: usize, clip: f32) -> f32 {
    match () {
        () if active(Mutation::ClipSkipsABucket) && bucket == 0 => 1.0,
        () if active(Mutation::ClippedTwice) => clip * clip,
        () => clip,
    }
}

/// Whether this rank makes no update.
pub fn update_left_out(session: &Session, step: u64) -> bool {
    struck(session, Mutation::UpdateSkippedOnOneRank) && step == 3
}

/// Whether parameters are published before their update.
pub fn gathers_early() -> bool {
    active(Mutation::GatherBeforeUpdate)
}

/// Parameters after their update, in 16 bits.
pub fn cut_masters(parameters: &mut Flat) -> Result<(), TorchError> {
    if active_from(Mutation::MastersCut, 3) {
        let cut = |values: &mut [f32]| values.iter_mut().for_each(|value| *value = cut_to_bf16(*value));
        parameters.edit(0..parameters.len(), cut)?;
    }
    Ok(())
}

/// One element of one rank's copy moves by one unit in the last place after step 2.
pub fn move_parameter(session: &mut Session, step: u64) -> Result<(), Failure> {
    if struck(session, Mutation::OneRanksParameter) && step == 2 {
        session.reducer.arrive_all()?;
        let slot = session.layout.slots[0].clone();
        let bucket = &mut session.parameters.buffers_mut()[slot.bucket];
        bucket.edit(slot.range(), |values| values[0] = f32::from_bits(values[0].to_bits() ^ 1))?;
    }
    Ok(())
}
