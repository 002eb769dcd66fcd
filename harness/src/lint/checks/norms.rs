//! Norms of tensors against one another: within a step, and across a resume with other ranks.

use std::collections::HashMap;

use lockstep_record::Phase;

use super::super::facts::{Context, File, StepFacts};
use super::super::finding::{Finding, Looked};
use super::super::history::{Brief, History};
use super::close;

/// The global norm's square is the sum of the tensors' squares.
pub fn gradient(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let norm = step.metrics.as_ref().map(|line| line.gradient_norm.0);
    whole(context, step, Phase::ReducedGradient, norm, "gradient_norm")
}

/// As [`gradient`], of the parameters after the update.
pub fn parameters(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let norm = step.metrics.as_ref().map(|line| line.parameter_norm.0);
    whole(context, step, Phase::Parameters, norm, "parameter_norm")
}

fn whole(context: &Context, step: &StepFacts, phase: Phase, norm: Option<f64>, name: &str) -> Looked {
    let mut looked = Looked::default();
    let lines = step.tensors(phase);
    let (Some(norm), Some(metrics), false) = (norm, &step.metrics, lines.is_empty()) else { return looked };
    let expected = lines.iter().map(|line| line.norm.0 * line.norm.0).sum::<f64>().sqrt();
    if norm.is_finite() && expected.is_finite() {
        // Ours is in double precision throughout; others may have taken it from a library in single precision.
        let rtol = if context.is_ours() { 1e-10 } else { 1e-5 };
        looked.holds(close(norm, expected, rtol), || {
            let message = format!(
                "{name} is {norm}, but the norms of {} tensors make {expected}: {:.6} times that",
                lines.len(),
                norm / expected
            );
            Finding::new(File::Metrics.name(), Some(metrics.line), message).at(step.step)
        });
    }
    looked
}

/// The reduced gradient is no longer than the local gradients laid end to end, and no shorter than the longest of them
/// without the others (the triangle inequality): a sum over too many ranks or too few breaks that.
pub fn triangle(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let whole = context.manifest.config.get("reduce_dtype").is_none_or(|dtype| dtype == "fp32");
    let exact = whole && context.segment(step.step).is_some_and(|segment| segment.compression.is_none());
    let mut local: HashMap<&str, Vec<f64>> = HashMap::new();
    for line in step.tensors(Phase::LocalGradient) {
        local.entry(line.tensor.as_str()).or_default().push(line.norm.0);
    }
    for line in step.tensors(Phase::ReducedGradient).into_iter().filter(|_| exact) {
        let Some(norms) = local.get(line.tensor.as_str()).filter(|norms| norms.len() == step.micro_batches())
        else {
            continue;
        };
        let (sum, most) = (norms.iter().sum::<f64>(), norms.iter().copied().fold(0.0, f64::max));
        let (found, slack) = (line.norm.0, 1e-4 * norms.iter().sum::<f64>());
        if !found.is_finite() || !sum.is_finite() {
            continue;
        }
        looked.holds(found <= sum + slack && found >= 2.0 * most - sum - slack, || {
            let message = format!(
                "the reduced gradient has norm {found}, but the local gradients of {} micro-batches can only add up to \
                 something from {} to {sum}",
                norms.len(),
                (2.0 * most - sum).max(0.0)
            );
            Finding::new(File::Digests.name(), Some(line.line), message).at(step.step).of(&line.tensor)
        });
    }
    looked
}

/// Steps on either side of a resume that are compared.
const WINDOW: usize = 4;

/// A resume with another number of ranks does not scale the gradient by it.
pub fn resume(context: &Context, history: &History) -> Looked {
    let mut looked = Looked::default();
    for pair in context.manifest.segments.windows(2) {
        let (old, new) = (f64::from(pair[0].world_size.max(1)), f64::from(pair[1].world_size.max(1)));
        let from = pair[1].from_step;
        let (before, after) = around(&history.steps, from);
        if old == new || before.len() < 2 || after.len() < 2 {
            continue;
        }
        let norms = |steps: &[&Brief]| steps.iter().map(|step| step.gradient_norm).collect::<Vec<f64>>();
        let (before_norms, after_norms) = (norms(&before), norms(&after));
        let jump = geometric_mean(&after_norms) / geometric_mean(&before_norms);
        // What neighbouring steps differ by anyway.
        let usual = spread(&before_norms).max(spread(&after_norms));
        let factor = [new, old, new / old, 1.0 / new, 1.0 / old, old / new].into_iter().find(|factor| {
            *factor != 1.0 && close(jump, *factor, 0.2) && jump.max(1.0 / jump) > 1.25 * usual
        });
        looked.fact(factor.map(|factor| {
            let message = format!(
                "gradient norms are {jump:.2} times those before the resume with {new} ranks instead of {old}, about {factor:.2}: \
                 neighbouring steps differ by {usual:.2} at most"
            );
            let first = after[0];
            Finding::new(File::Metrics.name(), Some(first.line), message).at(first.step)
        }));
    }
    looked
}

/// The steps before and after a resume from a step, as far as their norms can be compared.
fn around(steps: &[Brief], from: u64) -> (Vec<&Brief>, Vec<&Brief>) {
    let usable = |step: &&Brief| !step.skipped && step.gradient_norm.is_finite() && step.gradient_norm > 0.0;
    let split = steps.partition_point(|step| step.step <= from);
    let mut before: Vec<&Brief> = steps[..split].iter().rev().filter(usable).take(WINDOW).collect();
    before.reverse();
    (before, steps[split..].iter().filter(usable).take(WINDOW).collect())
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len().max(1) as f64).exp()
}

/// Largest over smallest.
fn spread(values: &[f64]) -> f64 {
    let (least, most) =
        values.iter().fold((f64::INFINITY, 0f64), |(least, most), &v| (least.min(v), most.max(v)));
    most / least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_spreads() {
        assert!(close(geometric_mean(&[1.0, 4.0]), 2.0, 1e-12));
        assert_eq!(spread(&[2.0, 1.0, 3.0]), 3.0);
    }

    #[test]
    fn only_usable_steps_count() {
        let step = |step: u64, norm: f64| Brief {
            line: step,
            step,
            gradient_norm: norm,
            learning_rate: 0.1,
            skipped: false,
        };
        let steps = [step(1, 1.0), step(2, f64::NAN), step(3, 2.0), step(4, 0.0), step(5, 3.0)];
        let (before, after) = around(&steps, 3);
        assert_eq!(before.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(after.iter().map(|s| s.step).collect::<Vec<_>>(), [5]);
        assert_eq!(around(&[], 3), (vec![], vec![]));
    }
}
