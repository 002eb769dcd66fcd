//! Saving: each rank its file, then one manifest and one rename by rank 0.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use lockstep_record::{
    BLOCK_BYTES, CheckpointFile, CheckpointManifest, Digest, Piece, RECORD_VERSION, RunDir, TensorEntry,
    TrainingState, block_digests, tensor_digest,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::{CheckpointError, Tensors, model_tensor, optimizer_tensor, planted, surplus};
use crate::comm::{Comm, agree};
use crate::config::schema::Checkpoint;
use crate::files;
use crate::grad::flat;
use crate::mutate::{Mutation, active};
use crate::torch::TorchError;

/// One piece as its writer reports it to rank 0.
#[derive(Serialize, Deserialize)]
struct Written {
    tensor: String,
    shape: Vec<u64>,
    piece: Piece,
    blocks: Vec<Digest>,
}

/// Saves the state after `state.step` steps; all ranks call it. The checkpoint appears under its name only when
/// every byte of it is on disk. Deletes what `settings` no longer keeps.
pub fn save(
    comm: &dyn Comm,
    run: &RunDir,
    tensors: &Tensors,
    shards: &[Vec<Range<usize>>],
    state: &TrainingState,
    settings: &Checkpoint,
) -> Result<(), CheckpointError> {
    let target = run.checkpoint(state.step);
    let partial = run.checkpoints().join(format!(".step-{:08}.partial", state.step));
    let failed = |reason| CheckpointError::Save { path: target.clone(), reason };
    let on_rank_0 = |act: &dyn Fn() -> Result<(), String>| if comm.rank() == 0 { act() } else { Ok(()) };

    agree(comm, on_rank_0(&|| fresh_folder(&partial)))?.map_err(failed)?;
    let mine: Vec<Range<usize>> = shards.iter().map(|ranks| ranks[comm.rank()].clone()).collect();
    let name = format!("shard-{:05}-of-{:05}.safetensors", comm.rank(), comm.size());
    let written = write_shard(&partial, &name, tensors, &mine);
    let report = written.as_ref().map(|report| serde_json::to_vec(report).unwrap_or_default());
    let failure = report.as_ref().map(|_| ()).map_err(|error| (*error).clone());
    agree(comm, failure)?.map_err(failed)?;
    let reports = comm.all_gather_bytes("gather of pieces", &report.unwrap_or_default())?;
    agree(comm, on_rank_0(&|| publish(&partial, &target, &reports, state)))?.map_err(failed)?;
    agree(comm, on_rank_0(&|| prune(run, settings)))?.map_err(failed)
}

fn fresh_folder(folder: &Path) -> Result<(), String> {
    let remove = fs::remove_dir_all(folder);
    if let Err(error) = remove
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(format!("{}: {error}", folder.display()));
    }
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

/// Writes this rank's file and returns what is in it.
fn write_shard(
    folder: &Path,
    name: &str,
    tensors: &Tensors,
    mine: &[Range<usize>],
) -> Result<(CheckpointFile, Vec<Written>), String> {
    let path = folder.join(name);
    let (entries, written) = entries(name, tensors, mine).map_err(|error| error.to_string())?;
    let views = entries.iter().map(|(key, values)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], flat::bytes(values));
        view.map(|view| (key, view)).map_err(|error| error.to_string())
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    safetensors::serialize_to_file(views, None, &path).map_err(|error| format!("{name}: {error}"))?;
    let io = |error: std::io::Error| format!("{name}: {error}");
    File::open(&path).and_then(|file| file.sync_all()).map_err(io)?;
    let (bytes, blake3) = files::digest(&path).map_err(io)?;
    Ok((CheckpointFile { name: name.to_owned(), bytes, blake3 }, written))
}

/// From a device they are copies.
type Entries<'a> = Vec<(String, Cow<'a, [f32]>)>;

fn entries<'a>(
    file: &str,
    tensors: &'a Tensors,
    mine: &[Range<usize>],
) -> Result<(Entries<'a>, Vec<Written>), TorchError> {
    let (mut entries, mut written) = (Vec::new(), Vec::new());
    let owned = tensors.optimizer.owned();
    for part in tensors.layout.parts(mine) {
        let spec = &tensors.layout.parameters[part.parameter];
        let offset = if active(Mutation::PieceOffset) { 0 } else { part.offset };
        let mut add = |tensor: String, values: Cow<'a, [f32]>| {
            let key = format!("{tensor}@{offset}");
            written.push(Written {
                tensor,
                shape: spec.shape.iter().map(|&size| size as u64).collect(),
                piece: Piece {
                    file: file.to_owned(),
                    key: key.clone(),
                    offset: offset as u64,
                    length: values.len() as u64,
                },
                blocks: block_digests(flat::bytes(&values), BLOCK_BYTES),
            });
            entries.push((key, values));
        };
        let values = tensors.parameters[part.bucket].read(part.range.clone())?;
        add(model_tensor(planted::name(&spec.name)), planted::values(values));
        if tensors.layout.buckets[part.bucket].frozen {
            continue;
        }
        let start = owned[part.bucket].start;
        for (index, kind) in tensors.optimizer.state_names().iter().enumerate() {
            let index = if active(Mutation::WrongStateSaved) { 0 } else { index };
            let state = &tensors.optimizer.state(index)[part.bucket];
            let values = state.read(part.range.start - start..part.range.end - start)?;
            add(optimizer_tensor(kind, &spec.name), values);
        }
    }
    Ok((entries, written))
}

/// Writes the manifest and gives the folder its name.
fn publish(partial: &Path, target: &Path, reports: &[Vec<u8>], state: &TrainingState) -> Result<(), String> {
    let manifest = manifest(reports, state)?;
    let io = |error: std::io::Error| error.to_string();
    files::write_synced(&partial.join("manifest.json"), &files::pretty_json(&manifest)).map_err(io)?;
    files::sync_folder(partial).map_err(io)?;
    let replaced = replaced_name(target);
    if target.exists() {
        fs::rename(target, &replaced).map_err(io)?;
    }
    fs::rename(partial, target).map_err(io)?;
    files::sync_folder(target.parent().unwrap_or(target)).map_err(io)?;
    if replaced.exists() {
        fs::remove_dir_all(&replaced).map_err(io)?;
    }
    planted::damage(target, &manifest).map_err(io)
}

/// A damaged checkpoint of the same step moves here while its successor is published.
fn replaced_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.replaced"))
}

fn manifest(reports: &[Vec<u8>], state: &TrainingState) -> Result<CheckpointManifest, String> {
    let mut files = Vec::new();
    let mut tensors: BTreeMap<String, Vec<Written>> = BTreeMap::new();
    for report in reports {
        let (file, written): (CheckpointFile, Vec<Written>) =
            serde_json::from_slice(report).map_err(|error| error.to_string())?;
        files.push(file);
        for piece in written {
            tensors.entry(piece.tensor.clone()).or_default().push(piece);
        }
    }
    let entry = |(name, mut written): (String, Vec<Written>)| {
        written.sort_by_key(|written| written.piece.offset);
        TensorEntry {
            name,
            dtype: "F32".into(),
            shape: written[0].shape.clone(),
            digest: tensor_digest(written.iter().flat_map(|written| written.blocks.iter().copied())),
            pieces: written.into_iter().map(|written| written.piece).collect(),
        }
    };
    let tensors = tensors.into_iter().map(entry).collect();
    Ok(CheckpointManifest { record_version: RECORD_VERSION, state: state.clone(), files, tensors })
}

fn prune(run: &RunDir, settings: &Checkpoint) -> Result<(), String> {
    let steps = run.checkpoint_steps().map_err(|error| error.to_string())?;
    for step in surplus(&steps, settings) {
        let folder = run.checkpoint(step);
        fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    Ok(())
}
