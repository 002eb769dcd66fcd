//! One case: its launches, what its record says about them, and the comparison with its golden run.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use lockstep_record::{Perturbed, RunDir, Unit};

use super::Keep;
use super::plan::{Case, Group, Plan, Stage, Work};
use crate::compare::{CompareError, Comparison, Mode, compare};
use crate::goldens::Header;
use crate::launch::{
    Expected, Launch, LaunchRecord, Launcher, Places, check_world, complaint, probe, unix_s,
};
use crate::report::{Cell, Outcome, read_curves};
use crate::tolerance;

pub(super) struct Runner {
    pub trainer: PathBuf,
    /// Or why there is none: cases of one rank run all the same.
    pub launcher: Result<Launcher, String>,
    pub work_dir: PathBuf,
    pub stop: Arc<AtomicBool>,
    pub keep_checkpoints: Keep,
    /// What `requires` commands answered: importing PyTorch takes seconds, and many cases ask for it.
    pub probed: RefCell<HashMap<Vec<String>, Result<(), String>>>,
}

/// Why a case has no comparison.
enum Failure {
    Skipped(String),
    CouldNotRun(String),
}

impl Runner {
    /// Runs a case and judges it. `finished` are the earlier cells of its group, the golden run first.
    pub fn run(&self, plan: &Plan, group: &Group, case: &Case, finished: &[Cell]) -> Cell {
        let start = Instant::now();
        let folder = self.work_dir.join(&group.name).join(&case.name);
        let run_dir = folder.join("run");
        let run_dir = match &case.work {
            Work::Stored(path) => path.clone(),
            _ => run_dir,
        };
        let mut cell = Cell::new(group, case, run_dir.clone(), unix_s());
        let judged = self.run_and_compare(plan, group, case, finished, &folder, &mut cell.launches);
        cell.outcome = match judged {
            Ok(None) => Outcome::Golden,
            Ok(Some(comparison)) => {
                let outcome = if comparison.passed() { Outcome::Passed } else { Outcome::Different };
                cell.comparison = Some(comparison);
                outcome
            }
            Err(Failure::Skipped(reason)) => Outcome::Skipped { reason },
            Err(Failure::CouldNotRun(reason)) => Outcome::CouldNotRun { reason },
        };
        cell.seconds = start.elapsed().as_secs_f64();
        let golden = reference(case, finished).ok().flatten().map(RunDir::new);
        cell.curves = read_curves(&RunDir::new(&run_dir), golden.as_ref());
        self.tidy(group, case, &cell);
        cell
    }

    fn run_and_compare(
        &self,
        plan: &Plan,
        group: &Group,
        case: &Case,
        finished: &[Cell],
        folder: &Path,
        launches: &mut Vec<LaunchRecord>,
    ) -> Result<Option<Comparison>, Failure> {
        let golden = reference(case, finished)?;
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::CouldNotRun(format!("{}: {error}", folder.display())))?;
        let run_dir = folder.join("run");
        match &case.work {
            Work::Stored(path) => {
                check_stored(path).map_err(|error| Failure::CouldNotRun(error.to_string()))?
            }
            Work::Stages(stages) => self.run_stages(group, case, stages, folder, launches)?,
            Work::Foreign { command, requires, ranks, .. } => {
                let (plan_dir, trainer) = (&plan.folder, &self.trainer);
                let places = Places { plan_dir, trainer, golden, run_dir: &run_dir, ranks: *ranks };
                if !requires.is_empty() {
                    self.probe_once(places.fill(requires), folder).map_err(Failure::Skipped)?;
                }
                self.launch(places.fill(command), case, &folder.join("command"), launches)?;
                let expected = Expected { ranks: *ranks, strategy: None, from_step: None };
                check_world(&RunDir::new(&run_dir), &[expected]).map_err(Failure::CouldNotRun)?;
            }
        }
        let Some(golden) = golden else { return Ok(None) };
        if case.mode == Mode::Auto {
            self.earn_envelope(group, golden, launches).map_err(Failure::CouldNotRun)?;
        }
        compare(golden, &run_dir, case.mode)
            .map(Some)
            .map_err(|error| Failure::CouldNotRun(error.to_string()))
    }

    /// Repeats the golden run with perturbations, for the first case that is judged by its envelope.
    fn earn_envelope(
        &self,
        group: &Group,
        golden: &Path,
        launches: &mut Vec<LaunchRecord>,
    ) -> Result<(), String> {
        if RunDir::new(golden).tolerance().exists() {
            return Ok(());
        }
        let plan = tolerance::Plan {
            trainer: &self.trainer,
            runs: group.perturbed_runs,
            perturbed: Perturbed::Gradients,
            unit: Unit::Fp32,
            timeout: group.golden.timeout,
            keep: false,
            stop: &self.stop,
        };
        tolerance::earn(golden, &plan, launches, &mut |_| {}).map(drop).map_err(|error| error.to_string())
    }

    fn probe_once(&self, argv: Vec<String>, folder: &Path) -> Result<(), String> {
        let mut probed = self.probed.borrow_mut();
        probed.entry(argv).or_insert_with_key(|argv| probe(argv.clone(), folder, &self.stop)).clone()
    }

    fn run_stages(
        &self,
        group: &Group,
        case: &Case,
        stages: &[Stage],
        folder: &Path,
        launches: &mut Vec<LaunchRecord>,
    ) -> Result<(), Failure> {
        let run_dir = folder.join("run");
        for (index, stage) in stages.iter().enumerate() {
            let program = train_command(&self.trainer, group, stage, &run_dir, index > 0);
            let argv = Launcher::wrap(&self.launcher, stage.ranks, program).map_err(Failure::CouldNotRun)?;
            self.launch(argv, case, &folder.join(format!("stage-{}", index + 1)), launches)?;
        }
        let mut from_step = Some(0);
        let expected: Vec<_> = stages
            .iter()
            .map(|stage| {
                let from = std::mem::replace(&mut from_step, stage.stop_after);
                Expected { ranks: stage.ranks, strategy: Some(&stage.strategy), from_step: from }
            })
            .collect();
        check_world(&RunDir::new(&run_dir), &expected).map(drop).map_err(Failure::CouldNotRun)
    }

    /// Runs one command line to its end; anything but success is a failure with the end of what it said.
    fn launch(
        &self,
        argv: Vec<String>,
        case: &Case,
        log: &Path,
        launches: &mut Vec<LaunchRecord>,
    ) -> Result<(), Failure> {
        let (stdout, stderr) = (log.with_extension("stdout"), log.with_extension("stderr"));
        let launch = Launch { argv, stdout, stderr, timeout: case.timeout, stop: &self.stop };
        let (ended, record) = launch.run();
        let complaint = complaint(&ended, &record);
        launches.push(record);
        complaint.map_or(Ok(()), |text| Err(Failure::CouldNotRun(text)))
    }

    /// Deletes the checkpoints of a candidate that passed and that no later case is compared with.
    fn tidy(&self, group: &Group, case: &Case, cell: &Cell) {
        let needed = group.cases.iter().any(|other| other.against.as_deref() == Some(&case.name));
        if self.keep_checkpoints == Keep::Different && cell.outcome == Outcome::Passed && !needed {
            // Only room is at stake: a failure to delete changes nothing about the verdict.
            let _ = std::fs::remove_dir_all(RunDir::new(&cell.run_dir).checkpoints());
        }
    }
}

/// Whether a stored golden run is what was stored.
fn check_stored(path: &Path) -> Result<(), CompareError> {
    let run = RunDir::new(path);
    Header::read(&run)?.map_or(Ok(()), |header| header.check_files(&run))
}

/// The run directory that a case is compared with; None for the golden run itself.
fn reference<'a>(case: &Case, finished: &'a [Cell]) -> Result<Option<&'a Path>, Failure> {
    let Some(name) = &case.against else { return Ok(None) };
    let cell = finished.iter().find(|cell| &cell.name == name);
    match cell.map(|cell| (&cell.outcome, cell)) {
        Some((Outcome::Golden | Outcome::Passed, cell)) => Ok(Some(&cell.run_dir)),
        Some((Outcome::Skipped { .. }, _)) => Err(Failure::Skipped(format!("`{name}` was skipped"))),
        _ => Err(Failure::CouldNotRun(format!(
            "there is no good run `{name}` to compare with: see its own line"
        ))),
    }
}

fn train_command(trainer: &Path, group: &Group, stage: &Stage, run_dir: &Path, resume: bool) -> Vec<String> {
    let mut argv = vec![trainer.to_string_lossy().into_owned(), "train".into()];
    let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
    option("--config", group.config.to_string_lossy().into_owned());
    for set in group.set.iter().chain(&stage.set) {
        option("--set", set.clone());
    }
    if group.needs_envelope() {
        option("--set", "record.sketches=true".into());
    }
    option("--set", format!("parallel.strategy={}", stage.strategy));
    option("--run-dir", run_dir.to_string_lossy().into_owned());
    if let Some(step) = stage.stop_after {
        option("--stop-after", step.to_string());
    }
    if resume {
        option("--resume", "auto".into());
    }
    argv
}
