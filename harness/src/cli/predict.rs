//! `lockstep-harness measure` and `lockstep-harness predict`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use lockstep_record::exit;

use super::finish;
use crate::predict::{
    Extraction, Options, Prediction, Scope, Selector, extract, picture, predict, prediction_text,
};
use crate::report::write_whole;

/// Buckets and micro-batches beyond any training.
const NUMBER_MAX: i64 = 1 << 20;
/// Ranks beyond any machine.
const RANKS_MAX: i64 = 1 << 16;

#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// Run directory of a finished run, best with --trace and record.digests_every=0.
    run: PathBuf,
    /// Name for what takes the same time a micro-batch: model, micro-batch size, threads and machine.
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// Name for what lies between the ranks, such as 1gbit.
    #[arg(long, value_name = "NAME")]
    link: String,
    /// Number of buckets [default: from the trace, else by parallel.bucket_mb]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=NUMBER_MAX))]
    buckets: Option<u32>,
    /// Whether buckets travelled while backward went on [default: the run's parallel.overlap, or false]
    #[arg(long, value_name = "BOOL")]
    overlap: Option<bool>,
}

#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Files of measurements, a line each, as `measure` prints them.
    #[arg(required = true)]
    measurements: Vec<PathBuf>,
    /// Keep these measurements out of the fit and see how well they are predicted, such as
    /// link=1gbit,ranks=4; may be repeated.
    #[arg(long, value_name = "KEY=VALUE,...")]
    holdout: Vec<Selector>,
    /// Predict only for measurements like these.
    #[arg(long, value_name = "KEY=VALUE,...")]
    only: Option<Selector>,
    /// Largest median error of what was held out, in percent; beyond it the exit code is 100.
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = percent)]
    max_error: f64,
    /// Predict up to this many ranks.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=RANKS_MAX))]
    to: u32,
    /// Strong scaling: micro-batches of a step, at least as many as ranks [default: as many as --to]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(2..=NUMBER_MAX))]
    micro_batches: Option<u32>,
    /// Weak scaling: micro-batches of a step for each rank.
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    micro_batches_a_rank: u32,
    /// Draw both curves.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("must be a number of percent above 0, such as 10".into()),
    }
}

impl MeasureArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let Self { run, workload, link, buckets, overlap } = self;
        match extract(&Extraction { run, workload, link, buckets, overlap }) {
            Ok(measurement) => {
                let line = serde_json::to_string(&measurement).unwrap_or_default();
                finish(writeln!(out, "{line}"), exit::OK)
            }
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                exit::USAGE
            }
        }
    }
}

impl PredictArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let micro_batches = self.micro_batches.unwrap_or(self.to);
        if micro_batches < self.to {
            let _ = writeln!(
                errors,
                "error: {micro_batches} micro-batches cannot be shared by {} ranks: lower --to or raise --micro-batches",
                self.to
            );
            return exit::USAGE;
        }
        let options = Options {
            measurements: self.measurements,
            holdout: self.holdout,
            only: self.only,
            scope: Scope { to: self.to, micro_batches, micro_batches_a_rank: self.micro_batches_a_rank },
            max_error_percent: self.max_error,
        };
        let prediction = match predict(&options) {
            Ok(prediction) => prediction,
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                return exit::USAGE;
            }
        };
        if let Err((path, error)) = write_files(&prediction, self.svg.as_deref(), self.json.as_deref()) {
            let _ = writeln!(errors, "error: cannot write {}: {error}", path.display());
            return exit::INTERNAL;
        }
        let verdict = if prediction.failed() { exit::DIFFERENT } else { exit::OK };
        finish(writeln!(out, "{}", prediction_text(&prediction)), verdict)
    }
}

fn write_files<'a>(
    prediction: &Prediction,
    svg: Option<&'a Path>,
    json: Option<&'a Path>,
) -> Result<(), (&'a Path, std::io::Error)> {
    if let Some(path) = svg {
        write_whole(path, &picture(prediction)).map_err(|error| (path, error))?;
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(prediction).map_err(|error| (path, error.into()))?;
        write_whole(path, &text).map_err(|error| (path, error))?;
    }
    Ok(())
}
