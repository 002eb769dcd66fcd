//! Which samples a step was made of, and what was drawn at random for them.

use std::collections::HashMap;

use lockstep_record::{Digest, SampleLine};

use super::super::facts::{Context, File, Numbered, StepFacts};
use super::super::finding::{Finding, Looked};
use super::super::history::History;

/// As many micro-batches, samples, targets and epochs as the configuration and the other files say.
pub fn shape(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let samples = step.samples.as_ref().filter(|line| !line.micro_batches.is_empty());
    let Some(metrics) = &step.metrics else { return looked };
    let losses = metrics.micro_batch_losses.len() as u64;
    let in_metrics =
        |message: String| Finding::new(File::Metrics.name(), Some(metrics.line), message).at(step.step);
    if let Some(line) = samples {
        let in_samples =
            |message: String| Finding::new(File::Samples.name(), Some(line.line), message).at(step.step);
        let count = line.micro_batches.len() as u64;
        looked.holds(count == losses, || {
            in_samples(format!(
                "{count} micro-batches, but metrics.jsonl:{} has {losses} losses",
                metrics.line
            ))
        });
        if let Some(size) = context.count("batch.micro_batch_size") {
            for (index, ids) in line.micro_batches.iter().enumerate() {
                looked.holds(ids.len() as u64 == size, || {
                    in_samples(format!("{} samples instead of batch.micro_batch_size {size}", ids.len()))
                        .in_micro_batch(u32::try_from(index).ok())
                });
            }
        }
    }
    if let Some(count) = context.count("batch.micro_batches") {
        looked.holds(losses == count, || {
            in_metrics(format!("{losses} losses instead of batch.micro_batches {count}"))
        });
    }
    let Some(per_step) = context.samples_per_step() else { return looked };
    let targets = match context.text("data.kind") {
        Some("text") => context.count("model.context"),
        Some("images") => Some(1),
        _ => None,
    };
    if let Some(expected) = targets.and_then(|targets| targets.checked_mul(per_step)) {
        looked.holds(metrics.tokens == expected, || {
            in_metrics(format!("{} targets instead of {expected} in {per_step} samples", metrics.tokens))
        });
    }
    let length = context.manifest.data.train_samples;
    if context.is_ours() && length > 0 && step.step > 0 {
        let expected = (step.step - 1).saturating_mul(per_step) / length;
        looked.holds(metrics.epoch == expected, || {
            in_metrics(format!(
                "epoch {} instead of {expected}: an epoch has {length} samples",
                metrics.epoch
            ))
        });
    }
    looked
}

/// No sample is in two micro-batches of a step, and none is outside the data.
pub fn disjoint(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = &step.samples else { return looked };
    let count = line.micro_batches.len();
    let at = |index: usize, message: String| {
        let rank = context.rank_of(step.step, index, count);
        let finding = Finding::new(File::Samples.name(), Some(line.line), message).at(step.step);
        finding.in_micro_batch(u32::try_from(index).ok()).on(vec![(rank, rank)])
    };
    let length = context.manifest.data.train_samples;
    let (mut first, mut repeats) = (HashMap::new(), Vec::new());
    let mut position = context.samples_per_step().unwrap_or(0).saturating_mul(step.step.saturating_sub(1));
    for (index, &id) in
        line.micro_batches.iter().enumerate().flat_map(|(i, ids)| ids.iter().map(move |id| (i, id)))
    {
        looked.facts += 1;
        if length > 0 && id >= length {
            looked.findings.push(at(index, format!("sample {id} does not exist: there are {length}")));
        }
        // A step of ours may straddle two epochs, and then have a sample of each twice.
        let epoch = if context.is_ours() && length > 0 { position / length } else { 0 };
        position = position.saturating_add(1);
        if let Some(other) = first.insert((epoch, id), index) {
            let rank = context.rank_of(step.step, other, count);
            repeats.push(at(index, format!("sample {id} is in micro-batch {other} of rank {rank}, too")));
        }
    }
    // Other trainers' samplers may fill up the last step of an epoch, with less than one sample a rank.
    let allowed = if context.is_ours() { 0 } else { context.world(step.step).saturating_sub(1) as usize };
    if repeats.len() > allowed {
        looked.findings.append(&mut repeats);
    }
    looked
}

/// No sample comes twice in an epoch.
pub fn epochs(_: &Context, history: &History) -> Looked {
    Looked { facts: history.epochs.ids, findings: history.epochs.repeats.clone() }
}

/// Each epoch has an order of its own.
pub fn order(_: &Context, history: &History) -> Looked {
    Looked { facts: history.epochs.orders, findings: history.epochs.same_orders.clone() }
}

/// No two micro-batches of a step have the same dropout masks, and none has those of the step before.
pub fn masks(context: &Context, before: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = step.samples.as_ref().filter(|line| !line.masks.is_empty()) else { return looked };
    let count = line.masks.len();
    looked.holds(count == line.micro_batches.len(), || {
        let message = format!("masks of {count} micro-batches out of {}", line.micro_batches.len());
        Finding::new(File::Samples.name(), Some(line.line), message).at(step.step)
    });
    let before = before.and_then(|before| before.samples.as_ref());
    let earlier = before.map_or(HashMap::new(), |line| places(line, "the step before"));
    let mut seen: HashMap<Digest, String> = earlier;
    for (index, mask) in line.masks.iter().enumerate() {
        let rank = context.rank_of(step.step, index, count);
        let other = seen.insert(*mask, format!("micro-batch {index} of rank {rank}"));
        looked.fact(other.map(|other| {
            let message = format!("its dropout masks are those of {other}");
            let finding = Finding::new(File::Samples.name(), Some(line.line), message).at(step.step);
            finding.in_micro_batch(u32::try_from(index).ok()).on(vec![(rank, rank)])
        }));
    }
    looked
}

fn places(line: &Numbered<SampleLine>, of: &str) -> HashMap<Digest, String> {
    line.masks
        .iter()
        .enumerate()
        .map(|(index, mask)| (*mask, format!("micro-batch {index} of {of}")))
        .collect()
}
