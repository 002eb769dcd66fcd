//! What the model is trained on: text, the tokens that it becomes, and which samples each step uses.
//!
//! ```text
//! source ─ bytes of data.path ─► tokenizer ─ tokens ─► text: windows of context + 1 tokens, numbered
//!                                                        ▲
//! sampler: (seed, step) ─► sample ids of each micro-batch ┘
//! ```
//!
//! Nothing here knows of ranks: every process holds the same tokens and computes the same ids.

mod sampler;
mod source;
mod text;
mod tokenizer;
mod tokenizer_cache;

pub use sampler::{Sampler, SamplerError, StepSamples};
pub use source::SourceError;
pub use text::{Corpus, DataError, Split};
pub use tokenizer::{Tokenizer, TokenizerError};
