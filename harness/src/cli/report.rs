//! `lockstep-harness report`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::tolerance;
use crate::compare::{Mode, Tolerance};
use crate::report::{Options, report};

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run directories, of which the first is the reference; or report.json files, which are shown beside one another.
    #[arg(required = true, value_name = "RUN")]
    inputs: Vec<PathBuf>,
    /// Folder for report.html, report.json and junit.xml [default: `report` in the first run's directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Accept |run − reference| ≤ atol + rtol·|reference|, instead of demanding the same bits.
    #[arg(long, value_name = "R", value_parser = tolerance)]
    rtol: Option<f64>,
    /// See --rtol; each is 0 when only the other is given.
    #[arg(long, value_name = "A", value_parser = tolerance)]
    atol: Option<f64>,
}

impl ReportArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let mode = match (self.rtol, self.atol) {
            (None, None) => Mode::Exact,
            (rtol, atol) => Mode::Tolerance(Tolerance {
                rtol: rtol.unwrap_or(0.0),
                atol: atol.unwrap_or(0.0),
                parameter_norm_atol: None,
            }),
        };
        match report(&Options { inputs: self.inputs, out: self.out, mode }, out) {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }
}
