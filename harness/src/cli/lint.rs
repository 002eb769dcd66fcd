//! `lockstep-harness lint`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use lockstep_record::exit;

use super::finish;
use crate::compare::CompareError;
use crate::lint::{Severity, lint, report_text};

#[derive(Debug, Args)]
pub struct LintArgs {
    /// Run directory.
    run: PathBuf,
    /// Fail on warnings, too.
    #[arg(long)]
    strict: bool,
    /// Print findings and checks as JSON.
    #[arg(long)]
    json: bool,
}

impl LintArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let report = match lint(&self.run) {
            Ok(report) => report,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                return if matches!(error, CompareError::NotARun(_)) {
                    exit::USAGE
                } else {
                    exit::CASE_FAILED
                };
            }
        };
        let text = match self.json {
            true => serde_json::to_string_pretty(&report).unwrap_or_default(),
            false => report_text(&report),
        };
        let worst = if self.strict { Severity::Warning } else { Severity::Error };
        let verdict = match report.count(worst) {
            0 if !report.knows_steps() => {
                let _ = writeln!(
                    errors,
                    "error: {}: no step was recorded, so nothing is known",
                    self.run.display()
                );
                exit::CASE_FAILED
            }
            0 => exit::OK,
            _ => exit::DIFFERENT,
        };
        finish(writeln!(out, "{text}"), verdict)
    }
}
