//! `manifest.json`: what ran, where, and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a run was. Everything that may legitimately differ between two runs with the same result (world size,
/// strategy, hosts, versions) is in its segments; the rest must agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`crate::RECORD_VERSION`] of the writer.
    pub record_version: u32,
    pub program: Program,
    pub seed: u64,
    /// The resolved configuration as a tree.
    pub config: serde_json::Value,
    pub model: ModelInfo,
    pub data: DataInfo,
    /// One per start or resume, oldest first.
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub version: String,
    /// Commit that the program was built from; `-dirty` is appended if the tree had changes.
    pub git_commit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub parameters: u64,
    pub tensors: Vec<TensorInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Vec<u64>,
    /// As safetensors spells it, for example `F32`.
    pub dtype: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// BLAKE3 of the source bytes, hexadecimal.
    pub digest: String,
    pub tokenizer: String,
    /// BLAKE3 of the tokenizer's definition, hexadecimal.
    pub tokenizer_digest: String,
    pub vocabulary: u64,
    pub train_samples: u64,
    pub validation_samples: u64,
}

/// One execution: from a start or a resume to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The state that it started from: 0, or the step of the checkpoint.
    pub from_step: u64,
    pub started_unix_s: u64,
    pub world_size: u32,
    /// `single`, `ddp`, `zero1`, or a name that a foreign trainer chose.
    pub strategy: String,
    /// `ordered` or `native`.
    pub reduction: String,
    /// `bf16`, `fp16`, `powersgd-4`, ...: bits then depend on `world_size`. Absent where gradients travelled whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// The bug that was planted in this execution (`--mutate`); absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<String>,
    /// `solo`, `mpi`, `nccl`, `gloo`, ...
    pub backend: String,
    pub threads_per_rank: u32,
    /// Instruction set that the kernels use, for example `AVX512`: it moves bits.
    pub cpu_capability: String,
    /// Versions of the libraries that bits depend on.
    pub versions: BTreeMap<String, String>,
    /// Digest of the container image that it ran in, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_digest: Option<String>,
    pub ranks: Vec<RankInfo>,
    /// Absent while the run goes on, or when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankInfo {
    pub rank: u32,
    pub host: String,
    /// Bytes of optimizer state that this rank holds.
    pub optimizer_bytes: u64,
    /// Bytes of fp32 master parameters that this rank updates.
    pub master_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub step: u64,
    pub outcome: Outcome,
    pub unix_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All steps of the schedule were done.
    Finished,
    /// `--stop-after` was reached.
    Stopped,
    /// A signal asked for it; a checkpoint was saved.
    Preempted,
}
