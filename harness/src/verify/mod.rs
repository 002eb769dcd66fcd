//! Runs a plan: golden runs, candidates, a comparison of each pair, and the reports.

mod cases;
mod plan;

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use lockstep_record::exit;

use crate::launch::{Launcher, PlaceError, find_trainer, make_work_dir, stop_flag};
use crate::plan_file::PlanError;
use crate::report::{Outcome, Reporter};
use cases::Runner;

pub use plan::{Case, Group, Plan, Stage};

/// Which candidates' checkpoints stay on disk. Golden runs keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Keep {
    All,
    /// Those of candidates that did not pass.
    Different,
}

/// What `verify` was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub plan: PathBuf,
    pub trainer: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub only: Option<String>,
    pub launcher: Option<String>,
    pub fail_fast: bool,
    pub keep_checkpoints: Keep,
}

/// Why a plan could not even be started, or not finished.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("--only {0}: no case of the plan has such a name")]
    NothingSelected(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted: the reports in {} hold the cases that were finished", .0.display())]
    Interrupted(PathBuf),
}

impl VerifyError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Io { .. } | Self::Place(PlaceError::Io { .. }) => exit::INTERNAL,
            Self::Interrupted(_) => exit::CASE_FAILED,
            _ => exit::USAGE,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Runs the plan, prints the table to `out`, writes the reports, and returns the exit code.
pub fn verify(options: &Options, out: &mut dyn Write) -> Result<i32, VerifyError> {
    let mut plan = Plan::load(&options.plan)?;
    if let Some(pattern) = &options.only {
        plan.select(pattern);
        if plan.groups.is_empty() {
            return Err(VerifyError::NothingSelected(pattern.clone()));
        }
    }
    let trainer = find_trainer(options.trainer.as_deref())?;
    let work_dir = make_work_dir(options.work_dir.as_deref(), "verify", &options.plan)?;
    let launcher = Launcher::find(options.launcher.as_deref(), plan.launcher.as_deref(), &trainer);
    let mut reporter = Reporter::new(&plan, work_dir.clone(), out);
    let runner = Runner {
        trainer,
        launcher,
        work_dir: work_dir.clone(),
        stop: stop_flag(&work_dir)?,
        keep_checkpoints: options.keep_checkpoints,
        probed: RefCell::default(),
    };
    reporter.begin().map_err(VerifyError::io(&work_dir))?;
    'plan: for group in &plan.groups {
        let mut finished = Vec::new();
        for case in std::iter::once(&group.golden).chain(&group.cases) {
            let cell = runner.run(&plan, group, case, &finished);
            if runner.stop.load(Ordering::Relaxed) {
                return Err(VerifyError::Interrupted(work_dir));
            }
            let passed = matches!(cell.outcome, Outcome::Golden | Outcome::Passed | Outcome::Skipped { .. });
            reporter.add(cell.clone()).map_err(VerifyError::io(&work_dir))?;
            finished.push(cell);
            if options.fail_fast && !passed {
                break 'plan;
            }
        }
    }
    let report = reporter.end().map_err(VerifyError::io(&work_dir))?;
    Ok(report.exit_code())
}
