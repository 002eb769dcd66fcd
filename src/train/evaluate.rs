//! The losses on the validation part: always of the same samples, and summed along the same tree.

use super::measure::{Losses, gather_shares};
use super::objective::Objective;
use crate::data::Split;
use crate::launch::Failure;
use crate::model::Dropout;
use crate::mutate::{Mutation, active};
use crate::partition::share;
use crate::session::Session;

/// Mean losses per target on the first `evaluate.micro_batches` of the validation part, if the step is to evaluate.
pub fn if_due(session: &Session, step: u64, last: u64) -> Result<Option<Losses>, Failure> {
    let every = session.config.evaluate.every;
    let due =
        every > 0 && (step.is_multiple_of(every) || (step == last && step == session.config.schedule.steps));
    if !due || session.corpus.info().validation_samples == 0 {
        return Ok(None);
    }
    validation_losses(session).map(Some)
}

fn validation_losses(session: &Session) -> Result<Losses, Failure> {
    let (size, available) = (session.config.batch.micro_batch_size, session.corpus.info().validation_samples);
    let count = session.config.evaluate.micro_batches;
    let ids = |micro_batch: usize| -> Vec<u64> {
        let first = (micro_batch * size) as u64;
        (first..first + size as u64).map(|id| id % available).collect()
    };
    let samples: Vec<Vec<u64>> = (0..count).map(ids).collect();
    let targets = session.targets(Split::Validation, &samples)?;
    let accumulated =
        if active(Mutation::ValidationScaled) { session.micro_batches.len() as f64 } else { 1.0 };
    let divisors = targets.iter().map(|&count| count as f64 * accumulated).collect();
    let objective = Objective::new(session.model.terms(), divisors);
    let dropout = planted_dropout(session);
    let mut shares = Vec::new();
    for micro_batch in share(count, session.comm.size(), session.comm.rank()) {
        let batch = session.micro_batch(Split::Validation, &samples[micro_batch], None)?;
        let losses = tch::no_grad(|| session.losses(&batch, dropout.as_ref()))?;
        let share = objective.shares(&losses)?;
        shares.push([vec![share.total.f_double_value(&[])?], share.terms].concat());
    }
    Ok(Losses::of_shares(session, &gather_shares(session, &shares)?, &targets))
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
