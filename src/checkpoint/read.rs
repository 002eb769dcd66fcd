//! Loading: each rank verifies its share of the files and takes the pieces that it needs, however many ranks wrote
//! them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use lockstep_record::{
    BLOCK_BYTES, CheckpointManifest, RunDir, TensorEntry, TrainingState, block_digests, tensor_digest,
};

use super::{Archive, CheckpointError, Tensors, model_tensor, optimizer_tensor};
use crate::comm::{Comm, agree};
use crate::grad::flat::{self, Flat};
use crate::grad::layout::overlap;
use crate::mutate::{Mutation, active};
use crate::precision::is_usable;

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
    let damaged = |reason| CheckpointError::damaged(folder, reason);
    let (opened, refusal) = match Archive::open(folder) {
        Ok(archive) => (Some(archive), Ok(())),
        Err(error) => (None, Err(error)),
    };
    if let Err(error @ CheckpointError::Mismatch { .. }) = refusal {
        return Err(error);
    }
    agree(comm, refusal.map_err(|error| error.reason()))?.map_err(damaged)?;
    let Some(archive) = opened else { return Err(damaged("it could not be opened".into())) };
    check_fit(archive.manifest(), expected, tensors)
        .map_err(|reason| CheckpointError::mismatch(folder, reason))?;
    agree(comm, archive.verify_share(comm.rank(), comm.size()))?.map_err(damaged)?;
    agree(comm, fill(&archive, tensors))?.map_err(damaged)?;
    Ok(archive.manifest().state.clone())
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
            return Err(format!(
                "its {what} is {saved}, but this run's is {wanted}: resume with what it was made with"
            ));
        }
    }
    if state.seed != expected.seed {
        return Err(format!("its run.seed is {}, but this run's is {}", state.seed, expected.seed));
    }
    if let Some(scale) = state.loss_scale.filter(|scale| !is_usable(scale)) {
        return Err(format!("its loss scale is {}, which no run has: take another checkpoint", scale.scale));
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
                return Err(format!(
                    "it is of another model: {} has shape {shape:?} there and {wanted:?} here",
                    spec.name
                ));
            }
            None => return Err(format!("it is of another model: it has no {}", spec.name)),
        }
    }
    let held: HashSet<&str> = manifest.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    for (parameter, kind) in
        tensors.layout.trained().zip(tensors.optimizer.state_names().first().into_iter().cycle())
    {
        let name = &tensors.layout.parameters[parameter].name;
        if !held.contains(optimizer_tensor(kind, name).as_str()) {
            return Err(format!(
                "it has no optimizer state of {name}, which was frozen: freeze it (model.freeze)"
            ));
        }
    }
    match model.len() == tensors.layout.parameters.len() {
        true => Ok(()),
        false => Err(format!(
            "it is of another model: it has {} parameters, not {}",
            model.len(),
            tensors.layout.parameters.len()
        )),
    }
}

/// Copies every element that this rank needs, and checks the parameters' digests.
fn fill(archive: &Archive, tensors: &mut Tensors) -> Result<(), String> {
    let reader = archive.reader()?;
    let by_name: HashMap<&str, &TensorEntry> =
        archive.manifest().tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let entry = |name: &str| by_name.get(name).copied().ok_or_else(|| format!("it has no tensor {name}"));
    let owned = tensors.optimizer.owned().to_vec();
    for (index, spec) in tensors.layout.parameters.iter().enumerate() {
        let slot = &tensors.layout.slots[index];
        let model = entry(&model_tensor(&spec.name))?;
        set(&mut tensors.parameters[slot.bucket], slot.range(), |parameter| {
            reader.copy(model, 0..slot.elements, parameter)?;
            match tensor_digest(block_digests(flat::bytes(parameter), BLOCK_BYTES)) == model.digest {
                true => Ok(()),
                false => Err(format!("{} does not have the digest that it was saved with", model.name)),
            }
        })?;
        if active(Mutation::ForgetOptimizer) {
            continue;
        }
        let mine = overlap(&slot.range(), &owned[slot.bucket]);
        if mine.is_empty() {
            continue;
        }
        let mut wanted = mine.start - slot.offset..mine.end - slot.offset;
        if active(Mutation::ReshardOffset) {
            wanted = 0..wanted.len();
        }
        let start = owned[slot.bucket].start;
        for (kind, name) in tensors.optimizer.state_names().iter().enumerate() {
            let state = entry(&optimizer_tensor(name, &spec.name))?;
            if active(Mutation::HalfTheOptimizer) && kind == 1 {
                continue;
            }
            let buffer = &mut tensors.optimizer.state_mut(kind)[slot.bucket];
            set(buffer, mine.start - start..mine.end - start, |place| {
                reader.copy(state, wanted.clone(), place)?;
                if active(Mutation::BitFlipOnLoad) && (index, kind, mine.start) == (0, 0, slot.offset) {
                    place[0] = f32::from_bits(place[0].to_bits() ^ (1 << 20));
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Sets some elements of a buffer, wherever it lies.
fn set(
    buffer: &mut Flat,
    range: Range<usize>,
    work: impl FnOnce(&mut [f32]) -> Result<(), String>,
) -> Result<(), String> {
    buffer.overwrite(range, work).map_err(|error| error.to_string())?
}
