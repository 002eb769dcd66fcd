//! What the model is trained on, as numbered samples, and which of them each step uses.
//!
//! ```text
//! source ─ bytes of data.path ─► tokenizer ─ tokens ─► text: windows of context + 1 tokens ──┐
//! images: drawn shapes or CIFAR-10's files ─► augment (seed, epoch, id) ─► pixels ───────────┤ Corpus, numbered
//! arm: simulated episodes ─► tokens, actions; visit (seed, epoch, id) ─► noise, times ───────┤
//!                                                                                            ▲
//! sampler: (seed, step) ─► sample ids of each micro-batch ───────────────────────────────────┘
//! ```
//!
//! Nothing here knows of ranks: every process holds the same data and computes the same ids.

mod arm;
mod corpus;
mod images;
mod sampler;
mod source;
mod text;
mod tokenizer;
mod tokenizer_cache;

pub use arm::{ArmError, JOINTS, TURN_TOKENS};
pub use corpus::{ActionSamples, Corpus, DataError, Inputs, Samples, Split, load};
pub use images::ImagesError;
pub use sampler::{Sampler, SamplerError, StepSamples};
pub use source::SourceError;
pub use tokenizer::{Tokenizer, TokenizerError};
