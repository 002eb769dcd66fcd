//! What the model is trained on, as numbered samples, and which of them each step uses.
//!
//! ```text
//! source ─ bytes of data.path ─► tokenizer ─ tokens ─► text: windows of context + 1 tokens ──┐
//! images: drawn shapes or CIFAR-10's files ─► augment (seed, epoch, id) ─► pixels ───────────┤ Corpus, numbered
//!                                                                                            ▲
//! sampler: (seed, step) ─► sample ids of each micro-batch ───────────────────────────────────┘
//! ```
//!
//! Nothing here knows of ranks: every process holds the same data and computes the same ids.

mod corpus;
mod images;
mod sampler;
mod source;
mod text;
mod tokenizer;
mod tokenizer_cache;

pub use corpus::{Corpus, DataError, Inputs, Samples, Split, load};
pub use images::ImagesError;
pub use sampler::{Sampler, SamplerError, StepSamples};
pub use source::SourceError;
pub use tokenizer::{Tokenizer, TokenizerError};
