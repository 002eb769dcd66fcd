//! Finds the fastest way to run a training on this machine: bucket size, overlap, threads.
//!
//! Real launches take turns, forwards and backwards through the settings, so that a machine whose speed drifts slows all
//! alike. What differs by less than the runs of one setting do is no difference: see [`choice::choose`].

mod args;
mod choice;
mod output;
mod setting;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_record::{Manifest, RunDir, StepLine, exit, read_lines};

use crate::launch::{
    Expected, Launch, Launcher, PlaceError, check_world, complaint, find_trainer, make_work_dir, stop_flag,
};
use crate::median;
use crate::report::write_whole;
use choice::{Choice, Measured, choose, confirm};
use setting::{Setting, Sweep};

pub use args::TuneArgs;

/// Steps of each run that do not count: memory is found, the order of gradients learned, caches filled.
const STEPS_OF_WARM_UP: u64 = 2;
/// New runs of each side when a setting seems better than the configuration's own.
const CONFIRMATIONS: u32 = 5;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub configs: Vec<PathBuf>,
    pub sets: Vec<String>,
    pub ranks: u32,
    pub out: PathBuf,
    /// Measured steps of each run.
    pub steps: u64,
    /// Runs of each setting.
    pub repetitions: u32,
    pub sweep: Sweep,
    pub timeout: Duration,
    pub trainer: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub launcher: Option<String>,
}

/// Why there is no new configuration.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{} exists already: name another --out, or remove it", .0.display())]
    OutExists(PathBuf),
    #[error("{}: {source}: name a file in a folder that can be written with --out", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{setting}, run {run}: {problem}")]
    Run { setting: String, run: u32, problem: String },
    #[error("interrupted: nothing was written")]
    Interrupted,
    #[error("standard output: {0}")]
    Print(io::Error),
    #[error("the picture: {0}")]
    Picture(#[from] minijinja::Error),
}

impl TuneError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Place(PlaceError::Io { .. }) | Self::Print(_) | Self::Picture(_) => exit::INTERNAL,
            Self::Place(_) | Self::OutExists(_) | Self::Unwritable { .. } => exit::USAGE,
            Self::Run { .. } | Self::Interrupted => exit::CASE_FAILED,
        }
    }
}

/// Measures, prints the table to `out` and a line a run to `progress`, and writes the new configuration.
pub fn tune(options: &Options, out: &mut dyn Write, progress: &mut dyn Write) -> Result<(), TuneError> {
    let picture = options.out.with_extension("svg");
    check_writable(&options.out)?;
    let trainer = find_trainer(options.trainer.as_deref())?;
    let work_dir = make_work_dir(options.work_dir.as_deref(), "tune", &options.configs[0])?;
    let launcher = Launcher::find(options.launcher.as_deref(), None, &trainer);
    let stop = stop_flag(&work_dir)?;
    let sweeper = Sweeper { options, trainer, launcher, work_dir, stop };
    let measured = sweeper.measure(progress)?;
    let mut choice = choose(&measured);
    let mut again = Vec::new();
    if let Choice::Better(index) = choice {
        again = sweeper.again([measured[0].setting, measured[index].setting], progress)?;
        choice = confirm(index, &again[0], &again[1]);
    }
    let findings = output::Findings { measured, again, choice };
    let text = findings.table() + &choice.explain(&findings.measured);
    writeln!(out, "{text}").map_err(TuneError::Print)?;
    write(&options.out, &findings.config(options))?;
    write(&picture, &findings.picture()?)?;
    writeln!(out, "wrote {} and {}", options.out.display(), picture.display()).map_err(TuneError::Print)
}

/// Before anything is measured.
fn check_writable(out: &Path) -> Result<(), TuneError> {
    for path in [out.to_owned(), out.with_extension("svg")] {
        if path.exists() {
            return Err(TuneError::OutExists(path));
        }
    }
    let fail = |source| TuneError::Unwritable { path: out.to_owned(), source };
    std::fs::File::create_new(out).map_err(fail)?;
    std::fs::remove_file(out).map_err(fail)
}

fn write(path: &Path, text: &str) -> Result<(), TuneError> {
    write_whole(path, text).map_err(|source| TuneError::Unwritable { path: path.to_owned(), source })
}

/// Launches runs and reads their records.
struct Sweeper<'a> {
    options: &'a Options,
    trainer: PathBuf,
    launcher: Result<Launcher, String>,
    work_dir: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Sweeper<'_> {
    /// All settings, the configuration's own first: what that is, its first run tells.
    fn measure(&self, progress: &mut dyn Write) -> Result<Vec<Measured>, TuneError> {
        let (manifest, first) = self.run(None, 1)?;
        let own = Setting::of(&manifest).map_err(|problem| self.failed(None, 1, problem))?;
        let settings = self.options.sweep.settings(own);
        let mut measured: Vec<Measured> =
            settings.iter().map(|&setting| Measured { setting, runs: Vec::new() }).collect();
        self.book(&mut measured[0], first, progress);
        for run in 1..=self.options.repetitions {
            // Backwards every other time.
            let mut order: Vec<usize> = (0..settings.len()).collect();
            if run % 2 == 0 {
                order.reverse();
            }
            for index in order {
                if measured[index].runs.len() < run as usize {
                    let (_, tokens_per_second) = self.run(Some(settings[index]), run)?;
                    self.book(&mut measured[index], tokens_per_second, progress);
                }
            }
        }
        Ok(measured)
    }

    /// New runs of two settings, who goes first changing from pair to pair.
    fn again(&self, settings: [Setting; 2], progress: &mut dyn Write) -> Result<Vec<Measured>, TuneError> {
        let mut measured = settings.map(|setting| Measured { setting, runs: Vec::new() });
        for pair in 0..CONFIRMATIONS {
            for turn in 0..2 {
                let side = &mut measured[((pair + turn) % 2) as usize];
                let run = self.options.repetitions + pair + 1;
                let (_, tokens_per_second) = self.run(Some(side.setting), run)?;
                let _ = writeln!(progress, "again {}: {tokens_per_second:.0} tokens/s", side.setting);
                side.runs.push(tokens_per_second);
            }
        }
        Ok(measured.into())
    }

    fn book(&self, measured: &mut Measured, tokens_per_second: f64, progress: &mut dyn Write) {
        measured.runs.push(tokens_per_second);
        let (done, all) = (measured.runs.len(), self.options.repetitions);
        // Nobody may be listening.
        let _ = writeln!(progress, "{}, run {done}/{all}: {tokens_per_second:.0} tokens/s", measured.setting);
    }

    fn failed(&self, setting: Option<Setting>, run: u32, problem: String) -> TuneError {
        if self.stop.load(Ordering::Relaxed) {
            return TuneError::Interrupted;
        }
        let setting = setting.map_or_else(|| "as configured".into(), |setting| setting.to_string());
        TuneError::Run { setting, run, problem }
    }

    fn run(&self, setting: Option<Setting>, run: u32) -> Result<(Manifest, f64), TuneError> {
        self.try_run(setting, run).map_err(|problem| self.failed(setting, run, problem))
    }

    /// Returns the record's manifest and the tokens per second of the median step.
    fn try_run(&self, setting: Option<Setting>, run: u32) -> Result<(Manifest, f64), String> {
        let name = setting.map_or_else(|| "as-configured".into(), |setting| setting.sets().join(","));
        let folder = self.work_dir.join(format!("{name}-{run}"));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let run_dir = RunDir::new(folder.join("run"));
        let argv = Launcher::wrap(&self.launcher, self.options.ranks, self.command(setting, &run_dir))?;
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| folder.join(name));
        let launch = Launch { argv, stdout, stderr, timeout: self.options.timeout, stop: &self.stop };
        let (ended, record) = launch.run();
        if let Some(problem) = complaint(&ended, &record) {
            return Err(problem);
        }
        let expected = Expected { ranks: self.options.ranks, strategy: None, from_step: Some(0) };
        let manifest = check_world(&run_dir, &[expected])?;
        let tokens_per_second = tokens_per_second(&run_dir)?;
        // Only room is at stake.
        let _ = std::fs::remove_dir_all(run_dir.checkpoints());
        Ok((manifest, tokens_per_second))
    }

    fn command(&self, setting: Option<Setting>, run: &RunDir) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![text(&self.trainer), "train".into()];
        let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        self.options.configs.iter().for_each(|config| option("--config", text(config)));
        // Steps only, nothing beside them.
        let quiet =
            ["record.digests_every=0", "evaluate.every=0", "checkpoint.every=0", "checkpoint.at_start=false"];
        let steps = format!("schedule.steps={}", STEPS_OF_WARM_UP + self.options.steps);
        let own = self.options.sets.iter().cloned();
        let ours = quiet.map(String::from).into_iter().chain([steps, "schedule.warmup_steps=0".into()]);
        let swept = setting.into_iter().flat_map(|setting| setting.sets());
        own.chain(ours).chain(swept).for_each(|set| option("--set", set));
        option("--run-dir", text(run.path()));
        argv
    }
}

/// Tokens of a step ÷ the median seconds of the steps after the warm-up.
fn tokens_per_second(run: &RunDir) -> Result<f64, String> {
    let lines: Vec<StepLine> = read_lines(&run.metrics())
        .and_then(Iterator::collect)
        .map_err(|error: lockstep_record::RecordError| error.to_string())?;
    let counted: Vec<&StepLine> = lines.iter().filter(|line| line.step > STEPS_OF_WARM_UP).collect();
    let seconds: Vec<f64> = counted.iter().map(|line| line.seconds.total).collect();
    let rate = counted.last().zip(median(&seconds)).map(|(line, typical)| line.tokens as f64 / typical);
    rate.filter(|rate| rate.is_finite()).ok_or_else(|| "its record has no step that could be measured".into())
}
