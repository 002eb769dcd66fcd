//! What every kind of data offers the trainer: numbered samples in two splits, and what the record says of them.

use std::path::PathBuf;

use lockstep_record::DataInfo;

use super::arm::{Arm, ArmError};
use super::images::{Images, ImagesError};
use super::source::SourceError;
use super::text::Text;
use super::tokenizer::TokenizerError;
use crate::config::Config;
use crate::config::schema::DataKind;

/// Samples to train on and to validate with, the same on every rank.
pub trait Corpus {
    /// What the run record says about the data.
    fn info(&self) -> DataInfo;

    /// What the user should know although the training can go on.
    fn warnings(&self) -> &[String];

    /// How many targets the samples `ids` of a split have together, for each of the losses that are learnt from them: the
    /// step's losses are means over those of the whole global batch.
    fn targets(&self, split: Split, ids: &[u64]) -> Result<Vec<u64>, DataError>;

    /// The samples `ids` of a split. `epochs` names the epoch that each of them is visited in, for data that look
    /// different every time; without it they are as they are.
    fn batch(&self, split: Split, ids: &[u64], epochs: Option<&[u64]>) -> Result<Samples, DataError>;
}

/// Samples as flat arrays in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    pub inputs: Inputs,
    pub input_shape: Vec<i64>,
    pub targets: Vec<i64>,
    pub target_shape: Vec<i64>,
    /// What there is to learn besides.
    pub actions: Option<ActionSamples>,
}

/// Chunks of actions, and what flow matching draws for them: see [`crate::model::ActionChunks`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActionSamples {
    pub actions: Vec<f32>,
    pub counted: Vec<f32>,
    pub noise: Vec<f32>,
    pub times: Vec<f32>,
    /// Samples, chunks in a sample, actions in a chunk, joints; times have the first two.
    pub shape: Vec<i64>,
}

/// What a model looks at.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    Tokens(Vec<i64>),
    Pixels(Vec<f32>),
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    /// Never trained on.
    Validation,
}

impl std::fmt::Display for Split {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Split::Train => "train",
            Split::Validation => "validation",
        })
    }
}

/// Why data cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    Arm(#[from] ArmError),
    #[error(
        "the text {} is not UTF-8 at byte {offset} (line {line}), which tokenizer bpe needs: correct it, or set \
         data.tokenizer to bytes",
        path.display()
    )]
    NotUtf8 { path: PathBuf, offset: usize, line: usize },
    #[error(
        "the text {} is too short: its train part has {tokens} tokens, and one sample of model.context {context} \
         needs {needed}; use a longer text, a smaller model.context or a smaller data.validation_fraction",
        path.display()
    )]
    TooShort { path: PathBuf, tokens: usize, context: usize, needed: usize },
    #[error("data.validation_fraction is {0}: it must be at least 0 and below 1")]
    ValidationFraction(f64),
    #[error("model.context is 0: a sample needs at least one token")]
    NoContext,
    #[error("data.max_samples is 0: set it to null to use all samples")]
    NoSamples,
    #[error("sample {id} of the {split} split does not exist: there are {samples}")]
    NoSuchSample { split: Split, id: u64, samples: u64 },
}

/// Reads the data that the configuration names.
pub fn load(config: &Config) -> Result<Box<dyn Corpus>, DataError> {
    Ok(match config.data.kind {
        DataKind::Text => Box::new(Text::load(&config.data, config.model.context)?),
        DataKind::Images => Box::new(Images::load(&config.data, config.run.seed)?),
        DataKind::Arm => Box::new(Arm::load(&config.data, &config.model, config.run.seed)?),
    })
}

/// How many of `length` tokens, bytes, images or episodes come before the validation part.
pub fn train_part(length: usize, validation_fraction: f64) -> usize {
    (((length as f64) * (1.0 - validation_fraction)).floor() as usize).min(length)
}
