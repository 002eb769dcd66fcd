//! The prediction on the terminal.

use std::fmt::Write;

use super::{Checked, Predicted, Prediction, Scaling, Scope};

/// Constants, errors and curves. Nothing is shown without saying what was measured and what was not.
pub fn prediction_text(prediction: &Prediction) -> String {
    let mut text = format!(
        "PREDICTION, not a measurement: a cost model fitted to {} measurements. docs/scaling.md says how, and its \
         limits.\n",
        prediction.fitted.len()
    );
    constants(&mut text, prediction);
    validation(&mut text, prediction);
    for scaling in &prediction.scaling {
        curve(&mut text, scaling, &prediction.scope);
    }
    text.trim_end().to_owned()
}

fn constants(text: &mut String, prediction: &Prediction) {
    text.push_str("\nFitted constants\n");
    for (name, cost) in &prediction.constants.workloads {
        let _ = writeln!(
            text,
            "  workload {name}: {:.2} ms forward and {:.2} ms backward a micro-batch; {:.2} ms optimizer and {:.2} ms fixed \
             a step",
            cost.forward_s * 1e3,
            cost.backward_s * 1e3,
            cost.optimizer_s * 1e3,
            cost.fixed_s * 1e3
        );
    }
    for (name, cost) in &prediction.constants.links {
        let (low, high) = prediction.link_ranges.get(name).copied().unwrap_or((*cost, *cost));
        let _ = writeln!(
            text,
            "  link {name}: {:.1} µs a message ({:.1} to {:.1}), {:.3} ns a byte ({:.3} to {:.3}), that is {}",
            cost.latency_s * 1e6,
            low.latency_s * 1e6,
            high.latency_s * 1e6,
            cost.seconds_per_byte * 1e9,
            low.seconds_per_byte * 1e9,
            high.seconds_per_byte * 1e9,
            bandwidth(cost.seconds_per_byte)
        );
    }
    text.push_str(
        "  Ranges: refits with the measurements' errors dealt out anew. A wide one: see docs/scaling.md\n",
    );
}

fn bandwidth(seconds_per_byte: f64) -> String {
    match seconds_per_byte > 0.0 {
        true => format!("{:.1} MB/s", 1e-6 / seconds_per_byte),
        false => "no limit".to_owned(),
    }
}

fn validation(text: &mut String, prediction: &Prediction) {
    let errors = prediction.fitted.iter().map(|checked| checked.error_percent);
    let _ = writeln!(
        text,
        "\nError of a step's time: median {:.1} %, at most {:.1} %, over the measurements that it was fitted to",
        prediction.fitted_median_error_percent,
        errors.fold(0.0, f64::max)
    );
    let Some(median) = prediction.held_out_median_error_percent else {
        text.push_str("Not validated: no measurement was held out of the fit (--holdout)\n");
        return;
    };
    let (limit, number) = (prediction.max_error_percent, prediction.held_out.len());
    let verdict = if prediction.failed() { "NOT VALID" } else { "valid" };
    let _ = writeln!(
        text,
        "Held out of the fit: median {median:.1} % over {number}, limit {limit} %: {verdict}\n"
    );
    let _ = writeln!(text, "  {:>9}  {:>9}  {:>6}  held-out measurement", "measured", "predicted", "error");
    prediction.held_out.iter().for_each(|checked| held_out(text, checked));
}

fn held_out(text: &mut String, checked: &Checked) {
    let measurement = &checked.measurement;
    let _ = writeln!(
        text,
        "  {:>7.4} s  {:>7.4} s  {:>5.1}%  {}, {} rank(s), {} micro-batches",
        measurement.step_s,
        checked.predicted_step_s,
        checked.error_percent,
        super::Series::from(measurement),
        measurement.ranks,
        measurement.micro_batches
    );
}

fn curve(text: &mut String, scaling: &Scaling, scope: &Scope) {
    let _ = writeln!(text, "\nPredicted: {}", scaling.series);
    let strong = format!("strong: {} micro-batches a step", scope.micro_batches);
    let weak = format!("weak: {} micro-batch(es) a rank", scope.micro_batches_a_rank);
    let _ = writeln!(text, "  {:>6}  {strong:<38}  {weak}", "");
    text.push_str("   ranks    s a step  E_s (range)                   s a step  E_w (range)\n");
    for point in &scaling.points {
        let (strong, weak) = (efficiency(&point.strong), efficiency(&point.weak));
        let _ = writeln!(
            text,
            "  {:>6}  {:>10.4}  {strong:<26}  {:>10.4}  {weak}",
            point.ranks, point.strong.step_s, point.weak.step_s
        );
    }
}

fn efficiency(predicted: &Predicted) -> String {
    let (low, high) = predicted.efficiency_range;
    format!("{:.3} ({low:.3} to {high:.3})", predicted.efficiency)
}
