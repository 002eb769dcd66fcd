//! Progress on rank 0's standard error: a bar on a terminal, a plain line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lockstep_record::StepLine;

/// Between two plain lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// How progress is shown.
pub enum Progress {
    /// On ranks other than 0.
    Silent,
    Bar(ProgressBar),
    Lines {
        steps: u64,
        last: Option<Instant>,
    },
}

impl Progress {
    /// For a run of `steps` steps of which `done` are done.
    pub fn new(rank: usize, steps: u64, done: u64) -> Self {
        if rank != 0 {
            return Self::Silent;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { steps, last: None };
        }
        let bar = ProgressBar::new(steps).with_position(done);
        let template = "{bar:30} step {pos}/{len}  {msg}  {eta} left";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self::Bar(bar)
    }

    pub fn step(&mut self, line: &StepLine) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_message(describe(line));
                bar.set_position(line.step);
            }
            Self::Lines { steps, last } => {
                let due = last.is_none_or(|last| last.elapsed() >= INTERVAL);
                if due || line.step == *steps {
                    *last = Some(Instant::now());
                    eprintln!("step {}/{steps}  {}", line.step, describe(line));
                }
            }
        }
    }

    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.abandon();
        }
    }
}

fn describe(line: &StepLine) -> String {
    let terms: Vec<String> =
        line.loss_terms.iter().map(|(name, term)| format!("{name} {:.4}", term.loss.0)).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
    let validation =
        line.validation_loss.map(|loss| format!("  validation {:.4}", loss.0)).unwrap_or_default();
    let scale = line.loss_scale.map(|scale| format!("  scale {}", scale.scale)).unwrap_or_default();
    format!(
        "loss {:.4}{terms}{validation}  |g| {:.3}{scale}  lr {:.2e}  {:.0} tokens/s",
        line.loss.0, line.gradient_norm.0, line.learning_rate.0, line.tokens_per_second.0
    )
}
