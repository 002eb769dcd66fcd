//! `checkpoints/step-*/manifest.json`: which file holds which elements of which tensor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Real};

/// A checkpoint exists once its folder has this file: it is written last, and the folder gets its final name
/// after that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// [`crate::RECORD_VERSION`] of the writer.
    pub record_version: u32,
    pub state: TrainingState,
    pub files: Vec<CheckpointFile>,
    /// `model/wte.weight`, `optimizer/exp_avg/wte.weight`, ...: sorted by name.
    pub tensors: Vec<TensorEntry>,
}

/// What a resume needs besides tensors. Learning rate, sample order and random numbers are pure functions of
/// the step and the configuration, so there is nothing of theirs to save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingState {
    pub step: u64,
    pub seed: u64,
    /// Samples consumed since the start of training: the sampler's position.
    pub samples_seen: u64,
    pub optimizer: String,
    pub tokenizer_digest: String,
    pub data_digest: String,
    /// How it was written; a reader need not match either.
    pub world_size: u32,
    pub strategy: String,
    /// By parameter: updates that it was left out of, because no micro-batch of the step used it or because the step was
    /// skipped. Its optimizer state has seen so many steps fewer. Parameters with 0 are not listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub updates_left_out: BTreeMap<String, u64>,
    /// Steps up to this one that were skipped one after the other, because the gradient was not finite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_in_a_row: u64,
    /// Where the loss is scaled: what the next step begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

/// A dynamic loss scale between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the next step's loss is multiplied by before backward.
    pub scale: Real,
    /// Steps with a finite gradient since the scale last changed: after enough of them it grows.
    pub finite_steps: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// A plain file name inside the checkpoint's folder.
    pub name: String,
    pub bytes: u64,
    /// BLAKE3 of the file, hexadecimal.
    pub blake3: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    pub name: String,
    /// As safetensors spells it, for example `F32`.
    pub dtype: String,
    pub shape: Vec<u64>,
    /// [`crate::tensor_digest`] over the whole tensor.
    pub digest: Digest,
    /// In order of offset, without gap or overlap.
    pub pieces: Vec<Piece>,
}

/// Elements `offset..offset + length` of the flattened tensor: one entry of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub file: String,
    /// Name of the entry in that file.
    pub key: String,
    /// In elements.
    pub offset: u64,
    /// In elements.
    pub length: u64,
}
