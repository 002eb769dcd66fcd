//! What would run, for `--dry-run`, and what did.

use std::fmt::Write;

use lockstep_record::{Outcome, RunDir};

use crate::data::Split;
use crate::launch::Failure;
use crate::partition::share;
use crate::session::Session;
use crate::train::Ending;

/// Everything that the configuration, the data and the world decide.
pub fn describe(session: &Session) -> Result<String, Failure> {
    let (config, comm, data) = (session.config, session.comm, session.corpus.info());
    let batch = &config.batch;
    let global_batch = batch.micro_batches * batch.micro_batch_size;
    let most = share(batch.micro_batches, comm.size(), 0).len();
    let least = share(batch.micro_batches, comm.size(), comm.size() - 1).len();
    let targets = targets(session)?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    row(
        "world",
        format!(
            "{} rank(s) over {}, {} thread(s) each",
            comm.size(),
            comm.name(),
            config.run.threads_per_rank
        ),
    );
    let strategy = config.parallel.strategy.name();
    let compression = match &session.compression {
        None => String::new(),
        Some(name) => format!(", {name} compression (bits depend on the number of ranks)"),
    };
    row("strategy", format!("{strategy}, {} reduction{compression}", config.parallel.reduction.name()));
    row(
        "model",
        format!(
            "{} parameters in {} tensors, {} of them trained",
            session.layout.elements(),
            session.layout.parameters.len(),
            session.layout.trained().count()
        ),
    );
    let (count, home) = (session.layout.buckets.len(), session.home.name());
    row("buckets", format!("{count} of up to {} MiB, in the {home}'s memory", config.parallel.bucket_mb));
    row("precision", precision(session));
    let state = session.optimizer.state_bytes();
    row("optimizer", format!("{}, {state} bytes of state on rank 0", config.optim.kind.name()));
    row(
        "data",
        format!("{} samples to train on, {} to validate", data.train_samples, data.validation_samples),
    );
    row("tokenizer", format!("{} with {} tokens", data.tokenizer, data.vocabulary));
    row(
        "step",
        format!("{} micro-batches of {} samples: {targets}", batch.micro_batches, batch.micro_batch_size),
    );
    row(
        "per rank",
        if most == least {
            format!("{most} micro-batches")
        } else {
            format!("{least} to {most} micro-batches")
        },
    );
    let epochs = (config.schedule.steps as f64 * global_batch as f64) / data.train_samples.max(1) as f64;
    row("schedule", format!("{} steps, {epochs:.2} epochs", config.schedule.steps));
    Ok(text + "dry run: no step was taken and nothing was written\n")
}

/// What there is to predict in the first step; only with several losses do steps differ in it.
fn targets(session: &Session) -> Result<String, Failure> {
    let counts = session.targets(Split::Train, &session.sampler.clone().step(1).micro_batches)?;
    let terms = session.model.terms();
    Ok(match counts.as_slice() {
        [tokens] => format!("{tokens} tokens"),
        _ => {
            let each = terms.iter().zip(&counts).map(|(term, count)| format!("{count} ({})", term.name));
            format!("in the first step {} targets", each.collect::<Vec<_>>().join(" and "))
        }
    })
}

/// What is computed, kept and added up in which format.
fn precision(session: &Session) -> String {
    let config = session.config;
    let scale = match &session.scaler {
        None => String::new(),
        Some(scaler) => format!(", loss scale {} at first", scaler.scale()),
    };
    let (computed, added) = (config.precision.name(), config.reduce_dtype.name());
    format!("{computed} forward and backward, fp32 parameters, gradients added in {added}{scale}")
}

/// The last line of a run.
pub fn closing_line(ending: &Ending, run: &RunDir) -> String {
    let what = match ending.outcome {
        Outcome::Finished => "finished",
        Outcome::Stopped => "stopped as asked",
        Outcome::Preempted => "stopped by a signal and saved; go on with --resume auto",
    };
    format!("step {}: {what}; the record is in {}", ending.step, run.path().display())
}
