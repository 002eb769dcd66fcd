//! The parts of one step that compute.

use lockstep_record::exit;
use tch::Tensor;

use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::data::{Split, StepSamples};
use crate::grad::{flat, norm};
use crate::launch::Failure;
use crate::metrics::Fingerprint;
use crate::model::Dropout;
use crate::mutate::{Mutation, strikes};
use crate::optim::learning_rate;
use crate::session::Session;
use crate::trace::{About, Category};

/// What this rank's micro-batches yielded, in micro-batch order.
pub struct Local {
    /// Each micro-batch's share of the step's loss.
    pub losses: Vec<f64>,
    /// Ids of the samples that were really used.
    pub samples: Vec<Vec<u64>>,
    /// Of each micro-batch's own gradient, one a parameter, where they are recorded.
    pub gradients: Vec<Vec<Fingerprint>>,
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
    let mut local = Local { losses: Vec::new(), samples: Vec::new(), gradients: Vec::new() };
    let record = digests_due && session.config.record.local_gradients;
    let tokens = session.tokens() as f64;
    for (position, micro_batch) in session.micro_batches.clone().enumerate() {
        watch.enter(Category::Data, About::micro_batch(micro_batch));
        let ids = planted_samples(session, micro_batch, &samples.micro_batches[micro_batch]);
        let batch = session.micro_batch(Split::Train, &ids)?;
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
        local.gradients.push(backward(session, &loss, (step, position), record)?);
        refuse_unused(session, step, micro_batch)?;
        local.samples.push(ids);
    }
    watch.stop();
    Ok(local)
}

/// Whether a bucket is updated as soon as it is reduced: nothing needs the norm of the whole gradient first. A norm that
/// is not finite still ends the run, and with it what was updated.
fn updates_early(session: &Session) -> bool {
    session.config.optim.clip_norm.is_none()
}

/// The backward pass of this rank's `position`-th micro-batch. Returns each gradient's fingerprint, if they are recorded.
fn backward(
    session: &mut Session,
    loss: &Tensor,
    (step, position): (u64, usize),
    record: bool,
) -> Result<Vec<Fingerprint>, Failure> {
    let early = updates_early(session);
    let rate = rate(session.config, step);
    let Session { hooks, accumulator, reducer, layout, optimizer, parameters, .. } = session;
    let update = |bucket: usize| {
        early.then(|| (optimizer.prepare(bucket, step, rate), parameters.buffers()[bucket].same_memory()))
    };
    let mut prints = vec![None; if record { layout.parameters.len() } else { 0 }];
    accumulator.begin(layout, position);
    hooks.backward(loss, &mut |index, gradient| {
        let gradient = gradient.contiguous();
        let gradient = flat::elements(&gradient);
        if let Some(print) = prints.get_mut(index) {
            *print = Some(Fingerprint::of(gradient));
        }
        if accumulator.add(layout, index, gradient) && accumulator.is_last() {
            reducer.complete(layout.slots[index].bucket, accumulator, &update);
        }
    })?;
    Ok(prints.into_iter().flatten().collect())
}

/// Every parameter must have had a part in the loss.
fn refuse_unused(session: &Session, step: u64, micro_batch: usize) -> Result<(), Failure> {
    let Some(index) = session.accumulator.missing().next() else { return Ok(()) };
    let message = format!(
        "step {step}: parameter {} got no gradient from micro-batch {micro_batch}: the loss does not depend on it",
        session.layout.parameters[index].name
    );
    Err(Failure::alone(exit::INTERNAL, message))
}

/// Stops all ranks before a gradient that is not finite reaches anything that lasts.
pub fn refuse_non_finite(session: &Session, step: u64, norms: &[f64]) -> Result<(), Failure> {
    let Some(index) = norms.iter().position(|norm| !norm.is_finite()) else { return Ok(()) };
    let message = format!(
        "step {step}: the gradient of {} is not finite (norm {}); the step is lost, and nothing of it was saved. With a lower optim.lr, or with \
         optim.clip_norm, go on from the last checkpoint in a new run directory: --run-dir NEW --resume CHECKPOINT",
        session.layout.parameters[index].name, norms[index]
    );
    Err(Failure::shared(exit::INTERNAL, message))
}

/// Clips the owned part of the gradient and updates the owned part of the parameters, bucket by bucket; each is
/// published as soon as it is updated. The last buckets come first: they hold what the next forward pass needs first.
pub fn update(session: &mut Session, step: u64, clip: f32) -> Result<(), Failure> {
    let (early, rate) = (updates_early(session), rate(session.config, step));
    for bucket in (0..session.layout.buckets.len()).rev() {
        let parameters = &mut session.parameters.buffers_mut()[bucket];
        if !early {
            let owned = session.optimizer.owned()[bucket].clone();
            let gradient = session.accumulator.gradient_mut(bucket);
            norm::scale(gradient.as_mut_slice(), &owned, clip);
            session.optimizer.prepare(bucket, step, rate).apply(parameters, gradient)?;
        }
        session.reducer.publish(bucket, parameters)?;
    }
    Ok(())
}

/// The step's learning rate.
pub fn rate(config: &Config, step: u64) -> f64 {
    learning_rate(&config.schedule, config.optim.lr, step)
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
