//! Two runs that take turns on the same cores: while one computes for a moment, the other is frozen. The speed of a
//! shared machine drifts by several percent within seconds; runs of a minute, one after the other, differ by that drift, and
//! turns of a second do not.
//!
//! A frozen process sends nothing, but the kernel goes on to send what is in its sockets' buffers: up to megabytes for free,
//! and at the cost of the other's share of a slow link. So over a link a turn ends with a step, when nothing is under way.

use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::launch::{Ended, Launch, LaunchRecord};

/// How often a run's lines are counted.
const POLL: Duration = Duration::from_millis(5);
/// Until all processes of a group have stopped, or gone on.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// A control group (version 2) whose processes are stopped and go on together, in whatever namespace they are.
#[derive(Debug)]
pub struct Freezer {
    path: PathBuf,
}

impl Freezer {
    /// A group below `parent`.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        let freezer = Self { path: parent.join(name) };
        match fs::create_dir(&freezer.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => freezer.set(false).map(|()| freezer),
        }
    }

    /// The same command, started within the group.
    pub fn wrap(&self, argv: Vec<String>) -> Vec<String> {
        let enter = "echo 0 >\"$0\" && exec \"$@\"";
        let procs = self.path.join("cgroup.procs").to_string_lossy().into_owned();
        ["sh".to_owned(), "-c".to_owned(), enter.to_owned(), procs].into_iter().chain(argv).collect()
    }

    /// Returns when all of the group's processes have stopped, or go on.
    fn set(&self, frozen: bool) -> io::Result<()> {
        let digit = if frozen { "1" } else { "0" };
        fs::write(self.path.join("cgroup.freeze"), digit)?;
        let wanted = format!("frozen {digit}");
        let asked = Instant::now();
        while !fs::read_to_string(self.path.join("cgroup.events"))?.lines().any(|line| line == wanted) {
            if asked.elapsed() > FREEZE_LIMIT {
                let late =
                    format!("{}: not {wanted:?} after {} s", self.path.display(), FREEZE_LIMIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for Freezer {
    /// What is left in it goes on, since nothing frozen hears that it should end.
    fn drop(&mut self) {
        let _ = self.set(false);
        let _ = fs::remove_dir(&self.path);
    }
}

/// One side, ready to start.
pub struct Entrant<'a> {
    pub launch: Launch<'a>,
    /// The file that gets a line a step.
    pub metrics: PathBuf,
    pub freezer: &'a Freezer,
}

/// One side's run.
pub struct Ran {
    pub ended: Ended,
    pub record: LaunchRecord,
    /// When each step's line appeared, in time that it was not frozen.
    pub marks: Vec<Duration>,
}

/// How turns are taken.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub turn: Duration,
    /// A turn ends with the step that is under way when `turn` is over.
    pub whole_steps: bool,
    /// Lines of the warm-up, and lines in all.
    pub warmup_lines: usize,
    pub lines: usize,
}

impl Rules {
    /// Lines that each side writes before it waits for the other. The last step of the warm-up is for after that, since
    /// what was frozen for long has lost its caches, and some of its memory to the kernel.
    fn alone(&self) -> usize {
        self.warmup_lines.saturating_sub(1).max(1)
    }
}

/// Runs both sides to their ends: the first alone until its warm-up is nearly over, then the second, then both in turns. If the
/// first does not get that far, the second is not started.
pub fn take_turns(entrants: [Entrant<'_>; 2], rules: Rules) -> io::Result<Vec<Ran>> {
    std::thread::scope(|scope| {
        let mut sides = Vec::new();
        let result = race(scope, entrants, rules, &mut sides);
        // Whatever happened: nothing frozen hears that it should end.
        sides.iter().for_each(|side| drop(side.freezer.set(false)));
        let ran: Vec<Ran> = sides.into_iter().filter_map(Side::join).collect();
        result.map(|()| ran)
    })
}

fn race<'scope, 'a: 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    entrants: [Entrant<'a>; 2],
    rules: Rules,
    sides: &mut Vec<Side<'scope, 'a>>,
) -> io::Result<()> {
    for entrant in entrants {
        let launch = entrant.launch;
        let mut side = Side {
            course: Course::begin(entrant.metrics),
            freezer: entrant.freezer,
            run: scope.spawn(move || launch.run()),
        };
        while !side.is_past(rules.alone()) {
            std::thread::sleep(POLL);
        }
        let ended = side.run.is_finished();
        let frozen = side.freezer.set(true);
        side.course.pause();
        sides.push(side);
        frozen?;
        if ended {
            return Ok(());
        }
    }
    while sides.iter_mut().any(|side| !side.is_past(rules.lines)) {
        for side in sides.iter_mut() {
            side.one_turn(rules)?;
        }
    }
    Ok(())
}

struct Side<'scope, 'a> {
    course: Course,
    freezer: &'a Freezer,
    run: ScopedJoinHandle<'scope, (Ended, LaunchRecord)>,
}

impl Side<'_, '_> {
    /// Whether it has written that many lines, or has ended.
    fn is_past(&mut self, lines: usize) -> bool {
        // Asked before looking: what was written before the end is seen.
        let ended = self.run.is_finished();
        self.course.look();
        ended || self.course.marks.len() >= lines
    }

    fn one_turn(&mut self, rules: Rules) -> io::Result<()> {
        if self.is_past(rules.lines) {
            return Ok(());
        }
        let begin = Instant::now();
        self.course.go_on();
        self.freezer.set(false)?;
        let mut finished = self.course.marks.len();
        loop {
            std::thread::sleep(POLL);
            let ended = self.is_past(rules.lines);
            let now = self.course.marks.len();
            let between_steps = now > std::mem::replace(&mut finished, now);
            if ended || begin.elapsed() >= rules.turn && (between_steps || !rules.whole_steps) {
                break;
            }
        }
        self.freezer.set(true)?;
        self.course.pause();
        Ok(())
    }

    fn join(self) -> Option<Ran> {
        let (ended, record) = self.run.join().ok()?;
        Some(Ran { ended, record, marks: self.course.marks })
    }
}

/// The time that a run was not frozen, and when its lines appeared in it.
struct Course {
    metrics: PathBuf,
    before: Duration,
    /// When the present turn began.
    since: Option<Instant>,
    marks: Vec<Duration>,
}

impl Course {
    fn begin(metrics: PathBuf) -> Self {
        Self { metrics, before: Duration::ZERO, since: Some(Instant::now()), marks: Vec::new() }
    }

    fn now(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn look(&mut self) {
        let lines = fs::read(&self.metrics).map_or(0, |bytes| bytes.iter().filter(|&&b| b == b'\n').count());
        let now = self.now();
        self.marks.resize(lines.max(self.marks.len()), now);
    }

    fn go_on(&mut self) {
        self.since = Some(Instant::now());
    }

    fn pause(&mut self) {
        self.before = self.now();
        self.since = None;
    }
}

/// Seconds of each step after the warm-up, from the marks of all.
pub fn step_seconds(marks: &[Duration], warmup_lines: usize) -> Vec<f64> {
    let pairs = marks.iter().zip(marks.iter().skip(1)).skip(warmup_lines.saturating_sub(1));
    pairs.map(|(before, after)| (*after - *before).as_secs_f64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cores::Cores;
    use std::sync::atomic::AtomicBool;

    /// Each line costs the same work, so that it takes about the same time of one's own, whoever runs in between.
    #[test]
    fn the_time_of_the_other_does_not_count() {
        the_time_of_the_other(["a", "b"], false);
    }

    #[test]
    fn the_time_of_the_other_does_not_count_by_whole_steps() {
        the_time_of_the_other(["e", "f"], true);
    }

    fn the_time_of_the_other(names: [&str; 2], whole_steps: bool) {
        let cores = Cores::new();
        let Some(group) = cores.group() else { return eprintln!("SKIPPED: no right to make control groups") };
        let folder = tempfile::tempdir().unwrap();
        let freezers = names.map(|name| Freezer::new(group, name).unwrap());
        let stop = AtomicBool::new(false);
        let lines = 6;
        let entrant = |index: usize| {
            let file = |name: &str| folder.path().join(format!("{index}-{name}"));
            let work = format!(
                "for l in 1 2 3 4 5 6; do i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo >>{}; done",
                file("lines").display()
            );
            let launch = Launch {
                argv: freezers[index].wrap(["sh", "-c", &work].map(str::to_owned).to_vec()),
                stdout: file("stdout"),
                stderr: file("stderr"),
                timeout: Duration::from_secs(120),
                stop: &stop,
            };
            Entrant { launch, metrics: file("lines"), freezer: &freezers[index] }
        };
        let begin = Instant::now();
        let rules = Rules { turn: Duration::from_millis(20), whole_steps, warmup_lines: 1, lines };
        let ran = take_turns([entrant(0), entrant(1)], rules).unwrap();
        let wall = begin.elapsed();
        assert!(ran.len() == 2 && ran.iter().all(|ran| ran.ended == Ended::Exit(0)), "{:?}", ran[0].ended);
        assert!(
            ran.iter().all(|ran| ran.marks.len() == lines && step_seconds(&ran.marks, 1).len() == lines - 1)
        );
        let own: Duration = ran.iter().map(|ran| ran.marks[lines - 1]).sum();
        assert!(own <= wall, "{own:?} of their own within {wall:?}");
    }

    #[test]
    fn the_second_is_not_started_if_the_first_fails() {
        let cores = Cores::new();
        let Some(group) = cores.group() else { return eprintln!("SKIPPED: no right to make control groups") };
        let folder = tempfile::tempdir().unwrap();
        let freezers = ["c", "d"].map(|name| Freezer::new(group, name).unwrap());
        let stop = AtomicBool::new(false);
        let entrant = |index: usize| {
            let file = |name: &str| folder.path().join(format!("{index}-{name}"));
            let launch = Launch {
                argv: freezers[index].wrap(["sh", "-c", "exit 3"].map(str::to_owned).to_vec()),
                stdout: file("stdout"),
                stderr: file("stderr"),
                timeout: Duration::from_secs(60),
                stop: &stop,
            };
            Entrant { launch, metrics: file("lines"), freezer: &freezers[index] }
        };
        let rules = Rules { turn: Duration::from_millis(20), whole_steps: false, warmup_lines: 1, lines: 2 };
        let ran = take_turns([entrant(0), entrant(1)], rules).unwrap();
        assert_eq!(ran.iter().map(|ran| ran.ended.clone()).collect::<Vec<_>>(), [Ended::Exit(3)]);
    }

    #[test]
    fn warm_up_steps_and_the_start_are_left_out() {
        let marks = [3.0, 5.0, 6.0, 8.0].map(Duration::from_secs_f64);
        assert_eq!(step_seconds(&marks, 1), [2.0, 1.0, 2.0]);
        assert_eq!(step_seconds(&marks, 3), [2.0]);
        assert!(step_seconds(&marks, 4).is_empty() && step_seconds(&[], 1).is_empty());
    }
}
