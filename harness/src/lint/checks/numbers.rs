//! Single numbers: finite, and what they are said to be the sum or the product of.

use std::collections::BTreeMap;

use lockstep_record::{LossTerm, Phase};

use super::super::facts::{Context, File, StepFacts};
use super::super::finding::{Finding, Looked};
use super::close;

/// Everything is finite, but for the gradient of a step that was skipped because it was not.
pub fn finite(_: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let skipped = step.is_skipped();
    if let Some(line) = &step.metrics {
        let at = |message: String| Finding::new(File::Metrics.name(), Some(line.line), message).at(step.step);
        let always = [("parameter_norm", line.parameter_norm), ("learning_rate", line.learning_rate)];
        let unless_skipped = [
            ("loss", line.loss),
            ("gradient_norm", line.gradient_norm),
            ("clip_coefficient", line.clip_coefficient),
        ];
        let validation = line.validation_loss.map(|loss| ("validation_loss", loss));
        let columns =
            always.into_iter().chain(validation).chain(unless_skipped.into_iter().filter(|_| !skipped));
        for (name, value) in columns {
            looked.holds(value.0.is_finite(), || at(format!("{name} is {value}")));
        }
        for (name, term) in line.loss_terms.iter().filter(|_| !skipped) {
            looked.holds(term.loss.0.is_finite(), || at(format!("the loss {name} is {}", term.loss)));
        }
        for (name, term) in &line.validation_loss_terms {
            looked.holds(term.loss.0.is_finite(), || {
                at(format!("the validation loss {name} is {}", term.loss))
            });
        }
        for (index, loss) in line.micro_batch_losses.iter().enumerate().filter(|_| !skipped) {
            looked.holds(loss.0.is_finite(), || {
                at(format!("the loss of a micro-batch is {loss}")).in_micro_batch(u32::try_from(index).ok())
            });
        }
    }
    for line in &step.digests {
        if skipped && matches!(line.phase, Phase::LocalGradient | Phase::ReducedGradient | Phase::Norm) {
            continue;
        }
        looked.holds(line.norm.0.is_finite(), || {
            let message = format!("{}: the norm is {}", line.phase, line.norm);
            let finding = Finding::new(File::Digests.name(), Some(line.line), message).at(step.step);
            finding.of(&line.tensor).in_micro_batch(line.micro_batch).on(line.ranks.clone())
        });
    }
    looked
}

/// The loss is the sum of the micro-batches' shares.
pub fn loss(_: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = step.metrics.as_ref().filter(|line| !line.micro_batch_losses.is_empty()) else {
        return looked;
    };
    let sum: f64 = line.micro_batch_losses.iter().map(|loss| loss.0).sum();
    if sum.is_finite() && line.loss.0.is_finite() {
        // The order of the additions moves the last bits.
        looked.holds(close(sum, line.loss.0, 1e-9), || {
            let ratio = line.loss.0 / sum;
            let message = format!(
                "the loss is {}, the micro-batches' shares add up to {sum}: {ratio:.4} times that",
                line.loss
            );
            Finding::new(File::Metrics.name(), Some(line.line), message).at(step.step)
        });
    }
    looked
}

/// How far a sum of fp32 numbers may be from the sum of their exact values, relative to their sizes.
const ROUNDED: f64 = 1e-6;

/// The loss of a model with several is their weighted sum, and so is the validation's.
pub fn terms(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = &step.metrics else { return looked };
    let at = |message: String| Finding::new(File::Metrics.name(), Some(line.line), message).at(step.step);
    let validation = line.validation_loss.map(|loss| ("validation loss", loss, &line.validation_loss_terms));
    for (what, loss, terms) in [("loss", line.loss, &line.loss_terms)].into_iter().chain(validation) {
        let Some(parts) = weighted(context, terms) else { continue };
        let sum: f64 = parts.iter().map(|(_, weight, term)| weight * term).sum();
        let size: f64 = parts.iter().map(|(_, weight, term)| (weight * term).abs()).sum();
        if size.is_finite() && loss.0.is_finite() {
            // Each micro-batch's parts and their sum are rounded to fp32.
            looked.holds((loss.0 - sum).abs() <= ROUNDED * size, || {
                let part = |(name, weight, term): &(&str, f64, f64)| format!("{weight} × {name} {term}");
                let parts = parts.iter().map(part).collect::<Vec<_>>().join(" + ");
                at(format!("the {what} is {loss}, but {parts} is {sum}"))
            });
        }
    }
    looked
}

/// Name, weight and value of each loss; the weights are the configuration's `model.NAME_weight`. None without losses, and
/// where a weight is not there: another trainer's may be called otherwise.
fn weighted<'a>(
    context: &Context,
    terms: &'a BTreeMap<String, LossTerm>,
) -> Option<Vec<(&'a str, f64, f64)>> {
    let part = |(name, term): (&'a String, &LossTerm)| {
        let weight = context.number(&format!("model.{name}_weight"))?;
        Some((name.as_str(), weight, term.loss.0))
    };
    let parts: Option<Vec<_>> = terms.iter().map(part).collect();
    parts.filter(|parts| !parts.is_empty())
}

/// Clipping scaled by limit ÷ (norm + 1e-6), at most 1.
pub fn clip(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = step.metrics.as_ref().filter(|line| line.skipped_for.is_none()) else { return looked };
    let (clip, norm) = (line.clip_coefficient.0, line.gradient_norm.0);
    if !clip.is_finite() || !norm.is_finite() {
        return looked;
    }
    let at = |message: String| Finding::new(File::Metrics.name(), Some(line.line), message).at(step.step);
    // Measured ones are the ratio of two rounded norms.
    looked.holds((0.0..=1.0 + 1e-4).contains(&clip), || {
        at(format!("the clip coefficient is {clip}: clipping only shrinks"))
    });
    let limit = match context.config("optim.clip_norm") {
        Some(limit) => limit.as_f64(),
        // The key is known to stand for no clipping where it is null.
        None if context.is_ours() => Some(f64::INFINITY),
        None => None,
    };
    if let Some(limit) = limit.filter(|&limit| limit > 0.0) {
        let expected = (limit / (norm + 1e-6)).min(1.0);
        looked.holds(close(clip, expected, 1e-5), || {
            let limit = if limit.is_finite() {
                format!("optim.clip_norm {limit}")
            } else {
                "no optim.clip_norm".into()
            };
            at(format!(
                "the clip coefficient is {clip}; a gradient of norm {norm} and {limit} ask for {expected}"
            ))
        });
    }
    looked
}
