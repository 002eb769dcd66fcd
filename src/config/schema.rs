//! The configuration's types. Every key, its unit and its meaning are documented here and nowhere else:
//! `docs/configuration.md` is generated from this file's table of keys (`lockstep config schema`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A resolved configuration: what one run does. There are no defaults in code: `configs/base.yaml`, which is
/// embedded in the program, gives every key a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub run: Run,
    pub model: Model,
    pub data: Data,
    pub batch: Batch,
    pub parallel: Parallel,
    pub optim: Optim,
    pub schedule: Schedule,
    pub precision: Precision,
    pub evaluate: Evaluate,
    pub checkpoint: Checkpoint,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Name of the run: its directory is `dir/name` unless `--run-dir` says otherwise.
    pub name: String,
    /// Folder of all runs.
    pub dir: PathBuf,
    /// Seed of everything random: initial weights, sample order, dropout.
    pub seed: u64,
    /// Ask libtorch for deterministic kernels, and fail where it has none.
    pub deterministic: bool,
    /// Threads of libtorch and its libraries in each rank. It changes bits, so it is fixed here.
    pub threads_per_rank: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub kind: ModelKind,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads; they divide `width`.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Tokens in a sequence: the fixed maximum length.
    pub context: usize,
    /// Probability that dropout zeroes an element of the embeddings and of each block's two outputs.
    pub dropout: f64,
    pub positions: Positions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    Gpt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned embedding per position, as in GPT-2.
    Learned,
    /// Rotary embedding of queries and keys (Su et al. 2021), base 10,000.
    Rotary,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub kind: DataKind,
    /// A text file, or `embedded:shakespeare` for the text inside the program.
    pub path: PathBuf,
    pub tokenizer: TokenizerKind,
    /// Tokens in the vocabulary that `bpe` learns; `bytes` always has 256.
    pub vocabulary: usize,
    /// Folder where learned tokenizers are kept.
    pub cache_dir: PathBuf,
    /// Last part of the text, kept for validation.
    pub validation_fraction: f64,
    /// Train on this many samples only, from the start of the text; null for all.
    pub max_samples: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    Bytes,
    Bpe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Micro-batches in a step, over all ranks: the leaves of the ordered sum. At least the number of ranks.
    pub micro_batches: usize,
    /// Samples in a micro-batch.
    pub micro_batch_size: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parallel {
    pub strategy: StrategyKind,
    pub backend: Backend,
    pub reduction: Reduction,
    /// Capacity of a gradient bucket, in MiB. It does not change bits.
    pub bucket_mb: f64,
    /// Seconds that a collective may take before all ranks are ended with exit code 90.
    pub timeout_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyKind {
    /// One rank, no communication.
    Single,
    /// Every rank holds everything and does the whole update.
    Ddp,
    /// Optimizer state and master parameters are sharded (ZeRO stage 1).
    Zero1,
}

impl StrategyKind {
    /// As the configuration and the run record spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Ddp => "ddp",
            Self::Zero1 => "zero1",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// `mpi` under an MPI launcher, else `solo`.
    Auto,
    /// One process, no MPI.
    Solo,
    Mpi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Along one fixed tree over the micro-batches: the same bits for every number of ranks.
    Ordered,
    /// The library's own all-reduce and reduce-scatter: equal within a tolerance only.
    Native,
}

impl Reduction {
    /// As the configuration and the run record spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Native => "native",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    pub kind: OptimKind,
    /// Peak learning rate.
    pub lr: f64,
    /// AdamW's decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// AdamW's term against division by zero.
    pub eps: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Decoupled weight decay of matrices and embeddings; vectors (biases, norms) have none.
    pub weight_decay: f64,
    /// Largest global gradient norm; null for no clipping.
    pub clip_norm: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimKind {
    Adamw,
    Sgd,
}

impl OptimKind {
    /// As the configuration and the run record spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Sgd => "sgd",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    pub steps: u64,
    /// Learning rate at the last step, as a fraction of the peak (not for `constant`).
    pub final_fraction: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Constant,
}

/// Number format of forward and backward; masters and sums are always fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    Fp32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Evaluate on the validation split every this many steps and at the last one; 0 for never.
    pub every: u64,
    /// Micro-batches of the validation split that an evaluation reads.
    pub micro_batches: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Save every this many steps, and at the end; 0 for at the end only.
    pub every: u64,
    /// Checkpoints kept besides milestones; older ones are deleted once a newer one is published.
    pub keep: usize,
    /// Steps that are multiples of this are never deleted; 0 for none.
    pub milestone_every: u64,
    /// Also save the initial state, as step 0.
    pub at_start: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Write digests every this many steps and at the first and the last; 0 for none.
    pub digests_every: u64,
    /// Also digest each micro-batch's own gradient, at the same steps.
    pub local_gradients: bool,
}
