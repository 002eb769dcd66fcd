//! `lockstep-harness bisect`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_record::exit;

use super::finish;
use crate::bisect::{Options, bisect, bisection_json, bisection_text};

#[derive(Debug, Args)]
pub struct BisectArgs {
    /// Run directory that is right by definition.
    golden: PathBuf,
    /// Run directory that is judged.
    candidate: PathBuf,
    /// Say what the records say, and train nothing again.
    #[arg(long)]
    no_replay: bool,
    /// The trainer's program [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Command that starts N ranks, with {ranks} for N [default: $LOCKSTEP_MPIRUN or mpirun, with its options]
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
    /// Folder for the steps that are trained again; it must be empty or new [default: runs/bisect-CANDIDATE-TIME]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Longest time that one launch may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    timeout: u64,
    /// Write the finding as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl BisectArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let options = Options {
            golden: self.golden,
            candidate: self.candidate,
            replay: !self.no_replay,
            trainer: self.trainer,
            launcher: self.launcher,
            work_dir: self.work_dir,
            timeout: Duration::from_secs(self.timeout),
        };
        let bisection = match bisect(&options) {
            Ok(bisection) => bisection,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                return error.exit_code();
            }
        };
        if let Some(path) = &self.json
            && let Err(error) = std::fs::write(path, bisection_json(&bisection))
        {
            let _ = writeln!(errors, "error: {}: {error}", path.display());
            return exit::INTERNAL;
        }
        let verdict = if bisection.finding.is_some() { exit::DIFFERENT } else { exit::OK };
        finish(writeln!(out, "{}", bisection_text(&bisection, &options)), verdict)
    }
}
