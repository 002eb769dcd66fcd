//! One case: its launches, what its record says about them, and the comparison with its golden run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lockstep_record::{Manifest, RunDir, exit, read_json};

use super::launch::{Ended, Launch, LaunchRecord, tail};
use super::launcher::Launcher;
use super::plan::{Case, Group, Plan, Stage, Work};
use super::{Keep, unix_s};
use crate::compare::{Comparison, compare};
use crate::report::{Cell, Outcome, read_curve};

/// Limit of the command that asks whether a foreign trainer is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) struct Runner {
    pub trainer: PathBuf,
    /// Or why there is none: cases of one rank run all the same.
    pub launcher: Result<Launcher, String>,
    pub work_dir: PathBuf,
    pub stop: Arc<AtomicBool>,
    pub keep_checkpoints: Keep,
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
        cell.curve = read_curve(&RunDir::new(&run_dir));
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
            Work::Stages(stages) => self.run_stages(group, case, stages, folder, launches)?,
            Work::Foreign { command, requires, ranks, .. } => {
                let fill = |words: &[String]| -> Vec<String> {
                    words.iter().map(|word| self.fill(word, plan, golden, &run_dir)).collect()
                };
                if !requires.is_empty() {
                    self.probe(fill(requires), folder)?;
                }
                self.launch(fill(command), case, &folder.join("command"), launches)?;
                check_world(&RunDir::new(&run_dir), &[(*ranks, None, None)])?;
            }
        }
        let Some(golden) = golden else { return Ok(None) };
        compare(golden, &run_dir, case.mode)
            .map(Some)
            .map_err(|error| Failure::CouldNotRun(error.to_string()))
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
                (stage.ranks, Some(stage.strategy.as_str()), from)
            })
            .collect();
        check_world(&RunDir::new(&run_dir), &expected)
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
        let (message, log) = match tail(&record.stderr) {
            text if text.is_empty() => (tail(&record.stdout), record.stdout.clone()),
            text => (text, record.stderr.clone()),
        };
        launches.push(record);
        if ended == Ended::Exit(exit::OK) {
            return Ok(());
        }
        let quoted = if message.is_empty() { "it printed nothing".into() } else { message };
        Err(Failure::CouldNotRun(format!("{ended} ({}): {quoted}", log.display())))
    }

    /// Whether a foreign trainer is installed here.
    fn probe(&self, argv: Vec<String>, folder: &Path) -> Result<(), Failure> {
        let (stdout, stderr) = (folder.join("requires.stdout"), folder.join("requires.stderr"));
        let launch = Launch { argv, stdout, stderr, timeout: PROBE_TIMEOUT, stop: &self.stop };
        let (ended, record) = launch.run();
        if ended == Ended::Exit(0) {
            return Ok(());
        }
        let said = tail(&record.stderr);
        let last = said.lines().last().unwrap_or_default();
        Err(Failure::Skipped(format!("what it requires is not here: {ended}: {last}")))
    }

    fn fill(&self, word: &str, plan: &Plan, golden: Option<&Path>, run_dir: &Path) -> String {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let paths = [
            ("{golden}", golden.map_or(String::new(), text)),
            ("{run_dir}", text(run_dir)),
            ("{plan_dir}", text(&plan.folder)),
            ("{trainer}", text(&self.trainer)),
            ("{python}", find_python(&self.trainer)),
        ];
        paths.iter().fold(word.to_owned(), |word, (name, path)| word.replace(name, path))
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

/// What ran must be what was asked for: N processes that each believe to be alone would all be equal.
/// `expected` has ranks, strategy and first step of each launch.
fn check_world(run: &RunDir, expected: &[(u32, Option<&str>, Option<u64>)]) -> Result<(), Failure> {
    let manifest: Manifest =
        read_json(&run.manifest()).map_err(|error| Failure::CouldNotRun(error.to_string()))?;
    let segments = &manifest.segments;
    if segments.len() != expected.len() {
        let (asked, found) = (expected.len(), segments.len());
        return Err(Failure::CouldNotRun(format!("{asked} launches, but its record tells of {found}")));
    }
    for (index, (segment, &(ranks, strategy, from_step))) in segments.iter().zip(expected).enumerate() {
        let strategy = strategy.unwrap_or(&segment.strategy);
        let from_step = from_step.unwrap_or(segment.from_step);
        let asked = format!("{ranks} rank(s), {strategy}, from step {from_step}");
        let found =
            format!("{} rank(s), {}, from step {}", segment.world_size, segment.strategy, segment.from_step);
        if asked != found {
            let launch = index + 1;
            return Err(Failure::CouldNotRun(format!(
                "launch {launch}: asked for {asked}; its record says {found}"
            )));
        }
    }
    Ok(())
}

/// `LOCKSTEP_PYTHON`, the project's own `.toolchain/bin/python` above the trainer, or `python3` on the PATH.
fn find_python(trainer: &Path) -> String {
    let own =
        || trainer.ancestors().map(|folder| folder.join(".toolchain/bin/python")).find(|path| path.exists());
    let found = std::env::var_os("LOCKSTEP_PYTHON").map(PathBuf::from).or_else(own);
    found.unwrap_or_else(|| "python3".into()).to_string_lossy().into_owned()
}
