//! `lockstep-harness trace`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use lockstep_record::exit;

use super::finish;
use crate::trace::{Options, Steps, trace, trace_text};

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Directory of a run that was trained with --trace.
    run: PathBuf,
    /// Where all ranks' events go, in one file for Perfetto [default: RUN/trace/trace.json]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw the first three of the selected steps.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Steps that count, both ends included, such as 5..8 or 1.. [default: all but the first, which warms up]
    #[arg(long, value_name = "A..B")]
    steps: Option<Steps>,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

impl TraceArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let options = Options { run: self.run, out: self.out, svg: self.svg, steps: self.steps };
        let report = match trace(&options) {
            Ok(report) => report,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                return error.exit_code();
            }
        };
        let text = match self.json {
            true => serde_json::to_string_pretty(&report).unwrap_or_default(),
            false => trace_text(&report),
        };
        finish(writeln!(out, "{text}"), exit::OK)
    }
}
