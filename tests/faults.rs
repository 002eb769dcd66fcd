//! When something breaks, every rank leaves quickly, the true cause comes first, and no checkpoint is lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_harness::flight;
use lockstep_record::{RunDir, exit};

use crate::equality::golden;
use crate::launch::{Launch, Running, assert_equal};

/// One rank that may write no more than 100 KiB to a file: room for the record, but not for a shard.
#[test]
fn a_write_that_fails_while_saving_keeps_the_older_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    let quiet = |launch: Launch| launch.set("record.digests_every=0");
    quiet(Launch::ranks(1)).stop_after(5).run(folder.path()).ok();
    let ended = quiet(Launch::ranks(1)).resume().after("ulimit -f 200").run(folder.path());
    ended.code(exit::INTERNAL).says("cannot save a checkpoint").says("Older checkpoints are untouched");
    assert_eq!(run.checkpoint_steps().unwrap(), [5]);
    quiet(Launch::ranks(1)).resume().run(folder.path()).ok();
    assert_eq!(run.checkpoint_steps().unwrap(), [5, 10]);
}

/// Two ranks on a file system of 450 KiB, where this user may mount one: the second checkpoint does not fit.
#[test]
fn a_full_disk_while_saving_keeps_the_older_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| Command::new("mount").args(arguments).arg(folder.path()).output();
    if !mount(&["-t", "tmpfs", "-o", "size=450k", "tmpfs"]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may not mount a file system");
        return;
    }
    let run = RunDir::new(folder.path().join("run"));
    let quiet = |launch: Launch| launch.set("record.digests_every=0").set("checkpoint.every=5");
    let ended = quiet(Launch::ranks(2)).run(run.path());
    let steps = run.checkpoint_steps().unwrap();
    // The folder must be usable again before anything is asserted.
    let _ = Command::new("umount").arg("--lazy").arg(folder.path()).output();
    ended.code(exit::INTERNAL).says("cannot save a checkpoint").says("No space left on device");
    assert_eq!(steps, [5]);
}

/// What ranks leave outside their run directory: processes, shared memory, the launcher's session folders.
struct Litter {
    pids: Vec<i32>,
    shared_memory: BTreeSet<PathBuf>,
    sessions: PathBuf,
}

impl Litter {
    fn of(running: &Running, sessions: &Path) -> Self {
        let (pids, shared_memory) = (running.rank_pids(), running.shared_memory());
        assert!(!shared_memory.is_empty() && std::fs::read_dir(sessions).unwrap().next().is_some());
        Self { pids, shared_memory, sessions: sessions.into() }
    }

    fn left(&self) -> Vec<PathBuf> {
        // One that has ended and that nobody has collected, as where process 1 is no init, is gone.
        let runs = |pid: &&i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            !status.lines().any(|line| line.starts_with("State:") && line.contains("(zombie)"))
        };
        let processes = self.pids.iter().filter(runs).map(|pid| PathBuf::from(format!("/proc/{pid}")));
        let files = processes.chain(self.shared_memory.iter().cloned()).filter(|path| path.exists());
        let sessions = std::fs::read_dir(&self.sessions).unwrap().map(|entry| entry.unwrap().path());
        files.chain(sessions).collect()
    }

    /// Asserts that nothing is left, at the latest 5 seconds after `since`.
    fn is_gone_within_5_s(&self, since: Instant) {
        while !self.left().is_empty() {
            assert!(since.elapsed() < Duration::from_secs(5), "left behind: {:?}", self.left());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_killed_rank_ends_all_within_seconds_and_a_resume_goes_on() {
    let (folder, sessions) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = RunDir::new(folder.path());
    let long = |launch: Launch| launch.set("schedule.steps=3000").set("checkpoint.every=50");
    let running =
        long(Launch::ranks(3)).env("TMPDIR", sessions.path().to_str().unwrap()).start(folder.path());
    running.wait_for(&run.checkpoint(50).join("manifest.json"));
    let litter = Litter::of(&running, sessions.path());
    assert_eq!(litter.pids.len(), 3);
    let killed = Instant::now();
    // SAFETY: ends a rank that this test started.
    unsafe { libc::kill(litter.pids[1], libc::SIGKILL) };
    let ended = running.wait();
    assert_ne!(ended.exit_code, Some(0));
    litter.is_gone_within_5_s(killed);
    let step = *run.checkpoint_steps().unwrap().last().unwrap();
    long(Launch::ranks(2)).resume().stop_after(step + 1).run(folder.path()).ok();
}

/// One of the others says which rank gives no answer, and every rank that still can leaves its last collectives.
#[test]
fn a_rank_that_stops_is_named() {
    let (folder, sessions) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = RunDir::new(folder.path());
    let long =
        Launch::ranks(3).set("schedule.steps=20000").set("parallel.timeout_s=1.5").set("checkpoint.every=0");
    let running = long.env("TMPDIR", sessions.path().to_str().unwrap()).start(folder.path());
    running.wait_for(&run.metrics());
    let litter = Litter::of(&running, sessions.path());
    let stopped = Instant::now();
    // SAFETY: stops a rank that this test started.
    unsafe { libc::kill(running.rank_pid(1), libc::SIGSTOP) };
    let ended = running.wait().code(exit::WATCHDOG);
    let after = stopped.elapsed();
    assert!(after > Duration::from_millis(1500) && after < Duration::from_secs(8), "{after:?}");
    litter.is_gone_within_5_s(Instant::now());
    let ended = ended.says("made no progress for 1.5 s (parallel.timeout_s)");
    let ended = ended.says("\n  rank 1: no answer: stopped, dead or unreachable\n");
    assert_eq!(ended.stderr.matches("made no progress").count(), 1, "{}", ended.stderr);
    let report = flight::read(&run).unwrap();
    // MPI_Abort lets a stopped rank go on before it ends it, so that rank may leave a file, too.
    assert!(report.ranks.contains_key(&0) && report.ranks.contains_key(&2), "{}", ended.stderr);
    assert!(!report.partings().is_empty(), "{}", report.text());
}

/// A gradient that is not finite is named, on every rank alike, before it reaches the parameters.
#[test]
fn an_exploding_gradient_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let hot = ["optim.kind=sgd", "optim.lr=1e6", "optim.clip_norm=null", "schedule.steps=200"];
    let launch = hot.iter().fold(Launch::ranks(2), |launch, setting| launch.set(setting));
    let ended = launch.run(folder.path()).code(exit::INTERNAL).says("is not finite");
    assert_eq!(ended.stderr.matches("is not finite").count(), 1, "{}", ended.stderr);
}

/// Nothing that a crash can leave between the write and the rename counts as a checkpoint.
#[test]
fn a_crash_between_write_and_publish_is_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    Launch::ranks(2).run(folder.path()).ok();
    let unpublished = run.checkpoints().join(".step-00000010.partial");
    std::fs::rename(run.checkpoint(10), &unpublished).unwrap();
    std::fs::remove_file(unpublished.join("manifest.json")).unwrap();
    Launch::ranks(2).resume().run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

/// All ranks are killed at some moment while they save after every step: whatever lies there then, a resume ends with
/// the same bits.
#[test]
fn a_crash_at_any_moment_loses_nothing() {
    for delay_ms in [0, 9, 23, 41] {
        let folder = tempfile::tempdir().unwrap();
        let saving = || Launch::ranks(2).set("checkpoint.every=1");
        let running = saving().start(folder.path());
        running.wait_for(&RunDir::new(folder.path()).metrics());
        std::thread::sleep(Duration::from_millis(delay_ms));
        // SAFETY: ends ranks that this test started.
        running.rank_pids().iter().for_each(|&pid| unsafe { assert_eq!(libc::kill(pid, libc::SIGKILL), 0) });
        running.wait();
        let ended = saving().resume().run(folder.path());
        assert!(matches!(ended.exit_code, Some(exit::OK | exit::NOTHING_TO_DO)), "{}", ended.stderr);
        assert_equal(&golden(), folder.path());
    }
}
