//! Runs one comparison: its golden run if a peer needs one, then pairs of runs, each with a limit.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_record::RunDir;

use super::cores::{Cores, others_share};
use super::links::Links;
use super::measure::{LaunchTimes, Measured, Record, unlike};
use super::order::ours_goes_first;
use super::plan::{Comparison, LOOPBACK, Peer, Plan, Side, Variant};
use super::results::{Finding, Pair};
use super::turns::{Entrant, Freezer, Rules, step_seconds, take_turns};
use crate::launch::{Expected, Launch, Launcher, Places, check_world, complaint, probe, unix_s};
use crate::trace::{self, Steps};

/// How often `metrics.jsonl` is looked at for its first line.
const POLL: Duration = Duration::from_millis(5);
const UNKNOWN: &str = "cannot read CPU times from /proc: nothing is known about who used the cores";

pub(super) struct Runner<'a> {
    pub plan: &'a Plan,
    pub trainer: &'a Path,
    /// Or why there is none: comparisons of one rank run all the same.
    pub launcher: &'a Result<Launcher, String>,
    pub work_dir: &'a Path,
    pub stop: &'a AtomicBool,
    pub cores: &'a Cores,
    pub disturbance_max: f64,
    /// Pairs of a comparison that may be repeated because others used the cores.
    pub repeats: usize,
    pub links: Links<'a>,
    /// Golden runs made so far, by what decides them.
    pub goldens: Vec<(GoldenKey, Result<PathBuf, String>)>,
}

/// Configuration, settings and steps: comparisons that share them share a golden run.
type GoldenKey = (PathBuf, Vec<String>, u64);

/// What all runs of one comparison share.
struct Bout<'a> {
    comparison: &'a Comparison,
    golden: Option<PathBuf>,
    link_launcher: Option<&'a [String]>,
}

/// One side of a pair.
struct Attempt {
    is_ours: bool,
    argv: Vec<String>,
    /// None: a peer's own.
    strategy: Option<String>,
    run: RunDir,
    folder: PathBuf,
}

impl Attempt {
    fn blame(&self, problem: String) -> String {
        format!("{}: {problem}", if self.is_ours { "ours" } else { "theirs" })
    }

    fn finish(&self, bout: &Bout, times: LaunchTimes) -> Result<(Record, Measured), String> {
        let comparison = bout.comparison;
        let expected =
            Expected { ranks: comparison.ranks, strategy: self.strategy.as_deref(), from_step: Some(0) };
        let manifest = check_world(&self.run, &[expected])?;
        let record = Record::read(&self.run, manifest).map_err(|error| error.to_string())?;
        let exposed_share = match self.strategy.is_some() && comparison.is_traced() {
            true => exposed_share(&self.run, comparison.warmup_steps)?,
            false => None,
        };
        let measured = record.measure(comparison.warmup_steps, LaunchTimes { exposed_share, ..times })?;
        // Hundreds of megabytes a run that nobody reads.
        let _ = std::fs::remove_dir_all(self.run.checkpoints());
        Ok((record, measured))
    }
}

impl Runner<'_> {
    /// Runs a comparison to its end, or to the first run that fails. `progress` hears of each pair.
    pub fn run(&mut self, comparison: &Comparison, progress: &mut dyn FnMut(&Finding)) -> Finding {
        let mut finding = Finding::new(comparison, self.cores.accounting(), self.disturbance_max, unix_s());
        finding.problem = self.run_pairs(comparison, &mut finding, progress).err();
        finding
    }

    fn run_pairs(
        &mut self,
        comparison: &Comparison,
        finding: &mut Finding,
        progress: &mut dyn FnMut(&Finding),
    ) -> Result<(), String> {
        let golden = match &comparison.theirs {
            Side::Peer(peer) => {
                self.probe(comparison, peer)?;
                if comparison.theirs.needs_golden() { Some(self.golden(comparison)?) } else { None }
            }
            Side::Variant(_) => None,
        };
        let link_launcher = self.links.switch_to(&comparison.link)?;
        let bout = Bout { comparison, golden, link_launcher };
        let attempts = comparison.pairs + self.repeats;
        while finding.wants_more() && finding.pairs.len() < attempts {
            let ours_first = ours_goes_first(&finding.pairs);
            let folder =
                self.work_dir.join(&comparison.name).join(format!("pair-{:03}", finding.pairs.len() + 1));
            let pair = self.pair(&bout, &folder, ours_first, finding)?;
            finding.add(pair);
            progress(finding);
        }
        Ok(())
    }

    fn pair(
        &self,
        bout: &Bout,
        folder: &Path,
        ours_first: bool,
        finding: &mut Finding,
    ) -> Result<Pair, String> {
        let order = [ours_first, !ours_first];
        let mut attempts = Vec::new();
        for is_ours in order {
            attempts.push(self.prepare(bout, is_ours, folder)?);
        }
        let freezers = bout.comparison.turn.and_then(|turn| Some((turn, self.freezers()?)));
        let times = match &freezers {
            Some((turn, freezers)) => self.in_turns(bout, &attempts, *turn, freezers)?,
            None => self.one_after_the_other(bout, &attempts)?,
        };
        let mut finished = Vec::new();
        for (attempt, times) in attempts.iter().zip(times) {
            finished.push(attempt.finish(bout, times).map_err(|problem| attempt.blame(problem))?);
        }
        if !ours_first {
            finished.reverse();
        }
        let Ok([(our_record, ours), (their_record, theirs)]) = <[_; 2]>::try_from(finished) else {
            return Err("a run is missing".into());
        };
        finding.ours.learn(&our_record.manifest);
        finding.theirs.learn(&their_record.manifest);
        if let Some(difference) = unlike(&our_record, &their_record) {
            return Err(difference);
        }
        let disturbed = ours.others_share.max(theirs.others_share) > self.disturbance_max;
        let in_turns = freezers.is_some();
        Ok(Pair { ours_first, in_turns, disturbed, ours, theirs })
    }

    /// None where control groups cannot be made: then runs follow one another.
    fn freezers(&self) -> Option<[Freezer; 2]> {
        let group = self.cores.group()?;
        Some([Freezer::new(group, "first").ok()?, Freezer::new(group, "second").ok()?])
    }

    fn one_after_the_other(&self, bout: &Bout, attempts: &[Attempt]) -> Result<Vec<LaunchTimes>, String> {
        let run = |attempt: &Attempt| {
            self.launch(attempt.argv.clone(), &attempt.folder, &attempt.run, bout.comparison.timeout)
                .map_err(|problem| attempt.blame(problem))
        };
        attempts.iter().map(run).collect()
    }

    fn in_turns(
        &self,
        bout: &Bout,
        attempts: &[Attempt],
        turn: Duration,
        freezers: &[Freezer; 2],
    ) -> Result<Vec<LaunchTimes>, String> {
        let comparison = bout.comparison;
        let [first, second] = attempts else { return Err("a run is missing".into()) };
        let entrant = |attempt: &Attempt, freezer| {
            let argv = Freezer::wrap(freezer, attempt.argv.clone());
            // Each waits for the other.
            let launch = self.prepare_launch(argv, &attempt.folder, 3 * comparison.timeout)?;
            Ok::<_, String>(Entrant { launch, metrics: attempt.run.metrics(), freezer })
        };
        let entrants = [entrant(first, &freezers[0])?, entrant(second, &freezers[1])?];
        let warmup_lines = comparison.warmup_steps as usize;
        let rules = Rules {
            turn,
            whole_steps: comparison.link != LOOPBACK,
            warmup_lines,
            lines: comparison.steps_in_all() as usize,
        };
        let before = self.cores.read().ok_or(UNKNOWN)?;
        let ran = take_turns(entrants, rules).map_err(|error| format!("taking turns: {error}"))?;
        let after = self.cores.read().ok_or(UNKNOWN)?;
        let mut times = Vec::new();
        for (attempt, ran) in attempts.iter().zip(&ran) {
            if let Some(text) = complaint(&ran.ended, &ran.record) {
                return Err(attempt.blame(text));
            }
            times.push(LaunchTimes {
                startup_seconds: ran.marks.first().map_or(0.0, Duration::as_secs_f64),
                seconds: ran.record.seconds,
                others_share: others_share(&before, &after),
                step_seconds: Some(step_seconds(&ran.marks, warmup_lines)),
                exposed_share: None,
            });
        }
        Ok(times)
    }

    fn prepare(&self, bout: &Bout, is_ours: bool, folder: &Path) -> Result<Attempt, String> {
        let comparison = bout.comparison;
        let folder = folder.join(if is_ours { "ours" } else { "theirs" });
        let run_dir = folder.join("run");
        let (argv, strategy) = match (&comparison.theirs, is_ours) {
            (Side::Peer(peer), false) => {
                let places = self.places(bout.golden.as_deref(), &run_dir, comparison.ranks);
                let command = places.fill(&peer.command);
                let argv = match bout.link_launcher {
                    Some(launcher) => [places.fill(launcher), command].concat(),
                    None => command,
                };
                (argv, None)
            }
            (Side::Variant(variant), false) => (self.our_command(bout, variant, &run_dir)?, Some(variant)),
            (_, true) => (self.our_command(bout, &comparison.ours, &run_dir)?, Some(&comparison.ours)),
        };
        let strategy = strategy.map(|variant| variant.strategy.clone());
        Ok(Attempt { is_ours, argv, strategy, run: RunDir::new(&run_dir), folder })
    }

    fn our_command(&self, bout: &Bout, variant: &Variant, run_dir: &Path) -> Result<Vec<String>, String> {
        let comparison = bout.comparison;
        let mut program = train_command(self.trainer, comparison, &variant.strategy, &variant.set, run_dir);
        program.extend(variant.flags.iter().cloned());
        program.extend(comparison.is_traced().then(|| "--trace".to_owned()));
        match bout.link_launcher {
            Some(launcher) => {
                Ok([self.places(None, run_dir, comparison.ranks).fill(launcher), program].concat())
            }
            None => Launcher::wrap(self.launcher, comparison.ranks, program),
        }
    }

    fn prepare_launch(
        &self,
        argv: Vec<String>,
        folder: &Path,
        timeout: Duration,
    ) -> Result<Launch<'_>, String> {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| folder.join(name));
        Ok(Launch { argv, stdout, stderr, timeout, stop: self.stop })
    }

    /// Runs a command line to its end; anything but success is an error with the end of what it said.
    fn launch(
        &self,
        argv: Vec<String>,
        folder: &Path,
        run: &RunDir,
        timeout: Duration,
    ) -> Result<LaunchTimes, String> {
        let launch = self.prepare_launch(argv, folder, timeout)?;
        let before = self.cores.read().ok_or(UNKNOWN)?;
        let (ended, record, first_line) = watched(launch, &run.metrics());
        let after = self.cores.read().ok_or(UNKNOWN)?;
        if let Some(text) = complaint(&ended, &record) {
            return Err(text);
        }
        let Some(startup) = first_line else {
            return Err(format!("it ended well but left no step in {}", run.metrics().display()));
        };
        Ok(LaunchTimes {
            startup_seconds: startup.as_secs_f64(),
            seconds: record.seconds,
            others_share: others_share(&before, &after),
            step_seconds: None,
            exposed_share: None,
        })
    }

    /// Whether a peer is installed here.
    fn probe(&self, comparison: &Comparison, peer: &Peer) -> Result<(), String> {
        if peer.requires.is_empty() {
            return Ok(());
        }
        let folder = self.work_dir.join(&comparison.name);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let argv = self.places(None, &folder, comparison.ranks).fill(&peer.requires);
        probe(argv, &folder, self.stop).map_err(|problem| format!("{}: {problem}", peer.label))
    }

    /// The run that a peer repeats: ours on one rank, with its initial state saved.
    fn golden(&mut self, comparison: &Comparison) -> Result<PathBuf, String> {
        let key = (comparison.config.clone(), comparison.set.clone(), comparison.steps_in_all());
        if let Some((_, made)) = self.goldens.iter().find(|(known, _)| *known == key) {
            return made.clone();
        }
        let folder = self.work_dir.join(format!("golden-{}", self.goldens.len() + 1));
        let made = self.make_golden(comparison, &folder).map_err(|problem| format!("golden run: {problem}"));
        // Being told to stop says nothing about the golden run.
        if !self.stop.load(Ordering::Relaxed) {
            self.goldens.push((key, made.clone()));
        }
        made
    }

    fn make_golden(&self, comparison: &Comparison, folder: &Path) -> Result<PathBuf, String> {
        let run_dir = folder.join("run");
        let set = ["checkpoint.at_start=true".to_owned()];
        let argv = train_command(self.trainer, comparison, "single", &set, &run_dir);
        let run = RunDir::new(&run_dir);
        self.launch(argv, folder, &run, comparison.timeout)?;
        // Peers read the initial state only.
        let _ = std::fs::remove_dir_all(run.checkpoint(comparison.steps_in_all()));
        Ok(run_dir)
    }

    fn places<'b>(&'b self, golden: Option<&'b Path>, run_dir: &'b Path, ranks: u32) -> Places<'b> {
        Places { plan_dir: &self.plan.folder, trainer: self.trainer, golden, run_dir, ranks }
    }
}

/// Of a run that left traces, after its warm-up.
fn exposed_share(run: &RunDir, warmup_steps: u64) -> Result<Option<f64>, String> {
    let steps = Steps { first: warmup_steps + 1, last: u64::MAX };
    trace::exposed_share(run, steps).map_err(|error| error.to_string())
}

fn train_command(
    trainer: &Path,
    comparison: &Comparison,
    strategy: &str,
    set: &[String],
    run_dir: &Path,
) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut argv = vec![text(trainer), "train".into(), "--config".into(), text(&comparison.config)];
    let own =
        [format!("schedule.steps={}", comparison.steps_in_all()), format!("parallel.strategy={strategy}")];
    for set in comparison.set.iter().chain(set).chain(&own) {
        argv.extend(["--set".to_owned(), set.clone()]);
    }
    argv.extend(["--run-dir".to_owned(), text(run_dir)]);
    argv
}

/// Runs a launch, and takes the time until the file has its first whole line.
fn watched(
    launch: Launch,
    file: &Path,
) -> (crate::launch::Ended, crate::launch::LaunchRecord, Option<Duration>) {
    let (start, done) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| first_line(file, start, &done));
        let (ended, record) = launch.run();
        done.store(true, Ordering::Relaxed);
        (ended, record, watcher.join().unwrap_or_default())
    })
}

fn first_line(file: &Path, start: Instant, done: &AtomicBool) -> Option<Duration> {
    loop {
        // Asked before looking: what was written before the end is seen.
        let last_look = done.load(Ordering::Relaxed);
        if std::fs::read(file).is_ok_and(|bytes| bytes.contains(&b'\n')) {
            return Some(start.elapsed());
        }
        if last_look {
            return None;
        }
        std::thread::sleep(POLL);
    }
}
