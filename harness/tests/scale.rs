//! Records of many ranks and checkpoints of many gigabytes: how long they take to compare, and in how much memory.
//!
//! The ordinary tests use small ones. The large ones take minutes and gigabytes of disk: `ci/bench-compare` runs them.

mod common;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, STEPS, read_manifest, write_manifest};
use lockstep_record::{
    BLOCK_BYTES, CheckpointFile, Piece, RunDir, TensorEntry, block_digests, tensor_digest,
};
use serde_json::json;

/// What a run of many ranks would leave: a micro-batch a rank, each with a digest of its own gradient.
struct Simulated {
    ranks: u64,
    steps: u64,
}

const TENSORS: [&str; 2] = ["wte.weight", "wte.bias"];

/// A digest for anything.
fn digest(parts: [u64; 4]) -> String {
    let mix = |seed: u64, part: &u64| {
        (seed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    format!("{:016x}{:016x}", parts.iter().fold(1, mix), parts.iter().fold(2, mix))
}

impl Simulated {
    /// `other` is the step at which the last rank's gradient of the last tensor is another one.
    fn write(&self, path: &Path, other: Option<u64>) {
        let run = RunDir::new(path);
        std::fs::create_dir_all(path).unwrap();
        std::fs::write(run.manifest(), self.manifest()).unwrap();
        let open = |path: PathBuf| BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
        let (mut metrics, mut samples, mut digests) =
            (open(run.metrics()), open(run.samples()), open(run.digests()));
        for step in 1..=self.steps {
            metrics.write_all(self.metrics(step).as_bytes()).unwrap();
            samples.write_all(self.samples(step).as_bytes()).unwrap();
            self.digests(step, other == Some(step), &mut digests);
        }
        [metrics, samples, digests].iter_mut().for_each(|file| file.flush().unwrap());
    }

    fn manifest(&self) -> String {
        let ranks: Vec<_> = (0..self.ranks)
            .map(|rank| json!({"rank": rank, "host": format!("n{rank}"), "optimizer_bytes": 8, "master_bytes": 4}))
            .collect();
        let tensors = TENSORS.map(|name| json!({"name": name, "shape": [2], "dtype": "F32"}));
        let segment = json!({"from_step": 0, "started_unix_s": 1, "world_size": self.ranks, "strategy": "ddp",
            "reduction": "ordered", "backend": "mpi", "threads_per_rank": 1, "cpu_capability": "AVX2", "versions": {},
            "ranks": ranks});
        json!({"record_version": 1, "program": {"name": "simulated", "version": "1", "git_commit": "0"}, "seed": 1,
            "config": {}, "model": {"parameters": 4, "tensors": tensors}, "data": {"digest": "d", "tokenizer": "bytes",
            "tokenizer_digest": "t", "vocabulary": 256, "train_samples": 1, "validation_samples": 1},
            "segments": [segment]})
        .to_string()
    }

    fn metrics(&self, step: u64) -> String {
        let losses: Vec<f32> =
            (0..self.ranks).map(|rank| (5.0 - (step + rank % 7) as f32 * 1e-3) / 1000.0).collect();
        let line = json!({"step": step, "epoch": 0, "loss": 5.0 - step as f64 * 1e-3, "micro_batch_losses": losses,
            "gradient_norm": 1.25, "parameter_norm": 24.5, "clip_coefficient": 0.75, "learning_rate": 1e-3, "tokens": 2048,
            "tokens_per_second": 1.0, "seconds": {"data": 0.0, "forward": 0.0, "backward": 0.0, "communication": 0.0,
            "optimizer": 0.0, "record": 0.0, "total": 1.0}, "resident_bytes_max": 1});
        format!("{line}\n")
    }

    fn samples(&self, step: u64) -> String {
        let ids: Vec<[u64; 2]> = (0..self.ranks).map(|rank| [step * self.ranks + rank, rank]).collect();
        format!("{{\"step\":{step},\"micro_batches\":{}}}\n", serde_json::to_string(&ids).unwrap())
    }

    fn digests(&self, step: u64, other: bool, file: &mut impl Write) {
        let mut text = String::new();
        for rank in 0..self.ranks {
            for (index, name) in TENSORS.iter().enumerate() {
                let changed = other && rank == self.ranks - 1 && index == TENSORS.len() - 1;
                let digest = digest([step, rank, index as u64, u64::from(changed)]);
                let _ = writeln!(
                    text,
                    "{{\"step\":{step},\"phase\":\"local_gradient\",\"tensor\":\"{name}\",\"micro_batch\":{rank},\
                     \"digest\":\"{digest}\",\"norm\":0.125,\"ranks\":[[{rank},{rank}]]}}"
                );
            }
        }
        for (phase, prefix) in [("reduced_gradient", ""), ("optimizer", "exp_avg/"), ("parameters", "")] {
            for (index, name) in TENSORS.iter().enumerate() {
                let (digest, last) = (digest([step, 1 << 40, index as u64, 0]), self.ranks - 1);
                let _ = writeln!(
                    text,
                    "{{\"step\":{step},\"phase\":\"{phase}\",\"tensor\":\"{prefix}{name}\",\"digest\":\"{digest}\",\
                     \"norm\":0.5,\"ranks\":[[0,{last}]]}}"
                );
            }
        }
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// What the comparison of two records took, under a limit of address space.
struct Took {
    code: i32,
    text: String,
    wall: Duration,
    processor: Duration,
}

/// Processor time of all children that have ended, and the largest resident set of any, in bytes.
fn children() -> (Duration, u64) {
    // SAFETY: a rusage is plain numbers, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    (time(usage.ru_utime) + time(usage.ru_stime), usage.ru_maxrss as u64 * 1024)
}

fn compare(golden: &Path, candidate: &Path, limit_mib: u64) -> Took {
    let (begin, before) = (Instant::now(), children().0);
    let output = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("ulimit -v {} && exec \"$0\" compare \"$1\" \"$2\"", limit_mib * 1024))
        .arg(env!("CARGO_BIN_EXE_lockstep-harness"))
        .args([golden, candidate])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let processor = children().0.saturating_sub(before);
    Took { code: output.status.code().unwrap_or(-1), text, wall: begin.elapsed(), processor }
}

/// Two records, equal and then with one difference, which is found and named.
fn compare_simulated(simulated: &Simulated, limit_mib: u64) -> Duration {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name);
    let parts = simulated.steps * 3 / 4;
    simulated.write(&path("golden"), None);
    let bytes = std::fs::metadata(RunDir::new(path("golden")).digests()).unwrap().len();
    // A copy rather than the same file, so that its pages are its own.
    simulated.write(&path("candidate"), Some(parts));
    let took = compare(&path("golden"), &path("candidate"), limit_mib);
    assert_eq!(took.code, 100, "{}", took.text);
    let last = simulated.ranks - 1;
    let expected = format!("step {parts}, local gradient, micro-batch {last}, wte.bias, rank {last}: ");
    assert!(took.text.contains(&expected), "{}", took.text);
    let row = took.text.lines().find(|line| line.starts_with("local gradients")).unwrap();
    assert!(row.contains(&format!(" {} ", simulated.ranks * simulated.steps * 2)), "{row}");
    eprintln!(
        "{} ranks, {} steps, {:.0} MiB of digests each: {:.1} s, {:.1} s of processor time, below {limit_mib} MiB",
        simulated.ranks,
        simulated.steps,
        bytes as f64 / f64::from(1 << 20),
        took.wall.as_secs_f64(),
        took.processor.as_secs_f64(),
    );
    took.processor
}

#[test]
fn many_ranks_are_compared() {
    compare_simulated(&Simulated { ranks: 200, steps: 20 }, 256);
}

#[test]
#[ignore = "writes 0.8 GB and takes a minute: ci/bench-compare"]
fn a_thousand_ranks_and_steps_take_less_than_a_minute() {
    let took = compare_simulated(&Simulated { ranks: 1000, steps: 1000 }, 256);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// A run of as many shards as a large world leaves: more files than a process may open at once.
#[test]
fn a_checkpoint_of_a_thousand_shards_is_compared() {
    let mut bench = Bench::new();
    bench.golden.shards = 1100;
    bench.candidate.shards = 2;
    let [golden, candidate] = bench.write();
    let took = compare(golden.path(), candidate.path(), 512);
    assert_eq!(took.code, 0, "{}", took.text);
}

const TENSOR_ELEMENTS: usize = 16 << 20;
/// Bytes of that.
const TENSOR_BYTES: u64 = 64 << 20;

/// Numbers that look like a model's, and their neighbours if `neighbours`.
fn elements(neighbours: bool) -> Vec<u8> {
    let mut state = 7u64;
    let mut bytes = Vec::with_capacity(TENSOR_BYTES as usize);
    for _ in 0..TENSOR_ELEMENTS {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let value = ((state >> 40) as f32 / 16_777_216.0 - 0.5) * 0.04;
        let value = if neighbours { value.next_up() } else { value };
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Gives a run a checkpoint of so many tensors of 64 MiB; returns its file.
fn large_checkpoint(run: &RunDir, tensors: u64, bytes: &[u8]) -> PathBuf {
    let name = |index: u64| format!("model/{index}");
    let entries: serde_json::Map<_, _> = (0..tensors)
        .map(|index| {
            let offsets = [index * TENSOR_BYTES, (index + 1) * TENSOR_BYTES];
            (name(index), json!({"dtype": "F32", "shape": [TENSOR_ELEMENTS], "data_offsets": offsets}))
        })
        .collect();
    let header = serde_json::to_string(&entries).unwrap();
    let folder = run.checkpoint(STEPS);
    let path = folder.join("large.safetensors");
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    (0..tensors).for_each(|_| file.write_all(bytes).unwrap());
    let digest = tensor_digest(block_digests(bytes, BLOCK_BYTES));
    let mut manifest = read_manifest(&folder);
    let file = "large.safetensors".to_owned();
    let size = path.metadata().unwrap().len();
    manifest.files = vec![CheckpointFile { name: file.clone(), bytes: size, blake3: String::new() }];
    manifest.tensors = (0..tensors)
        .map(|index| TensorEntry {
            name: name(index),
            dtype: "F32".into(),
            shape: vec![TENSOR_ELEMENTS as u64],
            digest,
            pieces: vec![Piece {
                file: file.clone(),
                key: name(index),
                offset: 0,
                length: TENSOR_ELEMENTS as u64,
            }],
        })
        .collect();
    write_manifest(&folder, &manifest);
    path
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Where the files are before they are read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Whence {
    Disk,
    PageCache,
}

impl Whence {
    /// Puts the files there.
    fn prepare(self, files: [&Path; 2]) {
        for file in files {
            let status = match self {
                // Of what is written already nothing stays in memory.
                Self::Disk => {
                    let from = format!("if={}", file.display());
                    Command::new("dd").args([&from, "iflag=nocache", "count=0", "status=none"]).status()
                }
                Self::PageCache => Command::new("cat").arg(file).stdout(Stdio::null()).status(),
            };
            assert!(status.unwrap().success());
        }
    }
}

/// Reading both files against comparing them, in turn. From a disk comparing equal ones must be nearly as fast; from the page
/// cache, which is as fast as memory, and where all elements differ, the figure is only shown. `LOCKSTEP_BENCH_GIB` is the size of each checkpoint.
#[test]
#[ignore = "writes gigabytes: ci/bench-compare"]
fn comparing_checkpoints_is_nearly_as_fast_as_reading_them() {
    let gib: u64 = std::env::var("LOCKSTEP_BENCH_GIB").ok().and_then(|gib| gib.parse().ok()).unwrap_or(1);
    for (kind, neighbours, code) in [("equal", false, 0), ("every element an ulp apart", true, 100)] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let runs = [("golden", false), ("candidate", neighbours)].map(|(name, neighbours)| {
            let run = common::Run::new(1).write(&folder.path().join(name));
            let file = large_checkpoint(&run, gib * 16, &elements(neighbours));
            (run, file)
        });
        let [(golden, first), (candidate, second)] = &runs;
        assert!(Command::new("sync").args([first, second]).status().unwrap().success());
        for whence in [Whence::Disk, Whence::PageCache] {
            let (mut ratios, mut reads, mut compares, mut processor) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for _ in 0..3 {
                whence.prepare([first, second]);
                let begin = Instant::now();
                let cat = Command::new("cat").args([first, second]).stdout(Stdio::null()).status().unwrap();
                assert!(cat.success());
                let reading = begin.elapsed().as_secs_f64();
                whence.prepare([first, second]);
                let took = compare(golden.path(), candidate.path(), 256);
                assert_eq!(took.code, code, "{}", took.text);
                ratios.push(reading / took.wall.as_secs_f64());
                reads.push(reading);
                compares.push(took.wall.as_secs_f64());
                processor.push(took.processor.as_secs_f64());
            }
            let gigabytes = (2 * gib * 16 * TENSOR_BYTES) as f64 / 1e9;
            let (ratio, reading, comparing) = (median(ratios.clone()), median(reads), median(compares));
            eprintln!(
                "{kind}, {whence:?}: two checkpoints of {gib} GiB: read at {:.2} GB/s, compared at {:.2} GB/s: {:.0} % of it \
                 (3 pairs: {}), {:.1} s of processor time, largest resident set {:.0} MiB",
                gigabytes / reading,
                gigabytes / comparing,
                100.0 * ratio,
                ratios.iter().map(|ratio| format!("{:.0} %", 100.0 * ratio)).collect::<Vec<_>>().join(", "),
                median(processor),
                children().1 as f64 / f64::from(1 << 20),
            );
            assert!(neighbours || whence == Whence::PageCache || ratio >= 0.7, "{ratio}");
        }
    }
}
