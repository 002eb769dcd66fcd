//! `metrics.csv`, derived from `metrics.jsonl` for spreadsheets.

use std::fmt::Write;
use std::path::Path;

use lockstep_record::{RecordError, RunDir, StepLine, read_lines};

const HEADER: &str = "step,epoch,loss,validation_loss,gradient_norm,parameter_norm,clip_coefficient,learning_rate,tokens,\
tokens_per_second,seconds_total,seconds_data,seconds_forward,seconds_backward,seconds_communication,seconds_optimizer,\
seconds_record,resident_bytes_max,bytes_sent,loss_scale";

/// The CSV of a run's metrics. Every field is a number, so nothing needs quotes. The losses of a model that has several follow
/// the columns that every run has.
fn csv(metrics: &Path) -> Result<String, RecordError> {
    let mut text = String::new();
    let mut terms: Vec<String> = Vec::new();
    for line in read_lines::<StepLine>(metrics)? {
        let line = line?;
        if text.is_empty() {
            terms = line.loss_terms.keys().cloned().collect();
            text = header(&terms);
        }
        let seconds = line.seconds;
        let validation = line.validation_loss.map(|loss| loss.to_string()).unwrap_or_default();
        let scale = line.loss_scale.map(|scale| scale.scale.to_string()).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{},{},{},{validation},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{scale}",
            line.step,
            line.epoch,
            line.loss,
            line.gradient_norm,
            line.parameter_norm,
            line.clip_coefficient,
            line.learning_rate,
            line.tokens,
            line.tokens_per_second,
            seconds.total,
            seconds.data,
            seconds.forward,
            seconds.backward,
            seconds.communication,
            seconds.optimizer,
            seconds.record,
            line.resident_bytes_max,
            line.bytes_sent
        );
        for name in &terms {
            let loss = line.loss_terms.get(name).map(|term| term.loss.to_string()).unwrap_or_default();
            let _ = write!(text, ",{loss}");
        }
        text.push('\n');
    }
    Ok(if text.is_empty() { header(&[]) } else { text })
}

fn header(terms: &[String]) -> String {
    let terms: String = terms.iter().map(|name| format!(",loss_terms_{name}")).collect();
    format!("{HEADER}{terms}\n")
}

/// Writes `metrics.csv` anew.
pub fn derive(run: &RunDir) -> Result<(), String> {
    let text = csv(&run.metrics()).map_err(|error| error.to_string())?;
    crate::files::replace(&run.metrics_csv(), text.as_bytes()).map_err(|error| error.to_string())
}
