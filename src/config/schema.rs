//! The configuration's types. Every key, its unit, its bounds and its meaning are written here and nowhere
//! else: the table of keys ([`super::keys`]), the checks of bounds and `docs/configuration.md` are all
//! derived from the doc comments and the `schemars` attributes in this file, so each public item here needs a
//! comment.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A resolved configuration: what one run does. There are no defaults in code: `configs/base.yaml`, which is
/// embedded in the program, gives every key a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub run: Run,
    pub model: Model,
    pub data: Data,
    pub batch: Batch,
    pub parallel: Parallel,
    pub optim: Optim,
    pub schedule: Schedule,
    /// Number format of forward and backward: matrix products, convolutions and attention run in it, by the lists of
    /// `torch.autocast`. Parameters and the optimizer's state are fp32 whatever it is.
    pub precision: Precision,
    /// Number format in which the gradients of micro-batches are added up and travel. In 16 bits each of them and each of the
    /// tree's sums is rounded, whoever computes it: the result is coarser, but the same for every number of ranks. It
    /// needs `parallel.reduction: ordered`.
    pub reduce_dtype: Precision,
    pub scaler: Scaler,
    pub evaluate: Evaluate,
    pub checkpoint: Checkpoint,
    pub record: Record,
}

/// Name, place, seed and threads of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Name of the run, one plain path component: its directory is `run.dir/run.name` unless `--run-dir` says
    /// otherwise.
    pub name: String,
    /// Folder of all runs.
    pub dir: PathBuf,
    /// Seed of everything random: initial weights, sample order, dropout.
    #[schemars(range(max = 9_223_372_036_854_775_807i64))]
    pub seed: u64,
    /// Ask libtorch for deterministic kernels, and fail where it has none.
    pub deterministic: bool,
    /// What the ranks compute on. GPUs round otherwise than CPUs, so it changes bits.
    pub device: Device,
    /// Threads of libtorch and its libraries in each rank. It changes bits, so it is fixed here.
    #[schemars(range(min = 1, max = 1024))]
    pub threads_per_rank: usize,
}

/// What the ranks compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// `cuda` where libtorch has CUDA and the process sees a GPU, else `cpu`.
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA GPUs, one a rank.
    Cuda,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Architecture.
    pub kind: ModelKind,
    /// Transformer blocks; for `resnet`: residual blocks in each stage.
    #[schemars(range(min = 1, max = 65_536))]
    pub layers: usize,
    /// Attention heads; they divide `model.width` (not for `resnet`).
    #[schemars(range(min = 1, max = 65_536))]
    pub heads: usize,
    /// Width of the residual stream; for `resnet`: channels of the first stage, a multiple of 8, doubled at each
    /// further one.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub width: usize,
    /// Stages of the `resnet`, each after the first at half the resolution of the one before.
    #[schemars(range(min = 1, max = 6))]
    pub stages: usize,
    /// Tokens in a sequence: the fixed maximum length (`gpt` only).
    #[schemars(range(min = 1, max = 1_048_576))]
    pub context: usize,
    /// Turns in a sequence, each of an observation, a plan and a chunk of actions (`vla` only).
    #[schemars(range(min = 1, max = 64))]
    pub turns: usize,
    /// Actions in a chunk: control steps that are predicted at once (`vla` only).
    #[schemars(range(min = 1, max = 256))]
    pub chunk: usize,
    /// What the autoregressive loss, the mean cross-entropy of the plan's tokens, is multiplied by in the sum (`vla` only).
    #[schemars(range(min = 0, max = 1e6))]
    pub ar_weight: f64,
    /// What the flow-matching loss, the mean squared error of the velocity, is multiplied by in the sum (`vla` only).
    #[schemars(range(min = 0, max = 1e6))]
    pub fm_weight: f64,
    /// Probability that dropout zeroes an element of the embeddings and of each block's two outputs; for `resnet`: of
    /// the pooled features.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub dropout: f64,
    /// Probability that a micro-batch skips a transformer block in training (LayerDrop: Fan et al. 2019), each block by
    /// itself; not for `resnet`. Skipped blocks get no gradient: see `parallel.unused_parameters`.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub layer_drop: f64,
    /// How the model knows the order of tokens (`vla`: `learned` only).
    pub positions: Positions,
    /// Parameters that are not trained: names, what names begin with up to a dot (`h.0`), or patterns in which `*`
    /// stands for anything (`*.bias`).
    pub freeze: Vec<String>,
}

/// Architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Decoder-only transformer with GPT-2's parameter names, pre-norm blocks and tied embeddings.
    Gpt,
    /// Residual network for images of 32 × 32 (He et al. 2016, section 4.2) with GroupNorm and torchvision's
    /// parameter names.
    Resnet,
    /// Policy for an arm with two losses: a transformer that predicts tokens and, by flow matching, chunks of continuous
    /// actions, as vision-language-action models do (π0: Black et al. 2024), with measurements in place of images.
    Vla,
}

/// How the model knows the order of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned embedding per position, as in GPT-2.
    Learned,
    /// Rotary embedding of queries and keys (Su et al. 2021), base 10,000; heads of even width only.
    Rotary,
}

/// What it is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What the data are.
    pub kind: DataKind,
    /// For `text`: a file, or `embedded:shakespeare` for the text inside the program. For `images`: a folder with
    /// CIFAR-10's binary version, or `embedded:shapes` for a set that the program draws. For `arm`: `embedded:reach`.
    pub path: PathBuf,
    /// How text becomes tokens (`text` only).
    pub tokenizer: TokenizerKind,
    /// Tokens in the vocabulary that `bpe` learns, from 257 to 65536; `bytes` always has 256.
    pub vocabulary: usize,
    /// Folder where learned tokenizers are kept.
    pub cache_dir: PathBuf,
    /// Fraction of the tokens at the end of the text, of the drawn images or of the episodes that is kept for validation. CIFAR-10
    /// has a test set for it, unless this is 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub validation_fraction: f64,
    /// Train on this many samples only, from the start of the data; null for all.
    #[schemars(range(min = 1))]
    pub max_samples: Option<u64>,
    /// Shift each training image by up to 4 pixels and mirror half of them, differently in every epoch (`images` only).
    pub augment: bool,
}

/// What the data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// One text file, cut into samples of `model.context` tokens.
    Text,
    /// Images of 32 × 32 pixels in three colours, each of one class.
    Images,
    /// Episodes of an arm that the program simulates: observations and plans as tokens, and actions.
    Arm,
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// One token a byte: 256 of them.
    Bytes,
    /// Byte-pair encoding, learned from the text once and kept in `data.cache_dir`.
    Bpe,
}

/// What makes up one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Micro-batches in a step, over all ranks: the leaves of the ordered sum. At least the number of ranks.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub micro_batches: usize,
    /// Samples in a micro-batch.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub micro_batch_size: usize,
}

/// How ranks share the work. Nothing here changes bits, except `reduction: native`, `compression`, and
/// `unused_parameters` where some are unused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parallel {
    /// What the ranks share out. It does not change bits under `reduction: ordered`.
    pub strategy: StrategyKind,
    /// How ranks talk to one another.
    pub backend: Backend,
    /// In which order the gradients of the micro-batches are added.
    pub reduction: Reduction,
    /// How gradients are made smaller before they travel. Anything but `none` makes the result an approximation whose bits
    /// depend on the number of ranks; it needs `reduction: ordered`, and one rank alone compresses nothing.
    pub compression: Compression,
    /// Rank of the matrices that `compression: powersgd` sends instead of a gradient's matrix.
    #[schemars(range(min = 1, max = 256))]
    pub powersgd_rank: usize,
    /// Capacity of a gradient bucket, in MiB. It does not change bits.
    #[schemars(range(max = 16_384), extend("exclusiveMinimum" = 0))]
    pub bucket_mb: f64,
    /// Capacity of the first bucket, so that communication starts early, and of the last one, which nothing hides, in
    /// MiB. It does not change bits.
    #[schemars(range(max = 16_384), extend("exclusiveMinimum" = 0))]
    pub edge_bucket_mb: f64,
    /// Largest message of gradients and parameters between hosts, in KiB: what is longer travels as several. Messages that
    /// Open MPI sends over TCP without asking the receiver first (up to 64 KiB with their headers) keep a link busy; over
    /// a network with remote memory access, longer ones may be faster. It does not change bits.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub message_kb: usize,
    /// Where all ranks are on one host, keep gradients in memory that they share (in `/dev/shm`), and add them up there
    /// instead of sending them; where there is too little of it, a warning says so, and they are sent. It does not change
    /// bits.
    pub shared_memory: bool,
    /// Communicate on a thread of its own while backward goes on. It does not change bits.
    pub overlap: bool,
    /// How freely threads may call MPI. `overlap` needs `multiple` or `serialized`; where the library provides less than
    /// what is asked for, the training thread communicates after backward, and a warning says so.
    pub mpi_threads: MpiThreads,
    /// Seconds that a collective may make no progress before all ranks are ended with exit code 90.
    #[schemars(range(max = 1_000_000), extend("exclusiveMinimum" = 0))]
    pub timeout_s: f64,
    /// Compare what the ranks are about to call before each collective, and end them with exit code 1 if they differ:
    /// for debugging, since every collective then takes up to three small ones more.
    pub check_collectives: bool,
    /// What to do about a parameter that the loss of some micro-batch does not depend on.
    pub unused_parameters: UnusedParameters,
}

/// What to do about a parameter without a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnusedParameters {
    /// End the run and name the parameters.
    Error,
    /// As `allow`, but a parameter that no micro-batch of the step used is left out of the update: it and its
    /// optimizer state stay as they are, as in PyTorch, whose `.grad` is None.
    Detect,
    /// A missing gradient counts as zero, and the parameter is updated as usual: by weight decay and momentum.
    Allow,
}

/// What the ranks share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// How ranks talk to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Under an MPI launcher `nccl` where ranks compute on GPUs, else `mpi`; without a launcher `solo`.
    Auto,
    /// One process, no MPI.
    Solo,
    /// Collectives of the MPI that launched the ranks.
    Mpi,
    /// NVIDIA's NCCL for gradients and parameters, started through MPI: one rank a GPU.
    Nccl,
}

/// How freely threads may call MPI (its thread levels).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MpiThreads {
    /// Any thread at any time (MPI_THREAD_MULTIPLE).
    Multiple,
    /// Any thread, one at a time (MPI_THREAD_SERIALIZED).
    Serialized,
    /// The thread that started MPI only (MPI_THREAD_FUNNELED).
    Funneled,
}

/// In which order gradients are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// How gradients are made smaller before they travel. What is left out of one step's gradient is added to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// Rounded to bfloat16: half the traffic.
    Bf16,
    /// Rounded to IEEE half precision: half the traffic, more digits than `bf16`, but nothing beyond 65504.
    Fp16,
    /// Matrices become products of two thin ones (PowerSGD, Vogels et al. 2019).
    Powersgd,
}

impl Parallel {
    /// As the run record spells it, for example `powersgd-4`; none for no compression.
    pub fn compression_name(&self) -> Option<String> {
        match self.compression {
            Compression::None => None,
            Compression::Bf16 => Some("bf16".into()),
            Compression::Fp16 => Some("fp16".into()),
            Compression::Powersgd => Some(format!("powersgd-{}", self.powersgd_rank)),
        }
    }
}

/// The optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Update rule.
    pub kind: OptimKind,
    /// Peak learning rate.
    #[schemars(range(min = 0, max = 1e6))]
    pub lr: f64,
    /// AdamW's decay rates of the first and the second moment, each at least 0 and below 1.
    pub betas: [f64; 2],
    /// AdamW's term against division by zero; in fp32 a smaller one would be none.
    #[schemars(range(min = 1e-30, max = 1))]
    pub eps: f64,
    /// SGD's momentum.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Decoupled weight decay of matrices and embeddings; vectors (biases, norms) have none.
    #[schemars(range(min = 0, max = 1e6))]
    pub weight_decay: f64,
    /// Largest global gradient norm; null for no clipping.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip_norm: Option<f64>,
    /// What to do about a gradient with an infinity or a NaN.
    pub non_finite: NonFinite,
}

/// What to do about a gradient that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// End the run before the update, and name the tensor.
    Stop,
    /// Leave out the update of this step on all ranks, and go on; end after ten such steps in a row.
    Skip,
}

/// Update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimKind {
    /// AdamW (Loshchilov and Hutter 2019): `betas`, `eps`, decoupled `weight_decay`.
    Adamw,
    /// Stochastic gradient descent with `momentum` and decoupled `weight_decay`.
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

/// Length of the training and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Shape of the learning rate after warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the learning rate rises linearly to the peak; at most `schedule.steps`.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// Learning rate at the last step, as a fraction of the peak (not for `constant`).
    #[schemars(range(min = 0, max = 1))]
    pub final_fraction: f64,
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine from the peak to `final_fraction` of it.
    Cosine,
    /// A straight line from the peak to `final_fraction` of it.
    Linear,
    /// The peak throughout.
    Constant,
}

/// A number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// IEEE single precision.
    Fp32,
    /// bfloat16: the range of fp32 with 8 significant bits.
    Bf16,
    /// IEEE half precision: 11 significant bits, from 6e-8 to 65504.
    Fp16,
}

impl Precision {
    /// As the configuration spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }
}

/// The loss scale of `precision: fp16`, as `torch.amp.GradScaler` has it. Other precisions have none, and refuse settings of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scaler {
    /// When the loss is scaled.
    pub enabled: ScalerUse,
    /// First scale. Powers of two are divided out exactly.
    #[schemars(range(min = 1e-30, max = 1e30))]
    pub init_scale: f64,
    /// What the scale is multiplied by after `scaler.growth_interval` steps without an overflow.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 1))]
    pub growth_factor: f64,
    /// What the scale is multiplied by after a step whose gradient overflowed, which is left out.
    #[schemars(range(min = 1e-6), extend("exclusiveMaximum" = 1))]
    pub backoff_factor: f64,
    /// Steps in a row without an overflow after which the scale grows.
    #[schemars(range(min = 1))]
    pub growth_interval: u64,
}

/// When the loss is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScalerUse {
    /// Under `precision: fp16`.
    Auto,
    /// Never: gradients below 6e-8 are then zero in fp16.
    Never,
}

/// Loss on the validation split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Evaluate on the validation split every this many steps and at the last one; 0 for never.
    pub every: u64,
    /// Micro-batches of the validation split that an evaluation reads.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub micro_batches: usize,
}

/// When the state is saved, and what is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Save every this many steps, and at the end; 0 for at the end only.
    pub every: u64,
    /// Checkpoints kept besides milestones; older ones are deleted once a newer one is published.
    #[schemars(range(min = 1))]
    pub keep: usize,
    /// Steps that are multiples of this are never deleted; 0 for none.
    pub milestone_every: u64,
    /// Also save the initial state, as step 0.
    pub at_start: bool,
}

/// How much the run record holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Write digests every this many steps and at the first and the last; 0 for none.
    pub digests_every: u64,
    /// Also digest each micro-batch's own gradient, at the same steps.
    pub local_gradients: bool,
    /// Write a sketch of each tensor beside its digest, from which distances between runs are estimated: what a comparison
    /// with `--tolerance auto` sees most by.
    pub sketches: bool,
    /// Seconds between two looks at each rank's GPU, whose utilisation, memory, power, temperature and clocks go to `telemetry/`
    /// in the run directory; 0 for none, else at least 0.01. It does not change bits.
    #[schemars(range(min = 0, max = 86_400))]
    pub telemetry_every_s: f64,
}
