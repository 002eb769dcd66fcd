//! Damaged and hostile files for every reader of the trainer: configurations, site files, checkpoints. None may panic or
//! take memory or time out of all proportion. `harness/tests/fuzz.rs` does the same for the harness's; `make fuzz` runs
//! many cases of both.

#[path = "../harness/tests/fuzz/mutate.rs"]
mod mutate;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep::checkpoint::Archive;
use lockstep::jobs::Site;
use lockstep_record::{
    BLOCK_BYTES, CheckpointFile, CheckpointManifest, Piece, RECORD_VERSION, TensorEntry, TrainingState,
    block_digests, tensor_digest,
};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use safetensors::tensor::{Dtype, TensorView};

const CASES: u32 = 300;
/// The machine may be slow, and stand still for minutes; what is looked for would take for ever.
const TIME_MAX: Duration = Duration::from_secs(1200);

/// Tries mutations of the seeds; `read` may refuse them, but not panic. The seeds must be accepted.
fn fuzz(name: &str, seeds: &[Vec<u8>], read: impl Fn(&[u8]) -> bool) {
    for seed in seeds {
        assert!(read(seed), "{name}: mutations start from files that are accepted");
    }
    let cases =
        std::env::var("LOCKSTEP_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let inputs = (any::<Index>(), mutate::mutations());
    TestRunner::new(config)
        .run(&inputs, |(seed, mutations)| {
            let bytes = mutate::mutate(&seeds[seed.index(seeds.len())], &mutations);
            let begin = Instant::now();
            read(&bytes);
            prop_assert!(begin.elapsed() < TIME_MAX);
            Ok(())
        })
        .unwrap_or_else(|problem| panic!("{name}: {problem}"));
    eprintln!("{name}: {cases} files");
}

fn shipped(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let yaml = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    yaml.map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn configurations() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.yaml");
    fuzz("configurations", &shipped("configs"), |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let loaded = lockstep::config::load(std::slice::from_ref(&path), &[], &|_| None);
        if let Ok(text) = std::str::from_utf8(bytes) {
            let sets: Vec<String> = text.lines().take(8).map(|line| line.replacen(": ", "=", 1)).collect();
            let _ = lockstep::config::load(&[], &sets, &|_| None);
        }
        match loaded {
            Ok(resolved) => {
                let _ = (resolved.validate(), resolved.validate_world(3));
                true
            }
            Err(error) => error.to_string().is_empty(),
        }
    });
}

#[test]
fn site_files() {
    let seeds = [shipped("slurm"), shipped("pbs")].concat();
    fuzz("site files", &seeds, |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| Site::parse(text).is_ok())
    });
}

/// A checkpoint of two tensors in two files, without the trainer that would have made it.
struct Checkpoint {
    folder: tempfile::TempDir,
    manifest: CheckpointManifest,
}

impl Checkpoint {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..3000).map(|index| index as f32 * 0.37).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (mut files, mut pieces) = (Vec::new(), HashMap::<&str, Vec<Piece>>::new());
        for (index, part) in [0..2048usize, 2048..3000].into_iter().enumerate() {
            let file = format!("shard-{index}.safetensors");
            let data = &bytes[part.start * 4..part.end * 4];
            let views = ["model/w", "optimizer/exp_avg/w"].map(|name| {
                let key = format!("{name}@{}", part.start);
                let (offset, length) = (part.start as u64, part.len() as u64);
                let piece = Piece { file: file.clone(), key: key.clone(), offset, length };
                pieces.entry(name).or_default().push(piece);
                (key, TensorView::new(Dtype::F32, vec![part.len()], data).unwrap())
            });
            std::fs::write(folder.path().join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
            files.push(CheckpointFile { name: file, bytes: 0, blake3: String::new() });
        }
        let digest = tensor_digest(block_digests(&bytes, BLOCK_BYTES));
        let tensors = pieces.into_iter().map(|(name, pieces)| TensorEntry {
            name: name.into(),
            dtype: "F32".into(),
            shape: vec![3000],
            digest,
            pieces,
        });
        let state = TrainingState {
            step: 1,
            seed: 1,
            samples_seen: 1,
            optimizer: "adamw".into(),
            tokenizer_digest: "t".into(),
            data_digest: "d".into(),
            world_size: 2,
            strategy: "zero1".into(),
            updates_left_out: Default::default(),
            skipped_in_a_row: 0,
            loss_scale: None,
        };
        let tensors = tensors.collect();
        let mut checkpoint = Self {
            folder,
            manifest: CheckpointManifest { record_version: RECORD_VERSION, state, files, tensors },
        };
        checkpoint.publish();
        checkpoint
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the manifest, with sizes and digests of the files as they are now.
    fn publish(&mut self) {
        for index in 0..self.manifest.files.len() {
            let (bytes, blake3) =
                lockstep::files::digest(&self.path(&self.manifest.files[index].name)).unwrap();
            (self.manifest.files[index].bytes, self.manifest.files[index].blake3) = (bytes, blake3);
        }
        std::fs::write(self.path("manifest.json"), serde_json::to_vec(&self.manifest).unwrap()).unwrap();
    }

    /// Reads all of it, as a resume and `ckpt verify` do.
    fn read(&self) -> bool {
        let Ok(archive) = Archive::open(self.folder.path()) else { return false };
        let verified = archive.verify().is_ok();
        let tensors = archive.manifest().tensors.clone();
        tensors.iter().all(|tensor| archive.read(tensor).is_ok()) && verified
    }
}

#[test]
fn checkpoint_manifests() {
    let checkpoint = Checkpoint::new();
    let path = checkpoint.path("manifest.json");
    fuzz("checkpoint manifests", &[std::fs::read(&path).unwrap()], |bytes| {
        std::fs::write(&path, bytes).unwrap();
        checkpoint.read()
    });
}

/// Headers whose digests are right: somebody meant them to be as they are.
#[test]
fn checkpoint_headers() {
    let checkpoint = std::cell::RefCell::new(Checkpoint::new());
    let path = checkpoint.borrow().path("shard-1.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (header, data) = (whole[8..8 + length].to_vec(), &whole[8 + length..]);
    fuzz("checkpoint headers", std::slice::from_ref(&header), |bytes| {
        std::fs::write(&path, [&(bytes.len() as u64).to_le_bytes(), bytes, data].concat()).unwrap();
        checkpoint.borrow_mut().publish();
        checkpoint.borrow().read()
    });
}

/// What the safetensors crate alone would add up beyond the largest integer.
#[test]
fn offsets_that_overflow_are_refused() {
    let mut checkpoint = Checkpoint::new();
    let part = 1u64 << 61;
    let entry = |index: u64| {
        let (begin, end) = (index * part, (index + 1).checked_mul(part).map_or(u64::MAX, |end| end));
        format!(r#""{index}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
    };
    let header = format!("{{{}}}", (0..8).map(entry).collect::<Vec<_>>().join(","));
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(checkpoint.path("shard-1.safetensors"), bytes).unwrap();
    checkpoint.publish();
    let archive = Archive::open(checkpoint.folder.path()).unwrap();
    let problem = archive.read(&archive.manifest().tensors[0]).unwrap_err().to_string();
    assert!(problem.contains("claims bytes past the end of the file"), "{problem}");
}

#[test]
fn a_link_in_a_checkpoint_is_not_followed() {
    let checkpoint = Checkpoint::new();
    let shard = checkpoint.path("shard-1.safetensors");
    std::fs::rename(&shard, checkpoint.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(checkpoint.path("elsewhere"), &shard).unwrap();
    let problem = Archive::open(checkpoint.folder.path()).err().unwrap().to_string();
    assert!(problem.contains("shard-1.safetensors: a symbolic link, which is refused"), "{problem}");
}
