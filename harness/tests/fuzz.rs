//! Damaged and hostile files for every reader of the harness: none may panic, none may take memory or time out of all
//! proportion. What has ever gone wrong is kept in `tests/corpus/READER/` and tried first.
//!
//! Ordinary tests try a few hundred mutations a reader; `make fuzz` (`LOCKSTEP_FUZZ_CASES`) as many as one likes.

#[path = "fuzz/allocator.rs"]
mod allocator;
mod common;
#[path = "fuzz/goldens.rs"]
mod goldens;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use targets::{Scratch, TARGETS, Target};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

const CASES: u32 = 300;
/// Bytes that reading may take besides so many for each byte of the file.
const MEMORY_MAX: usize = 24 << 20;
const MEMORY_A_BYTE: usize = 400;
/// Of this thread's processor time: the machine may be slow, or busy.
const TIME_MAX: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// How long this thread has computed.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux, and `time` lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Reads the bytes, and says whether they were accepted; a panic goes through.
fn read(target: &Target, scratch: &Scratch, bytes: &[u8]) -> Result<bool, String> {
    let begin = processor_time();
    let (accepted, held) = allocator::most_held(|| (target.read)(scratch, bytes));
    let took = processor_time() - begin;
    let allowed = MEMORY_MAX + MEMORY_A_BYTE * bytes.len();
    if held > allowed {
        return Err(format!("{held} bytes of memory for a file of {} ({allowed} are allowed)", bytes.len()));
    }
    if took > TIME_MAX {
        return Err(format!("{took:?} for a file of {} bytes", bytes.len()));
    }
    Ok(accepted)
}

/// Where an input lies before it is read, and stays if reading it ends the whole program.
fn kept(target: &Target) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(target.name)
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let scratch = Scratch::new();
    let seeds = (target.seeds)(&scratch);
    for seed in &seeds {
        assert_eq!(read(target, &scratch, seed), Ok(true), "mutations start from files that are accepted");
    }
    let cases =
        std::env::var("LOCKSTEP_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    // A file that takes long takes as long at each attempt to make it smaller.
    let (max_shrink_iters, max_shrink_time) = (2000, 60_000);
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters, max_shrink_time, ..Config::default() };
    let kept = kept(target);
    let inputs = (any::<Index>(), mutate::mutations());
    let outcome = TestRunner::new(config).run(&inputs, |(seed, mutations)| {
        let bytes = mutate::mutate(&seeds[seed.index(seeds.len())], &mutations);
        std::fs::write(&kept, &bytes).unwrap();
        read(target, &scratch, &bytes).map(drop).map_err(TestCaseError::fail)
    });
    if let Err(problem) = outcome {
        // The last input that was tried while shrinking may be a harmless one.
        if let proptest::test_runner::TestError::Fail(_, (seed, mutations)) = &problem {
            std::fs::write(&kept, mutate::mutate(&seeds[seed.index(seeds.len())], mutations)).unwrap();
        }
        panic!("{name}: {problem}\nthe file: {} (move it to {}/{name})", kept.display(), corpus().display());
    }
    eprintln!("{name}: {cases} files");
    let _ = std::fs::remove_file(kept);
}

macro_rules! fuzzed {
    ($($test:ident $name:literal;)*) => {
        $(#[test] fn $test() { fuzz($name); })*

        #[test]
        fn every_reader_is_tried() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

fuzzed! {
    manifest "manifest";
    metrics "metrics";
    samples "samples";
    digests "digests";
    checkpoint_manifest "checkpoint-manifest";
    safetensors "safetensors";
    safetensors_header "safetensors-header";
    flight "flight";
    trace "trace";
    measurements "measurements";
    plan "plan";
    bench_plan "bench-plan";
    bench_results "bench-results";
    report "report";
    envelope "envelope";
    envelope_steps "envelope-steps";
    golden_header "golden-header";
    zoo "zoo";
}

#[test]
fn what_once_went_wrong_goes_well() {
    let scratch = Scratch::new();
    let mut files = 0;
    for target in &TARGETS {
        for entry in std::fs::read_dir(corpus().join(target.name)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            read(target, &scratch, &bytes).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
            files += 1;
        }
    }
    assert!(files >= 10, "the corpus has only {files} files");
}

/// The control: what the checks are for is seen by them.
#[test]
fn memory_and_panics_are_noticed() {
    let greedy = Target {
        name: "greedy",
        seeds: |_| Vec::new(),
        read: |_, _| std::hint::black_box(vec![1u8; MEMORY_MAX + (1 << 20)]).is_empty(),
    };
    let problem = read(&greedy, &Scratch::new(), b"x").unwrap_err();
    assert!(problem.contains("bytes of memory for a file of 1"), "{problem}");
    let slip = Target { name: "slip", seeds: |_| Vec::new(), read: |_, bytes| bytes[9] > 0 };
    let scratch = std::panic::AssertUnwindSafe(Scratch::new());
    assert!(std::panic::catch_unwind(|| read(&slip, &scratch, b"x")).is_err());
}
