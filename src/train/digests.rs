//! The digests of a step.

use std::ops::Range;

use lockstep_record::{DigestLine, Phase};
use tch::{Kind, Tensor};

use super::measure::Numbers;
use super::step::Local;
use crate::config::Config;
use crate::grad::flat::{self, Flat};
use crate::launch::Failure;
use crate::metrics::{
    BucketPrints, Fingerprint, Subject, block_prints, numbers, of_micro_batches, replicas, shards,
};
use crate::model::MicroBatch;
use crate::partition::share;
use crate::session::Session;

/// Whether digests of this step are recorded: at the interval, the first and the last step.
pub fn due(config: &Config, step: u64, last: u64) -> bool {
    let every = config.record.digests_every;
    every > 0 && (step.is_multiple_of(every) || step == 1 || step == last)
}

/// Digests of the initial parameters, of every rank.
pub fn initial(session: &Session) -> Result<Vec<DigestLine>, Failure> {
    if session.config.record.digests_every == 0 {
        return Ok(Vec::new());
    }
    of_parameters(session, &subject(session, 0, Phase::Parameters, ""))
}

/// Of the parameters as every rank holds them.
pub fn of_parameters(session: &Session, subject: &Subject) -> Result<Vec<DigestLine>, Failure> {
    let (layout, buffers) = (&session.layout, session.parameters.buffers());
    let of_bucket = |(bucket, buffer): (usize, &Flat)| {
        block_prints(layout, (bucket, &(0..buffer.len())), buffer, 0, subject.sketched)
    };
    let blocks = buffers.iter().enumerate().map(of_bucket).collect::<Result<Vec<_>, _>>()?;
    Ok(replicas(session.comm, layout, subject, &blocks)?)
}

fn subject<'a>(session: &Session, step: u64, phase: Phase, prefix: &'a str) -> Subject<'a> {
    Subject { step, phase, prefix, sketched: session.config.record.sketches }
}

/// What a micro-batch is made of, as numbers in fp32: tokens and classes are small enough to be exact.
pub fn contents(batch: &MicroBatch) -> Vec<(&'static str, Fingerprint)> {
    let print =
        |tensor: &Tensor| Fingerprint::of(flat::elements(&tensor.to_kind(Kind::Float).contiguous()), false);
    batch.contents().into_iter().map(|(name, tensor)| (name, print(tensor))).collect()
}

/// All digests of a step, once its update is done. `prints` are what was recorded around the update of a bucket; a bucket
/// that was not updated is as it was before.
pub fn of_step(
    session: &Session,
    step: u64,
    local: &Local,
    numbers: &Numbers,
    prints: &[Option<BucketPrints>],
) -> Result<Vec<DigestLine>, Failure> {
    let mut lines = of_local(session, step, local)?;
    lines.extend(of_gradient(session, step, prints)?);
    lines.extend(of_numbers(session, step, numbers)?);
    session.reducer.arrive_all()?;
    lines.extend(of_state(session, step, prints)?);
    lines.extend(of_parameters(session, &subject(session, step, Phase::Parameters, ""))?);
    Ok(lines)
}

/// Of each micro-batch's samples and gradient.
fn of_local(session: &Session, step: u64, local: &Local) -> Result<Vec<DigestLine>, Failure> {
    let (comm, layout) = (session.comm, &session.layout);
    let first = |rank| share(session.config.batch.micro_batches, comm.size(), rank).start;
    // Candidates have the same data, so nobody asks how far it is away.
    let data = Subject { step, phase: Phase::Data, prefix: "", sketched: false };
    // Every rank has a micro-batch, and all are made of the same things.
    let (names, contents) = unzipped(&local.contents);
    let mut lines = of_micro_batches(comm, &data, &names, &contents, &first)?;
    if session.config.record.local_gradients {
        let names: Vec<&str> = layout.trained().map(|index| layout.parameters[index].name.as_str()).collect();
        let subject = subject(session, step, Phase::LocalGradient, "");
        lines.extend(of_micro_batches(comm, &subject, &names, &local.gradients, &first)?);
    }
    Ok(lines)
}

/// Of the micro-batches' sum, before clipping.
fn of_gradient(
    session: &Session,
    step: u64,
    prints: &[Option<BucketPrints>],
) -> Result<Vec<DigestLine>, Failure> {
    let subject = subject(session, step, Phase::ReducedGradient, "");
    let taken = |bucket: usize| Some(prints.get(bucket)?.as_ref()?.gradient.clone());
    of_buffers(session, &subject, &taken, &|bucket| session.accumulator.gradient(bucket), &|_| 0)
}

/// The names of what micro-batches are made of, and each one's fingerprints.
fn unzipped(contents: &[Vec<(&'static str, Fingerprint)>]) -> (Vec<&'static str>, Vec<Vec<Fingerprint>>) {
    let names = contents.first().map_or(Vec::new(), |first| first.iter().map(|(name, _)| *name).collect());
    let prints = contents.iter().map(|of_one| of_one.iter().map(|&(_, print)| print).collect()).collect();
    (names, prints)
}

/// What each rank makes of the gradient before it updates: the same on all of them, or replicas part.
fn of_numbers(session: &Session, step: u64, update: &Numbers) -> Result<Vec<DigestLine>, Failure> {
    let Numbers { gradient_norm, clip, rate, found_inf } = *update;
    let mut all = vec![
        (Phase::Norm, "gradient_norm", gradient_norm),
        (Phase::Norm, "clip_coefficient", f64::from(clip)),
        (Phase::Schedule, "learning_rate", rate),
    ];
    // Where the loss is scaled, finding one is no accident, and ranks that disagree part.
    if session.scaler.is_some() {
        all.insert(2, (Phase::Norm, "found_inf", f64::from(u8::from(found_inf))));
    }
    Ok(numbers(session.comm, step, &all)?)
}

/// Of the optimizer's state after the update.
fn of_state(
    session: &Session,
    step: u64,
    prints: &[Option<BucketPrints>],
) -> Result<Vec<DigestLine>, Failure> {
    let mut lines = Vec::new();
    let mine = session.ownership.owned(session.comm.rank());
    for (kind, name) in session.optimizer.state_names().iter().enumerate() {
        let (state, prefix) = (session.optimizer.state(kind), format!("{name}/"));
        let subject = subject(session, step, Phase::Optimizer, &prefix);
        let taken = |bucket: usize| Some(prints.get(bucket)?.as_ref()?.state[kind].clone());
        lines.extend(of_buffers(session, &subject, &taken, &|bucket| &state[bucket], &|bucket| {
            mine[bucket].start
        })?);
    }
    Ok(lines)
}

/// Of what a rank has of each bucket: each rank's copy, or their shards together. What was not `taken` before is taken from
/// buffers that start at `start(bucket)`.
pub fn of_buffers<'b>(
    session: &'b Session,
    subject: &Subject,
    taken: &dyn Fn(usize) -> Option<Vec<Fingerprint>>,
    buffer: &dyn Fn(usize) -> &'b Flat,
    start: &dyn Fn(usize) -> usize,
) -> Result<Vec<DigestLine>, Failure> {
    let (comm, layout, ownership) = (session.comm, &session.layout, &session.ownership);
    let of_bucket = |(bucket, owned): (usize, &Range<usize>)| match taken(bucket) {
        Some(prints) => Ok(prints),
        None => block_prints(layout, (bucket, owned), buffer(bucket), start(bucket), subject.sketched),
    };
    let blocks =
        ownership.owned(comm.rank()).iter().enumerate().map(of_bucket).collect::<Result<Vec<_>, _>>()?;
    Ok(match ownership.is_sharded() {
        false => replicas(comm, layout, subject, &blocks)?,
        true => shards(comm, layout, subject, &|rank| ownership.owned(rank), &blocks)?,
    })
}
