//! What an envelope says, for people.

use std::fmt::Write;

use lockstep_record::Phase;

use super::envelope::{Envelope, Measure};
use crate::median;

/// Steps that the table shows, at most.
const ROWS_MAX: usize = 8;
/// Phases as columns.
const PHASES: [(Phase, &str); 3] = [
    (Phase::ReducedGradient, "gradients"),
    (Phase::Optimizer, "optimizer"),
    (Phase::Parameters, "parameters"),
];

/// The factors, and how the bounds grow from step to step. `golden_norm` is what a series measures in the golden run.
pub fn envelope_text(envelope: &Envelope, golden_norm: &dyn Fn(u64, usize) -> Option<f64>) -> String {
    let mut text = String::new();
    let header = &envelope.header;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} perturbed runs (--perturb {} in units of {}), {} steps, {} series",
        header.seeds.len(),
        header.perturbed,
        header.unit,
        envelope.steps.len(),
        header.series.len()
    );
    let _ = writeln!(
        text,
        "{} terms a sum: another order may move it {:.2} times as far",
        header.terms, header.sum_factor
    );
    for factor in &header.factors {
        let what = match (factor.measure, factor.phase) {
            (Measure::Value, None) => "losses and global norms".to_owned(),
            (Measure::Value, Some(phase)) => format!("norms, {phase}"),
            (Measure::Distance, Some(phase)) => format!("distances, {phase}"),
            (Measure::Distance, None) => continue,
        };
        let largest = factor.largest.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "{what:32} at most {:6.2} times the spread (the farthest perturbed run {largest:.2})",
            factor.factor
        );
    }
    let _ = writeln!(text, "\nbound ÷ norm of the tensor: median (largest)");
    let _ = write!(text, "{:>6}", "step");
    for (_, name) in PHASES {
        let _ = write!(text, "  {:>21}  {:>21}", format!("{name}: distance"), "norm");
    }
    text.push('\n');
    let every = envelope.steps.len().div_ceil(ROWS_MAX).max(1);
    for (index, spreads) in envelope.steps.iter().enumerate() {
        if index % every != 0 && index + 1 != envelope.steps.len() {
            continue;
        }
        let _ = write!(text, "{:>6}", spreads.step);
        for (phase, _) in PHASES {
            for measure in [Measure::Distance, Measure::Value] {
                let _ = write!(text, "  {:>21}", cell(envelope, index, phase, measure, golden_norm));
            }
        }
        text.push('\n');
    }
    text
}

/// Median and largest relative bound over the tensors of a phase.
fn cell(
    envelope: &Envelope,
    step: usize,
    phase: Phase,
    measure: Measure,
    golden_norm: &dyn Fn(u64, usize) -> Option<f64>,
) -> String {
    let number = envelope.steps[step].step;
    let relative = |index: usize| {
        let bound = envelope.bound_of(measure, step, index)?;
        let norm = golden_norm(number, index).filter(|norm| *norm > 0.0)?;
        Some(bound / norm)
    };
    let series =
        (0..envelope.header.series.len()).filter(|&index| envelope.header.series[index].phase == Some(phase));
    let values: Vec<f64> = series.filter_map(relative).collect();
    match median(&values) {
        Some(middle) => {
            let largest = values.iter().copied().fold(0.0, f64::max);
            format!("{middle:.1e} ({largest:.1e})")
        }
        None => "—".into(),
    }
}
