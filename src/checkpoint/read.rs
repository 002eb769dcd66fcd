//! Loading: each rank verifies its share of the files and takes the pieces that it needs, however many ranks wrote
//! them.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use lockstep_record::{
    BLOCK_BYTES, CheckpointManifest, RunDir, TensorEntry, TrainingState, block_digests, read_json, tensor_digest,
};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{CheckpointError, Tensors, model_tensor, optimizer_tensor};
use crate::comm::{Comm, agree};
use crate::files;
use crate::grad::flat;
use crate::grad::layout::overlap;
use crate::mutate::{Mutation, active};

/// What a checkpoint must have been made with.
pub struct Expected<'a> {
    pub optimizer: &'a str,
    pub tokenizer_digest: &'a str,
    pub data_digest: &'a str,
    pub seed: u64,
}

/// The run's checkpoints, newest first.
pub fn candidates(run: &RunDir) -> std::io::Result<Vec<PathBuf>> {
    Ok(run.checkpoint_steps()?.into_iter().rev().map(|step| run.checkpoint(step)).collect())
}

/// Loads one checkpoint; all ranks call it and get the same verdict. After an error the tensors' content is
/// undefined, and another checkpoint may be tried.
pub fn load(
    comm: &dyn Comm,
    folder: &Path,
    expected: &Expected,
    tensors: &mut Tensors,
) -> Result<TrainingState, CheckpointError> {
    let manifest: CheckpointManifest = read_json(&folder.join("manifest.json"))
        .map_err(|error| CheckpointError::unreadable(folder, error))?;
    check_fit(&manifest, expected, tensors).map_err(|reason| CheckpointError::mismatch(folder, reason))?;
    let verified = verify_files(&manifest, folder, comm);
    agree(comm, verified)?.map_err(|reason| CheckpointError::damaged(folder, reason))?;
    let filled = fill(&manifest, folder, tensors);
    agree(comm, filled)?.map_err(|reason| CheckpointError::damaged(folder, reason))?;
    Ok(manifest.state)
}

/// Whether the checkpoint belongs to this model, data and optimizer.
fn check_fit(manifest: &CheckpointManifest, expected: &Expected, tensors: &Tensors) -> Result<(), String> {
    let state = &manifest.state;
    let facts = [
        ("optimizer (optim.kind)", state.optimizer.as_str(), expected.optimizer),
        ("tokenizer (digest)", &state.tokenizer_digest, expected.tokenizer_digest),
        ("data (digest)", &state.data_digest, expected.data_digest),
    ];
    for (what, saved, wanted) in facts {
        if saved != wanted {
            return Err(format!("its {what} is {saved}, but this run's is {wanted}: resume with what it was made with"));
        }
    }
    if state.seed != expected.seed {
        return Err(format!("its run.seed is {}, but this run's is {}", state.seed, expected.seed));
    }
    let model: HashMap<&str, &[u64]> = manifest
        .tensors
        .iter()
        .filter_map(|tensor| Some((tensor.name.strip_prefix("model/")?, tensor.shape.as_slice())))
        .collect();
    for spec in &tensors.layout.parameters {
        let wanted: Vec<u64> = spec.shape.iter().map(|&size| size as u64).collect();
        match model.get(spec.name.as_str()) {
            Some(&shape) if shape == wanted => {}
            Some(shape) => {
                return Err(format!("it is of another model: {} has shape {shape:?} there and {wanted:?} here", spec.name));
            }
            None => return Err(format!("it is of another model: it has no {}", spec.name)),
        }
    }
    match model.len() == tensors.layout.parameters.len() {
        true => Ok(()),
        false => Err(format!("it is of another model: it has {} parameters, not {}", model.len(), tensors.layout.parameters.len())),
    }
}

/// Checks length and digest of this rank's share of the files.
fn verify_files(manifest: &CheckpointManifest, folder: &Path, comm: &dyn Comm) -> Result<(), String> {
    for file in manifest.files.iter().skip(comm.rank()).step_by(comm.size()) {
        let path = plain_file(folder, &file.name)?;
        let (bytes, digest) = files::digest(&path).map_err(|error| format!("{}: {error}", file.name))?;
        if bytes != file.bytes {
            return Err(format!("{} has {bytes} bytes instead of {}: it was cut short", file.name, file.bytes));
        }
        if digest != file.blake3 {
            return Err(format!("{} does not have the digest that it was saved with: its content has changed", file.name));
        }
    }
    Ok(())
}

/// A file of the checkpoint; a manifest that points elsewhere is refused.
fn plain_file(folder: &Path, name: &str) -> Result<PathBuf, String> {
    match Path::new(name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => Ok(folder.join(name)),
        _ => Err(format!("`{name}` is not a plain file name")),
    }
}

/// Copies every element that this rank needs, and checks the parameters' digests.
fn fill(manifest: &CheckpointManifest, folder: &Path, tensors: &mut Tensors) -> Result<(), String> {
    let shards = Shards::open(manifest, folder)?;
    let files = shards.parse()?;
    let by_name: HashMap<&str, &TensorEntry> =
        manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let entry = |name: &str| by_name.get(name).copied().ok_or_else(|| format!("it has no tensor {name}"));
    let owned = tensors.optimizer.owned().to_vec();
    for (index, spec) in tensors.layout.parameters.iter().enumerate() {
        let slot = &tensors.layout.slots[index];
        let model = entry(&model_tensor(&spec.name))?;
        let parameter = &mut tensors.parameters[slot.bucket].as_mut_slice()[slot.range()];
        copy(model, &files, 0..slot.elements, parameter)?;
        if tensor_digest(block_digests(flat::bytes(parameter), BLOCK_BYTES)) != model.digest {
            return Err(format!("{} does not have the digest that it was saved with", model.name));
        }
        if active(Mutation::ForgetOptimizer) {
            continue;
        }
        let mine = overlap(&slot.range(), &owned[slot.bucket]);
        let wanted = mine.start - slot.offset..mine.end - slot.offset;
        let start = owned[slot.bucket].start;
        for (kind, name) in tensors.optimizer.state_names().iter().enumerate() {
            let state = entry(&optimizer_tensor(name, &spec.name))?;
            let place = &mut tensors.optimizer.state_mut(kind)[slot.bucket].as_mut_slice();
            copy(state, &files, wanted.clone(), &mut place[mine.start - start..mine.end - start])?;
        }
    }
    Ok(())
}

/// The checkpoint's files, mapped.
struct Shards<'a>(Vec<(&'a str, Mmap)>);

impl<'a> Shards<'a> {
    fn open(manifest: &'a CheckpointManifest, folder: &Path) -> Result<Self, String> {
        let map = |name: &'a str| {
            let file = File::open(plain_file(folder, name)?).map_err(|error| format!("{name}: {error}"))?;
            // SAFETY: a published checkpoint is never written to; a file that shrinks under us would end the
            // process with SIGBUS, as it would any reader.
            let map = unsafe { Mmap::map(&file) }.map_err(|error| format!("{name}: {error}"))?;
            Ok((name, map))
        };
        manifest.files.iter().map(|file| map(&file.name)).collect::<Result<_, _>>().map(Self)
    }

    fn parse(&self) -> Result<HashMap<&'a str, SafeTensors<'_>>, String> {
        self.0
            .iter()
            .map(|(name, map)| match SafeTensors::deserialize(map) {
                Ok(tensors) => Ok((*name, tensors)),
                Err(error) => Err(format!("{name}: {error}")),
            })
            .collect()
    }
}

/// Copies elements `wanted` of a tensor from its pieces.
fn copy(
    tensor: &TensorEntry,
    files: &HashMap<&str, SafeTensors<'_>>,
    wanted: Range<usize>,
    target: &mut [f32],
) -> Result<(), String> {
    let mut covered = 0;
    for piece in &tensor.pieces {
        let place = piece.offset as usize..(piece.offset.saturating_add(piece.length)) as usize;
        let part = overlap(&wanted, &place);
        if part.is_empty() {
            continue;
        }
        let file = files.get(piece.file.as_str()).ok_or_else(|| format!("{}: no such file", piece.file))?;
        let view = file.tensor(&piece.key).map_err(|error| format!("{}: {error}", piece.file))?;
        let bytes = view.data();
        if view.dtype() != Dtype::F32 || bytes.len() as u64 != piece.length.saturating_mul(4) {
            return Err(format!("{}: {} is not {} fp32 elements", piece.file, piece.key, piece.length));
        }
        let bytes = &bytes[(part.start - place.start) * 4..(part.end - place.start) * 4];
        let target = &mut target[part.start - wanted.start..part.end - wanted.start];
        for (value, bytes) in target.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        covered += part.len();
    }
    match covered == wanted.len() {
        true => Ok(()),
        false => Err(format!("{}: its pieces cover {covered} of {} elements", tensor.name, wanted.len())),
    }
}
