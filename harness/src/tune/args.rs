//! `lockstep-harness tune`: what was typed.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::setting::Sweep;
use super::{Options, tune};

/// Measures a training with several settings of how its work is done, and writes a configuration with the fastest.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The training's configuration, as the trainer takes it; may be repeated.
    #[arg(long = "config", value_name = "FILE", required = true)]
    configs: Vec<PathBuf>,
    /// One value, as the trainer takes it; may be repeated. It is not written to the new configuration.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Number of ranks to tune for.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: u32,
    /// The new configuration; it must not exist. Beside it comes a picture, with the ending svg.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Steps of each run that are measured.
    #[arg(long, value_name = "STEPS", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,
    /// Runs of each setting.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=1000))]
    repetitions: u32,
    /// Bucket sizes in MiB.
    #[arg(long, value_name = "MIB,...", value_delimiter = ',', default_value = "1,4,25", value_parser = bucket)]
    buckets: Vec<f64>,
    /// Whether communication overlaps backward.
    #[arg(long, value_name = "on,off", value_delimiter = ',', default_value = "on,off", value_parser = switch)]
    overlap: Vec<bool>,
    /// Threads a rank; they change the bits of the result [default: the configuration's only]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Limit of one run, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    timeout: u64,
    /// The trainer's program [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Folder for runs and logs; it must be empty or new [default: runs/tune-CONFIG-TIME]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Command that starts N ranks, with {ranks} for N [default: $LOCKSTEP_MPIRUN or mpirun, with its options]
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
}

fn bucket(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 16_384.0 => Ok(value),
        _ => Err("must be a number of MiB above 0 and up to 16384".into()),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be `on` or `off`".into()),
    }
}

impl TuneArgs {
    /// Does what was asked and returns the exit code.
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let options = Options {
            configs: self.configs,
            sets: self.sets,
            ranks: self.ranks,
            out: self.out,
            steps: self.steps,
            repetitions: self.repetitions,
            sweep: Sweep { buckets: self.buckets, overlap: self.overlap, threads: self.threads },
            timeout: Duration::from_secs(self.timeout),
            trainer: self.trainer,
            work_dir: self.work_dir,
            launcher: self.launcher,
        };
        match tune(&options, out, errors) {
            Ok(()) => lockstep_record::exit::OK,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }
}
