//! Models: what parameters they have, how those start, and the loss of a micro-batch.
//!
//! `docs/adding-a-model.md` walks through a new one.

mod dropout;
mod gpt;

use tch::Tensor;

pub use dropout::Dropout;
pub use gpt::Gpt;

use crate::config::schema;
use crate::grad::layout::ParameterSpec;

/// One micro-batch of token ids: `micro_batch_size × context`, int64, targets shifted by one.
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

impl Weights for &[Tensor] {
    fn get(&self, index: usize) -> Result<&Tensor, tch::TchError> {
        let missing = || tch::TchError::Shape(format!("the model has no parameter number {index}"));
        <[Tensor]>::get(self, index).ok_or_else(missing)
    }
}

/// A model that the trainer can train: pure functions of parameters that the trainer owns.
pub trait Model {
    /// In a fixed order: norms, checkpoints and the flat layout follow it.
    fn parameters(&self) -> Vec<(ParameterSpec, Initial)>;

    /// Cross-entropy of a micro-batch, summed over its tokens: a scalar. Weights are asked for as late as possible, in the
    /// order of [`Model::parameters`] as far as possible: some may still be under way from other ranks. `dropout` is None for evaluation.
    fn loss(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor, tch::TchError>;
}

/// The model that the configuration describes, for a vocabulary of this size.
pub fn build(model: &schema::Model, vocabulary: usize) -> Box<dyn Model> {
    match model.kind {
        schema::ModelKind::Gpt => Box::new(Gpt::new(model, vocabulary)),
    }
}
