//! Builds run directories as a trainer would leave them, so that tests can spoil one thing at a time.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use lockstep_record::{
    BLOCK_BYTES, CheckpointFile, CheckpointManifest, DataInfo, DigestLine, Manifest, ModelInfo, Phase, Piece,
    Program, RECORD_VERSION, RunDir, SampleLine, Segment, StepLine, TensorEntry, TensorInfo, TrainingState,
    block_digests, tensor_digest,
};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

pub const STEPS: u64 = 5;
pub const MODEL: [(&str, &[u64]); 2] = [("wte.weight", &[70, 50]), ("wte.bias", &[50])];

/// A run in memory: change what you like, then [`Run::write`] it.
#[derive(Clone)]
pub struct Run {
    pub manifest: Manifest,
    pub metrics: Vec<StepLine>,
    pub samples: Vec<SampleLine>,
    pub digests: Vec<DigestLine>,
    /// Of the last step: name and elements.
    pub tensors: Vec<(String, Vec<f32>)>,
    pub checkpoint_step: u64,
    /// Files that the checkpoint's tensors are spread over.
    pub shards: usize,
}

/// Numbers that look like a training's: a pure function of what they are for.
fn number(salt: u64) -> f64 {
    let mixed =
        (salt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    f64::from((mixed >> 40) as u32) / f64::from(1u32 << 24)
}

impl Run {
    /// The same result on any number of ranks.
    pub fn new(world_size: u32) -> Self {
        let mut tensors = Vec::new();
        for prefix in ["model/", "optimizer/exp_avg/"] {
            for (index, (name, shape)) in MODEL.iter().enumerate() {
                let values = (0..shape.iter().product()).map(|i| number(i * 7 + index as u64) as f32 - 0.5);
                tensors.push((format!("{prefix}{name}"), values.collect()));
            }
        }
        Self {
            manifest: manifest(world_size),
            metrics: (1..=STEPS).map(metrics).collect(),
            samples: (1..=STEPS)
                .map(|step| SampleLine {
                    step,
                    micro_batches: vec![vec![step * 4, step * 4 + 1], vec![9, step]],
                    masks: Vec::new(),
                })
                .collect(),
            digests: (0..=STEPS).flat_map(|step| digests(step, world_size)).collect(),
            tensors,
            checkpoint_step: STEPS,
            shards: world_size as usize,
        }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.iter_mut().find(|(known, _)| known == name).unwrap().1
    }

    pub fn digest(&mut self, step: u64, phase: Phase, tensor: &str) -> &mut DigestLine {
        let wanted =
            |line: &&mut DigestLine| line.step == step && line.phase == phase && line.tensor == tensor;
        self.digests.iter_mut().find(wanted).unwrap()
    }

    pub fn write(&self, path: &Path) -> RunDir {
        let run = RunDir::new(path);
        std::fs::create_dir_all(run.checkpoint(self.checkpoint_step)).unwrap();
        std::fs::write(run.manifest(), serde_json::to_string_pretty(&self.manifest).unwrap()).unwrap();
        write_lines(&run.metrics(), &self.metrics);
        write_lines(&run.samples(), &self.samples);
        write_lines(&run.digests(), &self.digests);
        write_checkpoint(&run.checkpoint(self.checkpoint_step), self);
        run
    }
}

pub fn write_lines<T: Serialize>(path: &Path, lines: &[T]) {
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(path, text).unwrap();
}

fn manifest(world_size: u32) -> Manifest {
    let tensors = MODEL.iter().map(|(name, shape)| TensorInfo {
        name: (*name).into(),
        shape: shape.to_vec(),
        dtype: "F32".into(),
    });
    Manifest {
        record_version: RECORD_VERSION,
        program: Program { name: "test".into(), version: "1".into(), git_commit: "0".into() },
        seed: 1,
        config: serde_json::json!({
            "run": {"name": format!("n{world_size}"), "seed": 1}, "optim": {"lr": 0.001, "kind": "adamw"},
            "parallel": {"strategy": if world_size == 1 { "single" } else { "ddp" }},
        }),
        model: ModelInfo { parameters: 3550, tensors: tensors.collect() },
        data: DataInfo {
            digest: "d".into(),
            tokenizer: "bytes".into(),
            tokenizer_digest: "t".into(),
            vocabulary: 256,
            train_samples: 480,
            validation_samples: 10,
        },
        segments: vec![segment(0, world_size, if world_size == 1 { "single" } else { "ddp" })],
    }
}

pub fn segment(from_step: u64, world_size: u32, strategy: &str) -> Segment {
    Segment {
        from_step,
        started_unix_s: 1,
        world_size,
        strategy: strategy.into(),
        reduction: "ordered".into(),
        compression: None,
        mutation: None,
        perturbation: None,
        backend: "mpi".into(),
        nccl: None,
        buckets: None,
        threads_per_rank: 1,
        cpu_capability: "AVX2".into(),
        versions: BTreeMap::from([("libtorch".into(), "2.13.0".into())]),
        container_digest: None,
        ranks: Vec::new(),
        ended: None,
    }
}

fn metrics(step: u64) -> StepLine {
    let micro = [0, 1].map(|i| f64::from(number(step * 2 + i) as f32).into());
    StepLine {
        step,
        epoch: 0,
        loss: (5.0 - 0.1 * step as f64).into(),
        micro_batch_losses: micro.to_vec(),
        loss_terms: BTreeMap::new(),
        gradient_norm: (number(step) + 0.5).into(),
        parameter_norm: (10.0 + number(step)).into(),
        clip_coefficient: 0.75.into(),
        learning_rate: (1e-3 / step as f64).into(),
        validation_loss: (step == STEPS).then(|| 4.5.into()),
        validation_loss_terms: BTreeMap::new(),
        skipped_for: None,
        unused_parameters: 0,
        loss_scale: None,
        tokens: 2048,
        tokens_per_second: 1.0.into(),
        seconds: Default::default(),
        resident_bytes_max: 1,
        bytes_sent: 0,
    }
}

fn digests(step: u64, world_size: u32) -> Vec<DigestLine> {
    let phases: &[Phase] = match step {
        0 => &[Phase::Parameters],
        _ => &[Phase::LocalGradient, Phase::ReducedGradient, Phase::Optimizer, Phase::Parameters],
    };
    let line = |phase: Phase, name: &str, salt: u64| DigestLine {
        step,
        phase,
        tensor: if phase == Phase::Optimizer { format!("exp_avg/{name}") } else { name.into() },
        micro_batch: (phase == Phase::LocalGradient).then_some(1),
        digest: tensor_digest(block_digests(format!("{step} {phase} {name}").as_bytes(), 8)),
        norm: number(step * 10 + salt).into(),
        sketch: None,
        ranks: vec![if phase == Phase::LocalGradient { (0, 0) } else { (0, world_size - 1) }],
        sharded: false,
    };
    let names = MODEL.iter().map(|(name, _)| *name).enumerate();
    phases.iter().flat_map(|&phase| names.clone().map(move |(i, name)| line(phase, name, i as u64))).collect()
}

fn shape_of(name: &str) -> Vec<u64> {
    MODEL.iter().find(|(known, _)| name.ends_with(known)).unwrap().1.to_vec()
}

/// Cuts every tensor into as many pieces as there are shards, each in a file of its own.
fn write_checkpoint(folder: &Path, run: &Run) {
    let file_name = |shard: usize| format!("shard-{shard:05}-of-{:05}.safetensors", run.shards);
    let mut contents: Vec<HashMap<String, Vec<u8>>> = vec![HashMap::new(); run.shards];
    let mut entries = Vec::new();
    for (name, values) in &run.tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut pieces = Vec::new();
        let size = values.len().div_ceil(run.shards);
        for (shard, piece) in values.chunks(size).enumerate() {
            let offset = (shard * size) as u64;
            pieces.push(Piece {
                file: file_name(shard),
                key: name.clone(),
                offset,
                length: piece.len() as u64,
            });
            contents[shard]
                .insert(name.clone(), piece.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
        let digest = tensor_digest(block_digests(&bytes, BLOCK_BYTES));
        entries.push(TensorEntry {
            name: name.clone(),
            dtype: "F32".into(),
            shape: shape_of(name),
            digest,
            pieces,
        });
    }
    let mut files = Vec::new();
    for (shard, tensors) in contents.iter().enumerate() {
        let views = tensors
            .iter()
            .map(|(name, bytes)| (name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join(file_name(shard)), &bytes).unwrap();
        files.push(CheckpointFile {
            name: file_name(shard),
            bytes: bytes.len() as u64,
            blake3: String::new(),
        });
    }
    let state = TrainingState {
        step: run.checkpoint_step,
        seed: 1,
        samples_seen: 20,
        optimizer: "adamw".into(),
        tokenizer_digest: "t".into(),
        data_digest: "d".into(),
        world_size: run.shards as u32,
        strategy: "ddp".into(),
        updates_left_out: Default::default(),
        skipped_in_a_row: 0,
        loss_scale: None,
    };
    write_manifest(
        folder,
        &CheckpointManifest { record_version: RECORD_VERSION, state, files, tensors: entries },
    );
}

pub fn write_manifest(folder: &Path, manifest: &CheckpointManifest) {
    std::fs::write(folder.join("manifest.json"), serde_json::to_string(manifest).unwrap()).unwrap();
}

pub fn read_manifest(folder: &Path) -> CheckpointManifest {
    lockstep_record::read_json(&folder.join("manifest.json")).unwrap()
}

/// A golden run on one rank and a candidate on three, ready to be spoiled.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub golden: Run,
    pub candidate: Run,
}

impl Bench {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), golden: Run::new(1), candidate: Run::new(3) }
    }

    pub fn paths(&self) -> [PathBuf; 2] {
        ["golden", "candidate"].map(|name| self.folder.path().join(name))
    }

    pub fn write(&self) -> [RunDir; 2] {
        let [golden, candidate] = self.paths();
        [self.golden.write(&golden), self.candidate.write(&candidate)]
    }

    /// Runs the real program on the two; exit code, stdout and stderr.
    pub fn compare(&self, options: &[&str]) -> (i32, String, String) {
        harness(
            &[&["compare"], &self.paths().each_ref().map(|path| path.to_str().unwrap())[..], options]
                .concat(),
        )
    }
}

pub fn harness(arguments: &[&str]) -> (i32, String, String) {
    let mut command = assert_cmd::Command::cargo_bin("lockstep-harness").unwrap();
    let output = command.args(arguments).timeout(std::time::Duration::from_secs(60)).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Sends a signal by its name. The shell's `kill` is everywhere; the program of that name is not.
pub fn signal(child: &std::process::Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    let status = std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(status.success(), "{kill}");
}
