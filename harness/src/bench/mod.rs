//! Measures ours against theirs: pairs of runs of the same work that alternate in one session (or take turns of a second),
//! so that a machine whose speed drifts slows both alike, and the median of the pairs' ratios. A pair during which
//! someone else used the cores is repeated, and never quoted silently.

mod args;
mod chart;
mod cores;
mod links;
mod markdown;
mod measure;
mod order;
mod output;
mod plan;
mod results;
mod runner;
mod statistics;
mod table;
mod turns;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use lockstep_record::exit;

use crate::launch::{Launcher, PlaceError, find_trainer, make_work_dir, stop_flag};
use crate::plan_file::PlanError;
use cores::Cores;
use links::Links;
use output::Output;
use plan::Plan;
use results::Finding;
use runner::Runner;
use statistics::Met;

pub use args::BenchArgs;
pub use plan::Plan as BenchPlan;
pub use results::{Results, ResultsError};
pub use statistics::Spread;

/// What a bench was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub plan: PathBuf,
    pub out: PathBuf,
    pub trainer: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    /// Patterns of names; everything if empty.
    pub only: Vec<String>,
    pub launcher: Option<String>,
    /// Name of a link and its launcher, in place of the plan's set-up, launcher and teardown.
    pub links: Vec<(String, Vec<String>)>,
    pub pairs: Option<usize>,
    pub disturbance_max: f64,
    pub repeats: usize,
    pub strict: bool,
}

/// Why a bench could not even be started, or not finished.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error("--only {0}: no comparison of the plan has such a name")]
    NothingSelected(String),
    #[error("--link {0}: the plan has no link of that name; its links: {1}")]
    NoSuchLink(String, String),
    #[error("{0}")]
    Document(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted: {} holds the comparisons that were finished", .0.display())]
    Interrupted(PathBuf),
}

impl BenchError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Io { .. } | Self::Place(PlaceError::Io { .. }) | Self::Results(ResultsError::Io { .. }) => {
                exit::INTERNAL
            }
            Self::Interrupted(_) => exit::CASE_FAILED,
            _ => exit::USAGE,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Runs the plan, prints a line a metric to `out` and one a pair to `progress`, writes the results, and
/// returns the exit code.
pub fn bench(options: &Options, out: &mut dyn Write, progress: &mut dyn Write) -> Result<i32, BenchError> {
    let plan = load_plan(options)?;
    let trainer = find_trainer(options.trainer.as_deref())?;
    let work_dir = make_work_dir(options.work_dir.as_deref(), "bench", &options.plan)?;
    let launcher = Launcher::find(options.launcher.as_deref(), plan.launcher.as_deref(), &trainer);
    let stop = stop_flag(&work_dir)?;
    let cores = Cores::new();
    let mut output = Output::begin(&plan, &options.out, out)?;
    let mut runner = Runner {
        plan: &plan,
        trainer: &trainer,
        launcher: &launcher,
        work_dir: &work_dir,
        stop: &stop,
        cores: &cores,
        disturbance_max: options.disturbance_max,
        repeats: options.repeats,
        links: Links::new(&plan, &trainer, &work_dir, &stop),
        goldens: Vec::new(),
    };
    let mut findings = Vec::new();
    for comparison in &plan.comparisons {
        let finding = runner.run(comparison, &mut |finding| {
            // Nobody may be listening.
            let _ = writeln!(progress, "{}", table::progress(finding));
        });
        if stop.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted(options.out.clone()));
        }
        output.add(&finding)?;
        findings.push(finding);
    }
    output.end()?;
    for (_, golden) in &runner.goldens {
        if let Ok(run_dir) = golden {
            // Only room is at stake.
            let _ = std::fs::remove_dir_all(lockstep_record::RunDir::new(run_dir).checkpoints());
        }
    }
    Ok(exit_code(&findings, options.strict))
}

fn load_plan(options: &Options) -> Result<Plan, BenchError> {
    let mut plan = Plan::load(&options.plan)?;
    if !options.only.is_empty() {
        plan.select(&options.only);
    }
    if plan.comparisons.is_empty() {
        return Err(BenchError::NothingSelected(options.only.join(", ")));
    }
    for (name, launcher) in &options.links {
        let known = plan.links.keys().cloned().collect::<Vec<_>>().join(", ");
        let link = plan.links.get_mut(name).ok_or(BenchError::NoSuchLink(name.clone(), known))?;
        *link = plan::Link { launcher: launcher.clone(), ..plan::Link::default() };
    }
    if let Some(pairs) = options.pairs {
        plan.comparisons.iter_mut().for_each(|comparison| comparison.pairs = pairs);
    }
    Ok(plan)
}

/// An aim that is known to be missed outweighs a comparison of which nothing is known.
fn exit_code(findings: &[Finding], strict: bool) -> i32 {
    let open = |met: Met| !matches!(met, Met::Yes | Met::NoAim);
    let missed = findings.iter().any(|f| f.problem.is_none() && f.rows.iter().any(|row| open(row.met)));
    if strict && missed {
        exit::DIFFERENT
    } else if findings.iter().any(|finding| finding.problem.is_some()) {
        exit::CASE_FAILED
    } else {
        exit::OK
    }
}
