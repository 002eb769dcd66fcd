//! One launch: start it, wait for it with a limit, keep what it printed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How often a running launch is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Limit of the command that asks whether a foreign trainer is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);
/// From the request to end until the kill.
const GRACE: Duration = Duration::from_secs(5);
/// How much of the end of a log goes into a message, in bytes.
const TAIL_BYTES: u64 = 2048;

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
    /// It outlasted its limit and was killed, with every process of its group.
    TimedOut(Duration),
    NotStarted(String),
    /// This program was told to stop.
    Interrupted,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(formatter, "exit code {code}"),
            Self::Signal(signal) => write!(formatter, "killed by signal {signal}"),
            Self::TimedOut(limit) => {
                write!(formatter, "killed after {} s, its time limit", limit.as_secs_f64())
            }
            Self::NotStarted(problem) => write!(formatter, "could not be started: {problem}"),
            Self::Interrupted => formatter.write_str("interrupted"),
        }
    }
}

/// A command line and where its output goes.
pub struct Launch<'a> {
    pub argv: Vec<String>,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    pub timeout: Duration,
    pub stop: &'a AtomicBool,
}

/// What a launch was and how it ended, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct LaunchRecord {
    pub argv: Vec<String>,
    pub ended: String,
    pub seconds: f64,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

impl Launch<'_> {
    pub fn run(self) -> (Ended, LaunchRecord) {
        let start = Instant::now();
        let ended = match self.start() {
            Ok(child) => self.wait(child, start),
            Err(error) => Ended::NotStarted(error.to_string()),
        };
        let seconds = start.elapsed().as_secs_f64();
        let Self { argv, stdout, stderr, .. } = self;
        let record = LaunchRecord { argv, ended: ended.to_string(), seconds, stdout, stderr };
        (ended, record)
    }

    fn start(&self) -> std::io::Result<Child> {
        let (program, arguments) = self.argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(File::create(&self.stdout)?).stderr(File::create(&self.stderr)?);
        // MKL takes its thread count from the environment only, on threads that are spawned later.
        command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1");
        for (name, _) in std::env::vars_os() {
            // The new ranks are a world of their own, even if this program is itself a rank of another.
            let text = name.to_string_lossy();
            if ["OMPI_COMM_WORLD_", "PMIX_", "PMI_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.process_group(0).spawn()
    }

    fn wait(&self, mut child: Child, start: Instant) -> Ended {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return ended(status),
                Ok(None) => {}
                Err(error) => return Ended::NotStarted(error.to_string()),
            }
            let over = start.elapsed() >= self.timeout;
            if over || self.stop.load(Ordering::Relaxed) {
                end_group(&mut child);
                return if over { Ended::TimedOut(self.timeout) } else { Ended::Interrupted };
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What a launch that did not end with 0 is blamed for: how it ended, and the end of what it said.
pub fn complaint(ended: &Ended, record: &LaunchRecord) -> Option<String> {
    if *ended == Ended::Exit(0) {
        return None;
    }
    let (message, log) = match tail(&record.stderr) {
        text if text.is_empty() => (tail(&record.stdout), &record.stdout),
        text => (text, &record.stderr),
    };
    let quoted = if message.is_empty() { "it printed nothing".into() } else { message };
    Some(format!("{ended} ({}): {quoted}", log.display()))
}

/// Whether a foreign trainer is installed here; the error says what is missing. The output goes into
/// `folder`.
pub fn probe(argv: Vec<String>, folder: &Path, stop: &AtomicBool) -> Result<(), String> {
    let (stdout, stderr) = (folder.join("requires.stdout"), folder.join("requires.stderr"));
    let (ended, record) = Launch { argv, stdout, stderr, timeout: PROBE_TIMEOUT, stop }.run();
    if ended == Ended::Exit(0) {
        return Ok(());
    }
    let said = tail(&record.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(format!("what it requires is not here: {ended}: {last}"))
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// Asks the whole process group to end, and kills what is left of it. A launcher that is asked ends its
/// ranks.
fn end_group(child: &mut Child) {
    signal_group(child, libc::SIGTERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(POLL);
    }
    signal_group(child, libc::SIGKILL);
    // It has been killed, so this ends.
    let _ = child.wait();
}

fn signal_group(child: &Child, signal: i32) {
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: kill takes two integers. The group was made for this child, which has not been forgotten;
        // at worst the group is empty and the call fails.
        unsafe { libc::kill(-group, signal) };
    }
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration, stop: bool) -> (Ended, String) {
        let folder = tempfile::tempdir().unwrap();
        let launch = Launch {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            stdout: folder.path().join("stdout"),
            stderr: folder.path().join("stderr"),
            timeout,
            stop: &AtomicBool::new(stop),
        };
        let (ended, record) = launch.run();
        (ended, tail(&record.stdout))
    }

    #[test]
    fn exit_codes_and_signals_are_told_apart() {
        let limit = Duration::from_secs(20);
        assert_eq!(shell("echo hello; exit 7", limit, false), (Ended::Exit(7), "hello".to_owned()));
        assert_eq!(shell("kill -9 $$", limit, false).0, Ended::Signal(9));
    }

    #[test]
    fn a_launch_that_hangs_is_killed_with_its_children() {
        let limit = Duration::from_millis(300);
        let start = Instant::now();
        let (ended, pid) = shell("sleep 60 & echo $!; wait", limit, false);
        assert_eq!(ended, Ended::TimedOut(limit));
        assert!(start.elapsed() < GRACE + Duration::from_secs(10));
        let pid: i32 = pid.parse().unwrap();
        let gone = || {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        assert!(
            (0..100).any(|_| gone() || {
                std::thread::sleep(POLL);
                false
            }),
            "process {pid} is still there"
        );
    }

    #[test]
    fn an_interrupt_ends_the_launch() {
        assert_eq!(shell("sleep 60", Duration::from_secs(60), true).0, Ended::Interrupted);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let (stdout, stderr) = (folder.path().join("o"), folder.path().join("e"));
        let argv = vec!["/nonexistent/program".to_owned()];
        let stop = AtomicBool::new(false);
        let launch = Launch { argv, stdout, stderr, timeout: GRACE, stop: &stop };
        assert!(matches!(launch.run().0, Ended::NotStarted(_)));
    }
}
