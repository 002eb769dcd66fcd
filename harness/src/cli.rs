//! The command line: what was typed, and which exit code it ends with.

mod bisect;
mod bless;
mod lint;
mod mode;
mod predict;
mod report;
mod tolerance;
mod trace;
mod zoo;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lockstep_record::{RunDir, exit};

use crate::bench::BenchArgs;
use crate::compare::{CompareError, compare_families};
use crate::flight::{self, FlightError};
use crate::report::{comparison_json, comparison_text};
use crate::tune::TuneArgs;
use crate::verify::{self, Keep, Options};

/// Compares training runs bit for bit, and proves that a trainer keeps its promise; shows where their time went.
///
/// Exit codes: 0 equal, or done; 2 wrong command line or plan; 100 a difference was found, or with `bench --strict` an aim
/// was missed; 101 something could not be compared or run, so nothing is known about it.
#[derive(Debug, Parser)]
#[command(name = "lockstep-harness", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare two run directories and name the first difference.
    Compare(CompareArgs),
    /// Find where two runs part: step, phase, tensor, rank and elements.
    Bisect(bisect::BisectArgs),
    /// Look for what is wrong in one run by itself, without a golden run.
    Lint(lint::LintArgs),
    /// Store a run as a golden run, with what its bits depend on; or list those that are stored.
    Bless(bless::BlessArgs),
    /// Run a plan of launches, compare each with its golden run, and report.
    Verify(VerifyArgs),
    /// Show any number of runs beside the first one: a table, and a page with their curves.
    Report(report::ReportArgs),
    /// Make a golden run's envelope, for comparisons with --tolerance auto.
    Tolerance(tolerance::ToleranceArgs),
    /// Say where the ranks of a run that hung or broke part: who is missing, and what each was doing.
    Flight {
        /// Run directory.
        run: PathBuf,
    },
    /// Sum up the traces of a run: how much of its communication was hidden behind computing.
    Trace(trace::TraceArgs),
    /// Print what a run took as one line of JSON, for `predict`.
    Measure(predict::MeasureArgs),
    /// Fit a cost model to measured runs and predict strong and weak scaling.
    Predict(predict::PredictArgs),
    /// Measure ours against theirs in pairs of runs, and report the ratios.
    Bench(BenchArgs),
    /// Find the fastest bucket size, overlap and threads for a training on this machine.
    Tune(TuneArgs),
    /// Plant bugs in the trainer and judge whether step, phase and tensor are named right; or make clean runs and count false
    /// alarms.
    Zoo(zoo::ZooArgs),
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Run directory that is right by definition.
    golden: PathBuf,
    /// Run directory that is judged.
    candidate: PathBuf,
    #[command(flatten)]
    mode: mode::ModeArgs,
    /// Print the comparison as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Plan of groups, golden runs and cases; see harness/plans/demo.yaml.
    plan: PathBuf,
    /// The trainer's program [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Folder for runs and reports; it must be empty or new [default: runs/verify-PLAN-TIME]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Only cases whose GROUP/NAME contains this (`*` stands for anything); their golden runs always run.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Command that starts N ranks, with {ranks} for N [default: $LOCKSTEP_MPIRUN or mpirun, with its
    /// options]
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
    /// Stop at the first case that does not pass, instead of going on with the rest.
    #[arg(long)]
    fail_fast: bool,
    /// Which candidates' checkpoints to keep: they are the bulk of the work folder.
    #[arg(long, value_enum, default_value_t = Keep::Different)]
    keep_checkpoints: Keep,
}

impl Cli {
    /// Does what was asked and returns the exit code.
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        match self.command {
            Command::Compare(args) => run_compare(&args, out, errors),
            Command::Bisect(args) => args.run(out, errors),
            Command::Lint(args) => args.run(out, errors),
            Command::Bless(args) => args.run(out, errors),
            Command::Verify(args) => run_verify(args, out, errors),
            Command::Report(args) => args.run(out, errors),
            Command::Tolerance(args) => args.run(out, errors),
            Command::Flight { run } => run_flight(run, out, errors),
            Command::Trace(args) => args.run(out, errors),
            Command::Measure(args) => args.run(out, errors),
            Command::Predict(args) => args.run(out, errors),
            Command::Bench(args) => args.run(out, errors),
            Command::Tune(args) => args.run(out, errors),
            Command::Zoo(args) => args.run(out, errors),
        }
    }
}

fn run_compare(args: &CompareArgs, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
    let (mode, families) = (args.mode.mode(), args.mode.families());
    let comparison = match compare_families(&args.golden, &args.candidate, mode, families) {
        Ok(comparison) => comparison,
        Err(error) => {
            let _ = writeln!(errors, "error: {error}");
            return if matches!(error, CompareError::NotARun(_)) { exit::USAGE } else { exit::CASE_FAILED };
        }
    };
    let text = match args.json {
        true => comparison_json(&comparison),
        false => comparison_text(&comparison),
    };
    let verdict = if comparison.passed() { exit::OK } else { exit::DIFFERENT };
    finish(writeln!(out, "{text}"), verdict)
}

/// A reader that went away does not change the verdict; any other failed write does.
fn finish(written: std::io::Result<()>, verdict: i32) -> i32 {
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => exit::INTERNAL,
        _ => verdict,
    }
}

fn run_verify(args: VerifyArgs, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
    let options = Options {
        plan: args.plan,
        trainer: args.trainer,
        work_dir: args.work_dir,
        only: args.only,
        launcher: args.launcher,
        fail_fast: args.fail_fast,
        keep_checkpoints: args.keep_checkpoints,
    };
    match verify::verify(&options, out) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(errors, "error: {error}");
            error.exit_code()
        }
    }
}

fn run_flight(run: PathBuf, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
    match flight::read(&RunDir::new(run)) {
        Ok(flight) => finish(write!(out, "{}", flight.text()), exit::OK),
        Err(error) => {
            let _ = writeln!(errors, "error: {error}");
            match error {
                FlightError::NotARun(_) => exit::USAGE,
                FlightError::NoFiles(_) => exit::NOTHING_TO_DO,
                _ => exit::CASE_FAILED,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
