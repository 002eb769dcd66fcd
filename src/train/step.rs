//! The parts of one step that compute.

use lockstep_record::exit;

use super::stopwatch::{Part, Stopwatch};
use crate::data::{Split, StepSamples};
use crate::grad::norm;
use crate::launch::Failure;
use crate::metrics::Fingerprint;
use crate::model::Dropout;
use crate::mutate::{Mutation, active};
use crate::session::Session;
use crate::strategy::owned;

/// What this rank's micro-batches yielded, in micro-batch order.
pub struct Local {
    /// Each micro-batch's share of the step's loss.
    pub losses: Vec<f64>,
    /// Ids of the samples that were really used.
    pub samples: Vec<Vec<u64>>,
    /// Of each micro-batch's own gradient, one a parameter, where they are recorded.
    pub gradients: Vec<Vec<Fingerprint>>,
}

/// Runs this rank's micro-batches; their gradients end up in the accumulator.
pub fn forward_backward(
    session: &mut Session,
    step: u64,
    samples: &StepSamples,
    digests_due: bool,
    watch: &mut Stopwatch,
) -> Result<Local, Failure> {
    let mut local = Local { losses: Vec::new(), samples: Vec::new(), gradients: Vec::new() };
    let record = digests_due && session.config.record.local_gradients;
    let tokens = session.tokens() as f64;
    for (position, micro_batch) in session.micro_batches.clone().enumerate() {
        let ids = planted_samples(session, micro_batch, &samples.micro_batches[micro_batch]);
        let batch = session.micro_batch(Split::Train, &ids, Some(&samples.epochs[micro_batch]))?;
        watch.lap(Part::Data);
        let dropout = Dropout {
            probability: session.config.model.dropout,
            seed: session.config.run.seed,
            step,
            micro_batch,
            rank: session.comm.rank(),
        };
        let loss =
            session.model.loss(session.parameters.leaves(), &batch, Some(&dropout))?.f_div_scalar(tokens)?;
        local.losses.push(loss.f_double_value(&[])?);
        watch.lap(Part::Forward);
        loss.f_backward()?;
        let mut prints = Vec::new();
        let seen = |_: usize, gradient: &[f32]| {
            if record {
                prints.push(Fingerprint::of(gradient));
            }
        };
        session.accumulator.take(
            &session.layout,
            session.parameters.leaves_mut(),
            position,
            micro_batch,
            seen,
        )?;
        watch.lap(Part::Backward);
        local.samples.push(ids);
        local.gradients.push(prints);
    }
    Ok(local)
}

/// Stops all ranks before a gradient that is not finite reaches the parameters.
pub fn refuse_non_finite(session: &Session, step: u64, norms: &[f64]) -> Result<(), Failure> {
    let Some(index) = norms.iter().position(|norm| !norm.is_finite()) else { return Ok(()) };
    let message = format!(
        "step {step}: the gradient of {} is not finite (norm {}); nothing was updated. With a lower optim.lr, or with \
         optim.clip_norm, go on from the last checkpoint in a new run directory: --run-dir NEW --resume CHECKPOINT",
        session.layout.parameters[index].name, norms[index]
    );
    Err(Failure::shared(exit::INTERNAL, message))
}

/// Clips the owned part of the gradient and updates the owned part of the parameters.
pub fn update(session: &mut Session, step: u64, rate: f64, clip: f32) -> Result<(), Failure> {
    let owned = owned(&*session.strategy, session.comm.rank());
    for (flat, range) in session.accumulator.gradient_mut().iter_mut().zip(&owned) {
        norm::scale(flat.as_mut_slice(), range, clip);
    }
    let parameters = session.parameters.buffers_mut();
    session.optimizer.update(parameters, session.accumulator.gradient(), step, rate)?;
    Ok(())
}

/// Whether this rank is the one that a planted bug strikes.
fn struck(session: &Session) -> bool {
    session.comm.size() > 1 && session.comm.rank() + 1 == session.comm.size()
}

/// The sampler's ids, unless a planted bug swaps one.
fn planted_samples(session: &Session, micro_batch: usize, ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    if active(Mutation::OneSampleId) && struck(session) && micro_batch + 1 == session.micro_batches.end {
        ids[0] = (ids[0] + 1) % session.corpus.info().train_samples;
    }
    ids
}

/// The planted bug: one element of one rank's copy moves by one unit in the last place after step 2.
pub fn plant_parameter(session: &mut Session, step: u64) {
    if active(Mutation::OneRanksParameter) && struck(session) && step == 2 {
        let slot = session.layout.slots[0].clone();
        let value = &mut session.parameters.buffers_mut()[slot.bucket].as_mut_slice()[slot.offset];
        *value = f32::from_bits(value.to_bits() ^ 1);
    }
}
