//! NCCL without a GPU: the whole path under real mpirun, over a test double of the library that ranks load in its place.

mod acceptance;
mod buckets;
mod matrix;
mod refused;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lockstep_record::{Manifest, RunDir, exit, read_json};

use crate::equality::golden;
use crate::launch::{Ended, Launch, assert_equal, exactly};

/// The double that was built with these tests.
pub fn double() -> String {
    let program = std::env::current_exe().expect("the tests' own path");
    let path: PathBuf = program.with_file_name("liblockstep_nccl_double.so");
    assert!(path.is_file(), "{} is not built", path.display());
    path.display().to_string()
}

fn over_nccl(launch: Launch) -> Launch {
    let launch = launch.set("parallel.backend=nccl").set("run.device=cpu");
    launch.env("LOCKSTEP_NCCL_LIBRARY", &double()).env("NCCL_SOCKET_IFNAME", "lo")
}

fn faulty(launch: Launch, fault: &str) -> Launch {
    over_nccl(launch).env("NCCL_DOUBLE_FAULT", fault)
}

/// Bootstrap, buckets, the ordered sum, both strategies, with and without the communication thread.
#[test]
fn nccl_moves_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let launches = [
        ("ddp", Launch::ranks(2)),
        ("zero1", Launch::ranks(3).zero1().set("parallel.bucket_mb=0.02")),
        ("inline", Launch::ranks(2).zero1().set("parallel.overlap=false")),
        ("checked", Launch::ranks(2).set("parallel.check_collectives=true").set("parallel.bucket_mb=0.02")),
    ];
    for (name, launch) in launches {
        let run = folder.path().join(name);
        over_nccl(launch.set("record.local_gradients=true")).run(&run).ok();
        assert_equal(&golden(), &run);
    }
}

/// Wherever a result is shown that a double had a part in, it says so; and NCCL's own log is in the run directory.
#[test]
fn the_record_names_the_library_and_the_way_that_data_took() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    over_nccl(Launch::ranks(2)).run(run.path()).ok();
    let manifest: Manifest = read_json(&run.manifest()).unwrap();
    let segment = &manifest.segments[0];
    assert_eq!(segment.backend, "nccl-double");
    let nccl = segment.nccl.as_ref().expect("the library");
    assert!(nccl.version.starts_with("2.29.7 (test double"), "{}", nccl.version);
    assert_eq!(nccl.library, double());
    assert_eq!(nccl.transports, ["SHM"]);
    let logs = std::fs::read_dir(run.logs()).unwrap().flatten();
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("nccl."));
    assert_eq!(logs.count(), 2, "one log a rank");
}

/// A checkpoint knows nothing of who carried the gradients.
#[test]
fn a_run_goes_on_over_another_backend() {
    let folder = tempfile::tempdir().unwrap();
    over_nccl(Launch::ranks(2).zero1()).set("run.device=auto").stop_after(5).run(folder.path()).ok();
    Launch::ranks(3).resume().run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

/// The library's own sums are close, and not equal: as over MPI.
#[test]
fn native_reductions_over_nccl_are_close() {
    let folder = tempfile::tempdir().unwrap();
    let soft = |launch: Launch| launch.set("optim.eps=1e-6").set("optim.lr=3e-4");
    soft(Launch::ranks(1)).run(&folder.path().join("golden")).ok();
    let native = |launch: Launch| over_nccl(soft(launch)).set("parallel.reduction=native");
    native(Launch::ranks(3)).run(&folder.path().join("ddp")).ok();
    native(Launch::ranks(3).zero1()).run(&folder.path().join("zero1")).ok();
    use lockstep_harness::compare::{Mode, Tolerance, compare};
    for name in ["ddp", "zero1"] {
        let (golden, native) = (folder.path().join("golden"), folder.path().join(name));
        assert!(!exactly(&golden, &native).passed(), "{name} has the bits of the tree by chance");
        let tolerance = Tolerance { rtol: 1e-5, atol: 1e-6, parameter_norm_atol: None };
        let close = compare(&golden, &native, Mode::Tolerance(tolerance)).unwrap();
        assert!(close.passed(), "{name}: {:?}", close.first_difference());
    }
}

/// Ends all ranks within seconds of the fault, with the watchdog's exit code.
fn ends(fault: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let launch = faulty(Launch::ranks(3), fault).set("schedule.steps=2000").set("parallel.timeout_s=2");
    let started = Instant::now();
    let ended = launch.set("checkpoint.every=0").run(folder.path());
    assert!(started.elapsed() < Duration::from_secs(30), "{fault}: {:?}", started.elapsed());
    ended.code(exit::WATCHDOG)
}

/// Connections break: the others are told, whichever of them is first to speak.
#[test]
fn a_lost_rank_ends_all() {
    ends("lost@1:20").says("NCCL: remote process exited or there was a network error").says("rank 1 failed");
}

#[test]
fn an_asynchronous_error_ends_all() {
    ends("error@1:20").says("NCCL: ").says("Got completion from peer");
}

/// Nothing is told: the watchdog ends the ranks, and aborts what NCCL has in progress.
#[test]
fn a_rank_that_falls_silent_ends_all() {
    let ended = ends("silent@2:20").says("made no progress for 2.0 s (parallel.timeout_s)");
    assert_eq!(ended.stderr.matches("made no progress").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_slow_rank_moves_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    faulty(Launch::ranks(2), "slow@1:3").run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

/// The control of all equalities above: one bit, received wrongly once by one rank, must not pass.
#[test]
fn one_wrong_bit_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    faulty(Launch::ranks(2), "wrong@1:5").run(folder.path()).ok();
    let comparison = exactly(&golden(), folder.path());
    assert!(!comparison.passed(), "a wrong bit went unnoticed");
}

/// A library that cannot add does not get to train.
#[test]
fn a_wrong_sum_at_the_start_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ended = faulty(Launch::ranks(2), "wrong@1:1").run(folder.path()).code(exit::BOOTSTRAP);
    ended.says("trial of NCCL").says("is faulty");
}

/// Known answers of every operation and format, on all ranks.
#[test]
fn the_doctor_tries_nccl_out() {
    let doctor = || over_nccl(Launch::command("doctor", 3)).argument("--nccl-test");
    let ended = doctor().begin().wait();
    for line in ["all-reduce bf16", "all-reduce fp16", "uneven scatter", "send and receive", "test double"] {
        assert!(ended.stdout.contains(line), "{line}: {}\n{}", ended.stdout, ended.stderr);
    }
    assert!(!ended.stdout.contains("WRONG"), "{}", ended.stdout);
    // The control: operation 3 is the first after the trial.
    let ended = doctor().env("NCCL_DOUBLE_FAULT", "wrong@1:3").begin().wait().code(exit::BOOTSTRAP);
    assert!(ended.stdout.contains("WRONG: rank 1 got another result"), "{}", ended.stdout);
}
