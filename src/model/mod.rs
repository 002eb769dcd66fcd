//! Models: what parameters they have, how those start, and the loss of a micro-batch.
//!
//! `docs/adding-a-model.md` walks through a new one.

mod dropout;
mod freeze;
mod gpt;
mod reader;
mod resnet;

use tch::Tensor;

pub use dropout::Dropout;
pub use freeze::{FreezeError, frozen};
pub use gpt::Gpt;
pub use resnet::Resnet;

use crate::config::schema;
use crate::grad::layout::ParameterSpec;
use crate::precision::{self, Autocast};

/// One micro-batch. Of a text: token ids, `micro_batch_size × context`, int64, targets shifted by one. Of images:
/// fp32 pixels, `micro_batch_size × 3 × 32 × 32`, and int64 classes.
pub struct MicroBatch {
    pub inputs: Tensor,
    pub targets: Tensor,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    Normal { std: f64 },
    Constant(f32),
}

/// The values of a model's parameters.
pub trait Weights {
    /// Number `index` of [`Model::parameters`].
    fn get(&self, index: usize) -> Result<&Tensor, tch::TchError>;
}

impl Weights for Vec<Tensor> {
    fn get(&self, index: usize) -> Result<&Tensor, tch::TchError> {
        let missing = || tch::TchError::Shape(format!("the model has no parameter number {index}"));
        self.as_slice().get(index).ok_or_else(missing)
    }
}

/// A model that the trainer can train: pure functions of parameters that the trainer owns.
pub trait Model {
    /// In a fixed order: norms, checkpoints and the flat layout follow it.
    fn parameters(&self) -> Vec<(ParameterSpec, Initial)>;

    /// Cross-entropy of a micro-batch, summed over its targets: a scalar. Weights are asked for as late as possible, in
    /// the order of [`Model::parameters`] as far as possible: some may still be under way from other ranks. `dropout` is
    /// None for evaluation.
    fn loss(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor, tch::TchError>;
}

/// The model that the configuration describes, for a vocabulary of this size, or this many classes.
pub fn build(model: &schema::Model, precision: schema::Precision, vocabulary: usize) -> Box<dyn Model> {
    let model: Box<dyn Model> = match model.kind {
        schema::ModelKind::Gpt => Box::new(Gpt::new(model, vocabulary)),
        schema::ModelKind::Resnet => Box::new(Resnet::new(model, vocabulary)),
    };
    match precision::format(precision) {
        None => model,
        Some(format) => Box::new(Autocast::new(model, format)),
    }
}
