//! `lockstep-harness report`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::mode::ModeArgs;
use crate::report::{Options, report};

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run directories, of which the first is the golden run; or report.json files, which are shown beside one another.
    #[arg(required = true, value_name = "RUN")]
    inputs: Vec<PathBuf>,
    /// Folder for report.html, report.json and junit.xml [default: `report` in the first run's directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    mode: ModeArgs,
}

impl ReportArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let (mode, families) = (self.mode.mode(), self.mode.families());
        let options = Options { inputs: self.inputs, out: self.out, mode, families };
        match report(&options, out) {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }
}
