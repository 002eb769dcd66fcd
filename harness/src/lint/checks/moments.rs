//! Whether the optimizer's state can have come from the step before and this step's gradient.

use lockstep_record::{DigestLine, Phase};

use super::super::facts::{Context, File, Numbered, StepFacts};
use super::super::finding::{Finding, Looked};

/// What the norms of a state can be: from, to.
type Bounds = (f64, f64);

/// The norm of each tensor of optimizer state lies within what the one before and the clipped gradient can add up to: a
/// state that a resume forgot, a gradient that was not clipped, or one of another step does not.
pub fn moments(context: &Context, before: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(rule) = Rule::of(context) else { return looked };
    let Some(metrics) =
        step.metrics.as_ref().filter(|line| line.skipped_for.is_none() && line.unused_parameters == 0)
    else {
        return looked;
    };
    let before = before.filter(|before| before.step + 1 == step.step);
    for line in step.tensors(Phase::Optimizer) {
        let Some((kind, name)) = line.tensor.split_once('/') else { continue };
        let Some(gradient) = step.norm(Phase::ReducedGradient, name) else { continue };
        let earlier = match before.and_then(|before| before.norm(Phase::Optimizer, &line.tensor)) {
            Some(norm) => norm,
            // Nothing has been added up before the first step of a run.
            None if step.step == 1 => 0.0,
            None => continue,
        };
        let Some(bounds) = rule.bounds(kind, earlier, gradient * metrics.clip_coefficient.0) else {
            continue;
        };
        if bounds.1.is_finite() && line.norm.0.is_finite() {
            looked.fact(finding(line, step.step, bounds, earlier, gradient));
        }
    }
    looked
}

fn finding(
    line: &Numbered<DigestLine>,
    step: u64,
    (least, most): Bounds,
    earlier: f64,
    gradient: f64,
) -> Option<Finding> {
    // Norms of fp32 numbers, each rounded.
    let slack = 1e-5 * most + 1e-30;
    if line.norm.0 >= least - slack && line.norm.0 <= most + slack {
        return None;
    }
    let message = format!(
        "norm {} does not follow from {earlier} a step before and a gradient of norm {gradient}: it can be from {least} to {most}",
        line.norm
    );
    let finding = Finding::new(File::Digests.name(), Some(line.line), message).at(step).of(&line.tensor);
    Some(finding.on(line.ranks.clone()))
}

/// How an optimizer adds a gradient to its state.
enum Rule {
    Adam { first: f64, second: f64 },
    Momentum(f64),
}

impl Rule {
    fn of(context: &Context) -> Option<Self> {
        match context.text("optim.kind")? {
            "adamw" => {
                let betas = context.config("optim.betas")?.as_array()?;
                Some(Self::Adam { first: betas.first()?.as_f64()?, second: betas.get(1)?.as_f64()? })
            }
            "sgd" => Some(Self::Momentum(context.number("optim.momentum")?)),
            _ => None,
        }
    }

    /// Of `kind` after a gradient of norm `gradient`, where its norm was `earlier`.
    fn bounds(&self, kind: &str, earlier: f64, gradient: f64) -> Option<Bounds> {
        // ‖a + b‖ lies between the difference and the sum of their norms.
        let around = |kept: f64, added: f64| ((kept - added).abs(), kept + added);
        match (self, kind) {
            (Self::Adam { first, .. }, "exp_avg") => Some(around(first * earlier, (1.0 - first) * gradient)),
            // Squares are not negative, so what is kept is a lower bound; and ‖g²‖ ≤ ‖g‖².
            (Self::Adam { second, .. }, "exp_avg_sq") => {
                let kept = second * earlier;
                Some((kept, kept + (1.0 - second) * gradient * gradient))
            }
            (Self::Momentum(momentum), "momentum") => Some(around(momentum * earlier, gradient)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn norm(values: &[f64]) -> f64 {
        values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    proptest! {
        /// Whatever state and gradient there are, a right update is within the bounds.
        #[test]
        fn a_right_update_is_within(
            pairs in proptest::collection::vec((-10.0f64..10.0, -10.0f64..10.0), 1..40), first in 0.0f64..1.0, second in 0.0f64..1.0,
        ) {
            let (state, gradient): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let rule = Rule::Adam { first, second };
            let update = |beta: f64, old: &[f64], new: &dyn Fn(f64) -> f64| -> Vec<f64> {
                old.iter().zip(&gradient).map(|(old, g)| beta * old + (1.0 - beta) * new(*g)).collect()
            };
            let inside = |bounds: Bounds, found: f64| found >= bounds.0 - 1e-9 && found <= bounds.1 + 1e-9;
            let found = norm(&update(first, &state, &|g| g));
            prop_assert!(inside(rule.bounds("exp_avg", norm(&state), norm(&gradient)).unwrap(), found));
            let squares: Vec<f64> = state.iter().map(|value| value * value).collect();
            let found = norm(&update(second, &squares, &|g| g * g));
            prop_assert!(inside(rule.bounds("exp_avg_sq", norm(&squares), norm(&gradient)).unwrap(), found));
            let found: Vec<f64> = state.iter().zip(&gradient).map(|(old, g)| first * old + g).collect();
            let momentum = Rule::Momentum(first).bounds("momentum", norm(&state), norm(&gradient)).unwrap();
            prop_assert!(inside(momentum, norm(&found)));
        }
    }

    #[test]
    fn a_forgotten_state_is_outside() {
        let rule = Rule::Adam { first: 0.9, second: 0.95 };
        let (least, _) = rule.bounds("exp_avg", 1.0, 1.0).unwrap();
        assert!((1.0 - 0.9) * 1.0 < least);
        let (least, _) = rule.bounds("exp_avg_sq", 1.0, 1.0).unwrap();
        assert!((1.0 - 0.95) * 1.0 < least);
        assert!(rule.bounds("else", 1.0, 1.0).is_none());
    }
}
