//! What a step leaves in the record.

use std::collections::BTreeMap;

use super::step::Local;
use super::stopwatch::Stopwatch;
use crate::grad::norm;
use crate::grad::tree::sum_scalars;
use crate::launch::Failure;
use crate::metrics::resident_bytes;
use crate::model::Term;
use crate::mutate::{Mutation, active, strikes};
use crate::session::Session;
use crate::strategy::{gather_square_sums, square_sums};
use lockstep_record::{Digest, LossScale, LossTerm, Real, StepLine};
use serde::{Deserialize, Serialize};

/// What an update is scaled by.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub gradient_norm: f64,
    pub clip: f32,
    pub rate: f64,
    /// Whether the gradient was not finite, so that the update is left out.
    pub found_inf: bool,
}

/// What each rank tells the others at the end of a step.
#[derive(Serialize, Deserialize)]
struct Report {
    stop: bool,
    resident_bytes: u64,
    losses: Vec<Real>,
    terms: Vec<Vec<Real>>,
    samples: Vec<Vec<u64>>,
    masks: Vec<Digest>,
}

/// The same of all ranks together, in micro-batch order.
#[derive(Default)]
pub struct Seen {
    pub stop: bool,
    pub resident_bytes_max: u64,
    pub losses: Vec<f64>,
    /// Of each micro-batch, its share of each of the model's losses.
    pub terms: Vec<Vec<f64>>,
    pub samples: Vec<Vec<u64>>,
    /// Empty without dropout.
    pub masks: Vec<Digest>,
}

/// Exchanges the ranks' reports.
pub fn gather(session: &Session, step: u64, local: &Local, stop: bool) -> Result<Seen, Failure> {
    let report = Report {
        stop,
        resident_bytes: resident_bytes(),
        losses: local.losses.iter().copied().map(Real).collect(),
        terms: local.terms.iter().map(|terms| terms.iter().copied().map(Real).collect()).collect(),
        samples: local.samples.clone(),
        masks: local.masks.clone(),
    };
    let internal = |error: serde_json::Error| Failure::alone(lockstep_record::exit::INTERNAL, error);
    let mine = serde_json::to_vec(&report).map_err(internal)?;
    let messages =
        match strikes(Mutation::SkippedCollective, session.comm.rank(), session.comm.size()) && step == 3 {
            false => session.comm.all_gather_bytes("gather of step reports", &mine)?,
            true => vec![mine],
        };
    let mut seen = Seen::default();
    for message in messages {
        let report: Report = serde_json::from_slice(&message).map_err(internal)?;
        seen.stop |= report.stop;
        seen.resident_bytes_max = seen.resident_bytes_max.max(report.resident_bytes);
        seen.losses.extend(report.losses.into_iter().map(|loss| loss.0));
        let terms = report.terms.into_iter().map(|terms| terms.into_iter().map(|term| term.0).collect());
        seen.terms.extend(terms);
        seen.samples.extend(report.samples);
        seen.masks.extend(report.masks);
    }
    Ok(seen)
}

/// Every rank's shares in micro-batch order: of each micro-batch the loss, and then its terms.
pub fn gather_shares(session: &Session, mine: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, Failure> {
    let bytes: Vec<u8> = mine.iter().flatten().flat_map(|share| share.to_le_bytes()).collect();
    let messages = session.comm.all_gather_bytes("gather of losses", &bytes)?.concat();
    let all: Vec<f64> = messages.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    Ok(all.chunks(1 + session.model.terms().len()).map(<[f64]>::to_vec).collect())
}

/// A loss, and what it is the weighted sum of.
pub struct Losses {
    pub total: f64,
    pub terms: BTreeMap<String, LossTerm>,
}

impl Losses {
    /// From what [`gather_shares`] returns, along the tree over the micro-batches.
    pub fn of_shares(session: &Session, shares: &[Vec<f64>], targets: &[u64]) -> Self {
        let total: Vec<f64> = shares.iter().filter_map(|shares| shares.first().copied()).collect();
        let terms: Vec<Vec<f64>> = shares.iter().map(|shares| shares[1..].to_vec()).collect();
        Self { total: sum_scalars(&total), terms: loss_terms(session, &terms, targets) }
    }
}

/// The mean of each of the model's losses, from the micro-batches' shares; nothing if there is only one, since it is the loss.
fn loss_terms(session: &Session, shares: &[Vec<f64>], targets: &[u64]) -> BTreeMap<String, LossTerm> {
    let terms = session.model.terms();
    if terms.len() == 1 {
        return BTreeMap::new();
    }
    let term = |(index, term): (usize, &Term)| {
        let column: Vec<f64> = shares.iter().map(|shares| shares[index]).collect();
        let loss = Real(sum_scalars(&column));
        (term.name.to_owned(), LossTerm { loss, targets: targets[index] })
    };
    terms.iter().enumerate().map(term).collect()
}

/// The step's loss: the sum of all micro-batches' shares, unless a bug is planted.
fn step_loss(losses: &[f64]) -> f64 {
    match active(Mutation::LossOfOneMicroBatch) {
        false => sum_scalars(losses),
        true => losses[0] * losses.len() as f64,
    }
}

/// A step's numbers that every rank knows.
pub struct Measured {
    pub step: u64,
    pub epoch: u64,
    pub numbers: Numbers,
    /// Of each of the model's losses.
    pub targets: Vec<u64>,
    pub validation: Option<Losses>,
    /// Why the update was left out, if it was.
    pub skipped_for: Option<String>,
    /// Before this step adjusted it.
    pub loss_scale: Option<LossScale>,
    /// Parameters that the whole step left unused and the update therefore left out.
    pub unused_parameters: usize,
}

impl Measured {
    /// The step's line; closes the stopwatch. All ranks call it.
    pub fn line(&self, session: &Session, seen: &Seen, watch: &mut Stopwatch) -> Result<StepLine, Failure> {
        let rank = session.comm.rank();
        let shards = session.ownership.shards().iter().map(|shards| &shards[rank]);
        let own =
            session.parameters.buffers().iter().zip(shards).map(|(flat, shard)| square_sums(flat, shard));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        let sums = gather_square_sums(session.comm, &session.ownership, &own)?;
        let (_, parameter_norm) = norm::norms(&session.layout, &sums);
        watch.stop();
        let (cost, tokens) = (session.reducer.take_cost(), self.targets.iter().sum());
        let seconds = watch.seconds(cost.seconds);
        Ok(StepLine {
            step: self.step,
            epoch: self.epoch,
            loss: Real(step_loss(&seen.losses)),
            micro_batch_losses: seen.losses.iter().copied().map(Real).collect(),
            loss_terms: loss_terms(session, &seen.terms, &self.targets),
            gradient_norm: Real(self.numbers.gradient_norm),
            parameter_norm: Real(parameter_norm),
            clip_coefficient: Real(f64::from(self.numbers.clip)),
            learning_rate: Real(self.numbers.rate),
            validation_loss: self.validation.as_ref().map(|losses| Real(losses.total)),
            validation_loss_terms: self
                .validation
                .as_ref()
                .map(|losses| losses.terms.clone())
                .unwrap_or_default(),
            skipped_for: self.skipped_for.clone(),
            loss_scale: self.loss_scale,
            unused_parameters: self.unused_parameters as u64,
            tokens,
            tokens_per_second: Real(tokens as f64 / seconds.total),
            seconds,
            resident_bytes_max: seen.resident_bytes_max,
            bytes_sent: cost.bytes,
        })
    }
}
