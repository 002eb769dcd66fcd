//! The loss on the validation part: always of the same samples, and summed along the same tree.

use super::measure::gather_losses;
use crate::data::Split;
use crate::grad::tree::sum_scalars;
use crate::launch::Failure;
use crate::model::Dropout;
use crate::mutate::{Mutation, active};
use crate::partition::share;
use crate::session::Session;

/// Mean loss per target on the first `evaluate.micro_batches` of the validation part, if the step is to evaluate.
pub fn if_due(session: &Session, step: u64, last: u64) -> Result<Option<f64>, Failure> {
    let every = session.config.evaluate.every;
    let due =
        every > 0 && (step.is_multiple_of(every) || (step == last && step == session.config.schedule.steps));
    if !due || session.corpus.info().validation_samples == 0 {
        return Ok(None);
    }
    validation_loss(session).map(Some)
}

fn validation_loss(session: &Session) -> Result<f64, Failure> {
    let (size, available) = (session.config.batch.micro_batch_size, session.corpus.info().validation_samples);
    let count = session.config.evaluate.micro_batches;
    let mut tokens = (count * size * session.corpus.targets_per_sample()) as f64;
    if active(Mutation::ValidationScaled) {
        tokens *= session.micro_batches.len() as f64;
    }
    let dropout = planted_dropout(session);
    let mut losses = Vec::new();
    for micro_batch in share(count, session.comm.size(), session.comm.rank()) {
        let first = (micro_batch * size) as u64;
        let ids: Vec<u64> = (first..first + size as u64).map(|id| id % available).collect();
        let batch = session.micro_batch(Split::Validation, &ids, None)?;
        let loss = tch::no_grad(|| session.loss(&batch, dropout.as_ref()))?;
        losses.push(loss.f_div_scalar(tokens)?.f_double_value(&[])?);
    }
    Ok(sum_scalars(&gather_losses(session, &losses)?))
}

/// None, unless a bug is planted.
fn planted_dropout(session: &Session) -> Option<Dropout> {
    let probability = session.config.model.dropout;
    active(Mutation::ValidationDropout).then_some(Dropout {
        probability,
        seed: 0,
        step: 0,
        micro_batch: 0,
        rank: 0,
    })
}
