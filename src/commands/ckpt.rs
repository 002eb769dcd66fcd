//! `lockstep ckpt`: looks at checkpoints without a world, a model or a configuration.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lockstep_record::{CheckpointManifest, RunDir, exit, read_json};

use crate::checkpoint::{Archive, CheckpointError, candidates};
use crate::cli;
use crate::files;
use crate::grad::flat;

/// Runs `lockstep ckpt ...`.
pub fn ckpt(command: &cli::Ckpt) -> i32 {
    let result = match command {
        cli::Ckpt::Ls { run_dir } => list(run_dir),
        cli::Ckpt::Verify { path } => verify(path),
        cli::Ckpt::Export { checkpoint, file } => export(checkpoint, file),
    };
    result.unwrap_or_else(|message| {
        eprintln!("lockstep: {message}");
        exit::NO_CHECKPOINT
    })
}

/// The checkpoint itself, or all of a run's.
fn checkpoints(path: &Path) -> Result<Vec<PathBuf>, String> {
    let run = RunDir::new(path);
    let mut found = candidates(&run).map_err(|error| format!("{}: {error}", path.display()))?;
    found.reverse();
    if found.is_empty() && path.join("manifest.json").is_file() && !run.metrics().exists() {
        found.push(path.to_owned());
    }
    match found.is_empty() {
        true => Err(format!("{} has no checkpoint", path.display())),
        false => Ok(found),
    }
}

fn list(run_dir: &Path) -> Result<i32, String> {
    println!("{:>10} {:>14} {:>6}  {:<8} path", "step", "bytes", "ranks", "strategy");
    for folder in checkpoints(run_dir)? {
        let manifest: Result<CheckpointManifest, _> = read_json(&folder.join("manifest.json"));
        match manifest {
            Ok(CheckpointManifest { state, files, .. }) => {
                let bytes: u64 = files.iter().map(|file| file.bytes).sum();
                let path = folder.display();
                println!(
                    "{:>10} {bytes:>14} {:>6}  {:<8} {path}",
                    state.step, state.world_size, state.strategy
                );
            }
            Err(error) => println!("{:>10} {error}", "?"),
        }
    }
    Ok(exit::OK)
}

fn verify(path: &Path) -> Result<i32, String> {
    let mut damaged = 0;
    for folder in checkpoints(path)? {
        match Archive::open(&folder).and_then(|archive| archive.verify()) {
            Ok(()) => println!("{}: good", folder.display()),
            Err(error) => {
                damaged += 1;
                println!("{error}");
            }
        }
    }
    Ok(if damaged == 0 { exit::OK } else { exit::NO_CHECKPOINT })
}

/// One file that other programs read: parameters under their own names.
fn export(folder: &Path, file: &Path) -> Result<i32, String> {
    let describe = |error: CheckpointError| error.to_string();
    let archive = Archive::open(folder).map_err(describe)?;
    archive.verify().map_err(describe)?;
    let mut tensors = Vec::new();
    for tensor in &archive.manifest().tensors {
        if let Some(name) = tensor.name.strip_prefix("model/") {
            let shape: Vec<usize> = tensor.shape.iter().map(|&size| size as usize).collect();
            tensors.push((name.to_owned(), shape, archive.read(tensor).map_err(describe)?));
        }
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), flat::bytes(values));
        view.map(|view| (name, view)).map_err(|error| error.to_string())
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())?;
    files::replace(file, &bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("{}: {} tensors of step {}", file.display(), tensors.len(), archive.manifest().state.step);
    Ok(exit::OK)
}
