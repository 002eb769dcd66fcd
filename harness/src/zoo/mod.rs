//! The bug zoo: planted bugs, each run under the launch that shows it, and the harness's answer judged; and clean runs, in
//! which it must find nothing.

mod catalogue;
mod clean;
mod judge;
mod report;
mod runs;
mod state;

pub use catalogue::Zoo;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Instant;

use lockstep_record::{RunDir, exit};

use crate::bisect::bisect_records;
use crate::launch::{Launcher, PlaceError, find_trainer, make_work_dir, stop_flag};
use crate::plan_file::PlanError;
use crate::report::write_whole;
use catalogue::Bug;
use judge::Observed;
use report::{Row, ZooReport};
use runs::{Runner, in_parallel};

/// What `zoo` was asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub plan: Option<PathBuf>,
    pub trainer: Option<PathBuf>,
    pub launcher: Option<String>,
    /// For runs and reports.
    pub out: Option<PathBuf>,
    /// Patterns; empty for all bugs.
    pub only: Vec<String>,
    /// Runs at a time.
    pub jobs: usize,
    /// Instead of the bugs: so many clean runs.
    pub clean: Option<Clean>,
}

/// A campaign of clean runs.
#[derive(Clone, Debug)]
pub struct Clean {
    pub runs: usize,
    /// Of the draw.
    pub seed: u64,
    /// A bug that is planted all the same, to see the campaign fail.
    pub plant: Option<String>,
}

/// Why the zoo could not be visited, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("no harness/plans/zoo.yaml in a folder above {0}: name the catalogue")]
    NoPlan(PathBuf),
    #[error("--only {0}: no bug has such a name")]
    NothingSelected(String),
    #[error(
        "{} was built without planted bugs: build it with `cargo build --workspace --features lockstep/mutations`",
        .0.display()
    )]
    NoMutations(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted: {} holds the runs so far", .0.display())]
    Interrupted(PathBuf),
}

impl ZooError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Io { .. } | Self::Place(PlaceError::Io { .. }) => exit::INTERNAL,
            Self::NoMutations(_) | Self::Interrupted(_) => exit::CASE_FAILED,
            _ => exit::USAGE,
        }
    }
}

/// Runs the zoo, prints the table to `out` and a line a run to `progress`, writes the reports, and returns the exit code.
pub fn zoo(options: &Options, out: &mut dyn Write, progress: &mut dyn Write) -> Result<i32, ZooError> {
    let trainer = find_trainer(options.trainer.as_deref())?;
    if options.clean.as_ref().is_none_or(|clean| clean.plant.is_some()) && !has_mutations(&trainer) {
        return Err(ZooError::NoMutations(trainer));
    }
    let plan = find_plan(options.plan.as_deref(), &trainer)?;
    let mut zoo = Zoo::load(&plan)?;
    zoo.select(&options.only).map_err(ZooError::NothingSelected)?;
    let folder = make_work_dir(options.out.as_deref(), "run", &plan)?;
    let launcher = Launcher::find(options.launcher.as_deref(), None, &trainer);
    let runner = Runner { trainer, launcher, timeout: zoo.timeout, stop: stop_flag(&folder)? };
    let visit = Visit { runner: &runner, folder: &folder, jobs: options.jobs };
    let (text, json, markdown, code) = match &options.clean {
        None => {
            let report = visit.bugs(zoo, progress);
            (report.text(), serde_json::to_string_pretty(&report), report.markdown(), report.exit_code())
        }
        Some(clean) => {
            let report = clean::campaign(&visit, clean, &plan, progress);
            (report.text(), serde_json::to_string_pretty(&report), report.markdown(), report.exit_code())
        }
    };
    if runner.stop.load(Ordering::Relaxed) {
        return Err(ZooError::Interrupted(folder));
    }
    let name = if options.clean.is_some() { "clean" } else { "zoo" };
    write(&folder.join(format!("{name}.json")), &json.unwrap_or_default())?;
    write(&folder.join(format!("{name}.md")), &markdown)?;
    let written = writeln!(out, "{text}\nReports: {}", folder.join(format!("{name}.{{json,md}}")).display());
    match written {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(ZooError::Io { path: "standard output".into(), source })
        }
        _ => Ok(code),
    }
}

fn write(path: &Path, text: &str) -> Result<(), ZooError> {
    write_whole(path, text).map_err(|source| ZooError::Io { path: path.to_owned(), source })
}

/// The named catalogue, or `harness/plans/zoo.yaml` in this folder or one above the trainer.
fn find_plan(named: Option<&Path>, trainer: &Path) -> Result<PathBuf, ZooError> {
    let here = std::env::current_dir().unwrap_or_default();
    let folders = [here.as_path()].into_iter().chain(trainer.ancestors().skip(1));
    let found = folders.map(|folder| folder.join("harness/plans/zoo.yaml")).find(|path| path.is_file());
    named.map(Path::to_owned).or(found).ok_or_else(|| ZooError::NoPlan(trainer.to_owned()))
}

/// Whether the trainer's command line knows `--mutate`.
fn has_mutations(trainer: &Path) -> bool {
    let asked = Command::new(trainer).args(["train", "--help"]).stdin(Stdio::null()).output();
    asked.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--mutate"))
}

/// One visit: where, with what, and how many at a time.
struct Visit<'a> {
    runner: &'a Runner,
    folder: &'a Path,
    jobs: usize,
}

impl Visit<'_> {
    /// Golden runs first, each of which serves all bugs of its training; then the bugs.
    fn bugs(&self, zoo: Zoo, progress: &mut dyn Write) -> ZooReport {
        let start = Instant::now();
        let used: BTreeSet<&String> = zoo.bugs.iter().map(|bug| &bug.training).collect();
        let used: Vec<&String> = used.into_iter().collect();
        let golden = |index: usize| {
            let training = &zoo.trainings[used[index]];
            let folder = self.folder.join("golden").join(used[index]);
            self.runner.clean(training, &training.golden, &folder).map(|ran| ran.run)
        };
        let told = |index: usize, result: &Result<RunDir, String>| {
            // Nobody may be listening.
            let _ = writeln!(
                progress,
                "golden run of {}: {}",
                used[index],
                if result.is_ok() { "done" } else { "FAILED" }
            );
        };
        let goldens = in_parallel(used.len(), self.jobs, golden, told);
        let goldens: BTreeMap<&String, _> = used.iter().copied().zip(goldens).collect();
        let count = zoo.bugs.len();
        let mut finished = 0;
        let work = |index: usize| {
            let bug = &zoo.bugs[index];
            let golden =
                goldens[&bug.training].as_ref().map_err(|problem| format!("its golden run: {problem}"))?;
            self.bug(&zoo, bug, golden)
        };
        let told = |index: usize, result: &Result<Row, String>| {
            finished += 1;
            let outcome = result.as_ref().map_or_else(|_| "COULD NOT RUN".into(), Row::outcome);
            let _ = writeln!(progress, "{finished}/{count} {}: {outcome}", zoo.bugs[index].name);
        };
        let results = in_parallel(count, self.jobs, work, told);
        let (mut rows, mut could_not_run) = (Vec::new(), Vec::new());
        for (bug, result) in zoo.bugs.iter().zip(results) {
            match result {
                Ok(row) => rows.push(row),
                Err(problem) => could_not_run.push((bug.name.clone(), problem)),
            }
        }
        ZooReport::new(zoo.title.clone(), rows, could_not_run, start.elapsed().as_secs_f64())
    }

    /// Runs one bug and judges the answer. Runs whose answer was right are removed: they are many.
    fn bug(&self, zoo: &Zoo, bug: &Bug, golden: &RunDir) -> Result<Row, String> {
        let folder = self.folder.join(&bug.name);
        let ran = self.runner.run(&zoo.trainings[&bug.training], &bug.stages, Some(&bug.name), &folder)?;
        let finding = bisect_records(golden.path(), ran.run.path()).map_err(|error| format!("{error:#}"))?;
        let state_differs =
            state::first_different_state(golden, &ran.run).map_err(|error| error.to_string())?;
        let observed = Observed { exit: ran.exit, said: ran.said, finding, state_differs };
        let row = Row::new(bug, observed, ran.run.path().to_owned(), ran.seconds);
        if row.verdict.right() {
            // Only room is at stake.
            let _ = std::fs::remove_dir_all(&folder);
        }
        Ok(row)
    }
}
