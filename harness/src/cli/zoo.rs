//! `lockstep-harness zoo`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::zoo::{Clean, Options, zoo};

#[derive(Debug, Args)]
pub struct ZooArgs {
    /// Catalogue of planted bugs [default: harness/plans/zoo.yaml here, or above the trainer]
    plan: Option<PathBuf>,
    /// Only bugs whose GROUP/NAME contains this (`*` stands for anything); may be given again.
    #[arg(long, value_name = "PATTERN", conflicts_with = "clean")]
    only: Vec<String>,
    /// Instead of the bugs, make this many runs without one, drawn over seeds, models, precisions, batches, ranks, strategies,
    /// buckets and resumes; any difference from their golden runs is a false alarm.
    #[arg(long, value_name = "RUNS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clean: Option<u32>,
    /// Of the draw of clean runs.
    #[arg(long, value_name = "SEED", default_value_t = 1, requires = "clean")]
    seed: u64,
    /// Plant this bug in the clean runs, to see the campaign fail.
    #[arg(long, value_name = "NAME", requires = "clean")]
    plant: Option<String>,
    /// Runs at a time.
    #[arg(long, value_name = "JOBS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,
    /// Folder for runs and reports; it must be empty or new [default: runs/run-zoo-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The trainer's program, built with planted bugs [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Command that starts N ranks, with {ranks} for N [default: $LOCKSTEP_MPIRUN or mpirun, with its options]
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
}

impl ZooArgs {
    /// Does what was asked and returns the exit code.
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let Self { seed, plant, .. } = self;
        let options = Options {
            plan: self.plan,
            trainer: self.trainer,
            launcher: self.launcher,
            out: self.out,
            only: self.only,
            jobs: self.jobs as usize,
            clean: self.clean.map(|runs| Clean { runs: runs as usize, seed, plant }),
        };
        match zoo(&options, out, errors) {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }
}
