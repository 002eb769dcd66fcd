//! The parts of one step that compute.

use lockstep_record::exit;

use tch::Tensor;

use super::stopwatch::{Part, Stopwatch};
use crate::config::schema::{NonFinite, UnusedParameters};
use crate::data::{Split, StepSamples};
use crate::grad::norm;
use crate::grad::unused::{self, ParameterSet, Usage};
use crate::launch::Failure;
use crate::metrics::Fingerprint;
use crate::model::Dropout;
use crate::mutate::{Mutation, active};
use crate::session::Session;
use crate::strategy::owned;

/// Steps that may be skipped one after the other. A loss scale or a spike that a schedule recovers from is over sooner;
/// parameters that are spoilt are not, and every further step would be wasted.
const SKIPPED_IN_A_ROW_MAX: u64 = 10;

/// What this rank's micro-batches yielded, in micro-batch order.
#[derive(Default)]
pub struct Local {
    /// Each micro-batch's share of the step's loss.
    pub losses: Vec<f64>,
    /// Ids of the samples that were really used.
    pub samples: Vec<Vec<u64>>,
    /// Of each micro-batch's own gradient, one a trained parameter, where they are recorded.
    pub gradients: Vec<Vec<Fingerprint>>,
    /// Which parameters got a gradient.
    pub usage: Usage,
}

/// Runs this rank's micro-batches; their gradients end up in the accumulator.
pub fn forward_backward(
    session: &mut Session,
    step: u64,
    samples: &StepSamples,
    digests_due: bool,
    watch: &mut Stopwatch,
) -> Result<Local, Failure> {
    let mut local = Local::default();
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
        planted_nan(step, micro_batch, loss).f_backward()?;
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
            &mut local.usage,
            seen,
        )?;
        watch.lap(Part::Backward);
        local.samples.push(ids);
        local.gradients.push(prints);
    }
    match session.config.parallel.unused_parameters {
        UnusedParameters::Error if !local.usage.missed.is_empty() => {
            let message = unused::complaint(&session.layout, step, &local.usage.missed);
            Err(Failure::alone(exit::INTERNAL, message))
        }
        _ => Ok(local),
    }
}

/// The parameters to leave out of the update, the same on all ranks: under `detect`, those that no micro-batch used.
/// Each is named once in the log.
pub fn unused_parameters(session: &mut Session, step: u64, usage: &Usage) -> Result<ParameterSet, Failure> {
    if session.config.parallel.unused_parameters != UnusedParameters::Detect {
        return Ok(ParameterSet::default());
    }
    let ranks = session.comm.all_gather_bytes(&usage.used.to_bytes())?;
    let unused = unused::unused_by_all(&session.layout, &ranks);
    let new: ParameterSet = unused.iter().filter(|&index| !session.named_unused.contains(index)).collect();
    new.iter().for_each(|index| session.named_unused.insert(index));
    if session.comm.rank() == 0 && !new.is_empty() {
        let names: Vec<&str> =
            new.iter().map(|index| session.layout.parameters[index].name.as_str()).collect();
        tracing::warn!(
            step,
            "no micro-batch used these parameters, so they were not updated: {}",
            names.join(", ")
        );
    }
    Ok(unused)
}

/// Keeps a gradient that is not finite from the parameters. All ranks know the norms and decide alike: to end, or to
/// leave out this update, and then the tensor that is the reason is returned.
pub fn refuse_non_finite(session: &mut Session, step: u64, norms: &[f64]) -> Result<Option<String>, Failure> {
    let Some(index) = norms.iter().position(|norm| !norm.is_finite()) else {
        session.skipped_in_a_row = 0;
        return Ok(None);
    };
    let name = session.layout.parameters[index].name.clone();
    let fault = format!("step {step}: the gradient of {name} is not finite (norm {})", norms[index]);
    let remedy = "With a lower optim.lr, or with optim.clip_norm, go on from the last checkpoint in a new run directory: \
                  --run-dir NEW --resume CHECKPOINT";
    if session.config.optim.non_finite == NonFinite::Stop {
        return Err(Failure::shared(exit::INTERNAL, format!("{fault}; nothing was updated. {remedy}")));
    }
    session.skipped_in_a_row += 1;
    if session.skipped_in_a_row >= SKIPPED_IN_A_ROW_MAX {
        let count = session.skipped_in_a_row;
        let message =
            format!("{fault}, and so it was in {count} steps in a row, which were skipped. {remedy}");
        return Err(Failure::shared(exit::INTERNAL, message));
    }
    if session.comm.rank() == 0 {
        tracing::warn!("{fault}; the update is skipped");
    }
    Ok(Some(name))
}

/// Clips the owned part of the gradient and updates the owned part of the parameters, except those that are `unused`.
pub fn update(
    session: &mut Session,
    step: u64,
    rate: f64,
    clip: f32,
    unused: &ParameterSet,
) -> Result<(), Failure> {
    let owned = owned(&*session.strategy, &session.layout, session.comm.rank());
    for (flat, range) in session.accumulator.gradient_mut().iter_mut().zip(&owned) {
        norm::scale(flat.as_mut_slice(), range, clip);
    }
    let Session { layout, parameters, optimizer, accumulator, .. } = session;
    optimizer.update(layout, unused, parameters.buffers_mut(), accumulator.gradient(), step, rate)?;
    Ok(())
}

/// Leaves all parameters out of this update.
pub fn skip_update(session: &mut Session) {
    session.optimizer.leave_out(session.layout.trained());
}

/// The planted bug: one micro-batch's gradient is NaN, in steps 3 and 4 or from step 3 on.
fn planted_nan(step: u64, micro_batch: usize, loss: Tensor) -> Tensor {
    let planted =
        active(Mutation::NanGradient) && matches!(step, 3 | 4) || active(Mutation::NanGradients) && step >= 3;
    if planted && micro_batch == 1 { loss * f64::NAN } else { loss }
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
