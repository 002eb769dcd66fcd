//! The parts of one step that compute.

use std::sync::{Mutex, PoisonError};

use lockstep_record::exit;
use tch::{Device, Kind, Tensor};

use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::config::schema::{NonFinite, UnusedParameters};
use crate::data::{Split, StepSamples};
use crate::grad::accumulate::Accumulator;
use crate::grad::unused::{self, ParameterSet, Usage};
use crate::grad::{flat, norm};
use crate::launch::Failure;
use crate::metrics::Fingerprint;
use crate::model::Dropout;
use crate::mutate::{Mutation, active, strikes};
use crate::optim::learning_rate;
use crate::perturb;
use crate::session::Session;
use crate::trace::{About, Category};

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

/// Runs this rank's micro-batches. Their gradients are added up as they become ready; in the last micro-batch each
/// bucket that is complete starts to be reduced.
pub fn forward_backward(
    session: &mut Session,
    step: u64,
    samples: &StepSamples,
    digests_due: bool,
    watch: &mut Stopwatch,
) -> Result<Local, Failure> {
    while struck(session, Mutation::EndlessLoop) && step == 3 {
        std::hint::spin_loop();
    }
    let mut local = Local::default();
    let record = digests_due && session.config.record.local_gradients;
    let tokens = session.tokens() as f64 + if active(Mutation::LossOffByOne) { 1.0 } else { 0.0 };
    for (position, micro_batch) in session.micro_batches.clone().enumerate() {
        watch.enter(Category::Data, About::micro_batch(micro_batch));
        let ids = planted_samples(session, micro_batch, &samples.micro_batches[micro_batch]);
        let batch = session.micro_batch(Split::Train, &ids, Some(&samples.epochs[micro_batch]))?;
        let dropout = Dropout {
            probability: session.config.model.dropout,
            seed: session.config.run.seed,
            step,
            micro_batch,
            rank: session.comm.rank(),
        };
        watch.enter(Category::Forward, About::micro_batch(micro_batch));
        let loss = session.model.loss(&session.weights(), &batch, Some(&dropout))?.f_div_scalar(tokens)?;
        local.losses.push(loss.f_double_value(&[])?);
        watch.enter(Category::Backward, About::micro_batch(micro_batch));
        let loss = planted_nan(step, micro_batch, loss);
        local.gradients.push(backward(session, &loss, (step, position), record, &mut local.usage)?);
        local.samples.push(ids);
    }
    watch.stop();
    if !local.usage.missed.is_empty() && session.config.parallel.unused_parameters == UnusedParameters::Error
    {
        let message = unused::complaint(&session.layout, step, &local.usage.missed);
        return Err(Failure::alone(exit::INTERNAL, message));
    }
    Ok(local)
}

/// Whether a bucket is updated as soon as it is reduced: nothing needs to know the whole gradient first. A norm that is
/// not finite still ends the run, and with it what was updated.
fn updates_early(config: &Config) -> bool {
    config.optim.clip_norm.is_none()
        && config.optim.non_finite == NonFinite::Stop
        && config.parallel.unused_parameters != UnusedParameters::Detect
}

/// The backward pass of this rank's `position`-th micro-batch. Returns each gradient's fingerprint, if they are recorded.
fn backward(
    session: &mut Session,
    loss: &Tensor,
    (step, position): (u64, usize),
    record: bool,
    usage: &mut Usage,
) -> Result<Vec<Fingerprint>, Failure> {
    let early = updates_early(session.config);
    let rate = rate(session.config, step);
    let (sketched, micro_batch) = (session.config.record.sketches, session.micro_batches.start + position);
    let Session { hooks, accumulator, reducer, layout, optimizer, parameters, perturbation, .. } = session;
    let (none, perturbation) = (ParameterSet::default(), *perturbation);
    let update = |bucket: usize| {
        let prepared = || optimizer.prepare(layout, bucket, &none, step, rate);
        early.then(|| (prepared(), parameters.buffers()[bucket].same_memory()))
    };
    let mut prints = vec![None; if record { layout.parameters.len() } else { 0 }];
    accumulator.begin(layout, position);
    let mut add = |accumulator: &mut Accumulator, index: usize, gradient: Tensor| {
        if let Some(print) = prints.get_mut(index) {
            *print = Some(Fingerprint::of(flat::elements(&gradient), sketched));
        }
        let gradient = match &perturbation {
            None => gradient,
            Some(perturbation) => perturb::gradient(perturbation, &gradient, index, micro_batch, step),
        };
        if accumulator.add(layout, index, gradient) && accumulator.is_last() {
            reducer.complete(layout.slots[index].bucket, accumulator, &update);
        }
    };
    hooks.backward(loss, &mut |index, gradient| {
        usage.note(index, true);
        add(accumulator, index, gradient.contiguous());
    })?;
    // What the loss does not depend on counts as zero, and is really added: −0 + 0 is +0.
    for index in accumulator.missing() {
        usage.note(index, false);
        add(
            accumulator,
            index,
            Tensor::zeros([layout.slots[index].elements as i64], (Kind::Float, Device::Cpu)),
        );
    }
    Ok(prints.into_iter().flatten().collect())
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
        return Err(Failure::shared(
            exit::INTERNAL,
            format!("{fault}; the step is lost, and nothing of it was saved. {remedy}"),
        ));
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

/// Clips the owned part of the gradient and updates the owned part of the parameters, bucket by bucket, without those
/// that are `unused`; each is published as soon as it is updated. The last buckets come first: they hold what the next forward pass needs first.
pub fn update(session: &mut Session, step: u64, clip: f32, unused: &ParameterSet) -> Result<(), Failure> {
    let (early, rate) = (updates_early(session.config), rate(session.config, step));
    let Session { layout, optimizer, accumulator, parameters, reducer, .. } = session;
    for bucket in (0..layout.trained_buckets()).rev() {
        let parameters = &mut parameters.buffers_mut()[bucket];
        if !early {
            let gradient = accumulator.gradient_mut(bucket);
            norm::scale(gradient.as_mut_slice(), &optimizer.owned()[bucket], clip);
            optimizer.prepare(layout, bucket, unused, step, rate).apply(parameters, gradient)?;
        }
        reducer.publish(bucket, parameters)?;
    }
    optimizer.leave_out(unused.iter());
    Ok(())
}

/// The step's learning rate.
pub fn rate(config: &Config, step: u64) -> f64 {
    learning_rate(&config.schedule, config.optim.lr, step)
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

/// Whether a planted bug strikes this rank.
fn struck(session: &Session, mutation: Mutation) -> bool {
    strikes(mutation, session.comm.rank(), session.comm.size())
}

/// The sampler's ids, unless a planted bug swaps one.
fn planted_samples(session: &Session, micro_batch: usize, ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    if struck(session, Mutation::OneSampleId) && micro_batch + 1 == session.micro_batches.end {
        ids[0] = (ids[0] + 1) % session.corpus.info().train_samples;
    }
    ids
}

/// The planted bugs in a gradient that is reduced already: of the model's first parameter, and of the last bucket.
pub fn plant_gradient(session: &mut Session, step: u64) {
    static EARLIER: Mutex<Vec<f32>> = Mutex::new(Vec::new());
    if active(Mutation::ScaledTensor) {
        let slot = session.layout.slots[0].clone();
        norm::scale(session.accumulator.gradient_mut(slot.bucket).as_mut_slice(), &slot.range(), 1.000_001);
    }
    if active(Mutation::StaleBucket) {
        let bucket = session.layout.trained_buckets() - 1;
        let gradient = session.accumulator.gradient_mut(bucket).as_mut_slice();
        let mut earlier = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
        if step == 4 && earlier.len() == gradient.len() {
            gradient.copy_from_slice(&earlier);
        }
        *earlier = gradient.to_vec();
    }
}

/// The planted bug: one element of one rank's copy moves by one unit in the last place after step 2.
pub fn plant_parameter(session: &mut Session, step: u64) -> Result<(), Failure> {
    if struck(session, Mutation::OneRanksParameter) && step == 2 {
        session.reducer.arrive_all()?;
        let slot = session.layout.slots[0].clone();
        let value = &mut session.parameters.buffers_mut()[slot.bucket].as_mut_slice()[slot.offset];
        *value = f32::from_bits(value.to_bits() ^ 1);
    }
    Ok(())
}
