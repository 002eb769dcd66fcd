//! Models: what parameters they have, how those start, and the losses of a micro-batch.
//!
//! `docs/adding-a-model.md` walks through a new one.

mod dropout;
mod flow;
mod freeze;
mod gpt;
mod reader;
mod resnet;
mod transformer;
mod vla;

use tch::{Device, TchError, Tensor};

pub use dropout::Dropout;
pub use freeze::{FreezeError, frozen};
pub use gpt::Gpt;
pub use resnet::Resnet;
pub use vla::Vla;

use crate::config::schema;
use crate::grad::layout::ParameterSpec;
use crate::precision::{self, Autocast};

/// One micro-batch. Of a text: token ids, `micro_batch_size × context`, int64, targets shifted by one. Of images:
/// fp32 pixels, `micro_batch_size × 3 × 32 × 32`, and int64 classes. Of an arm: token ids and targets, `micro_batch_size ×
/// turns × tokens of a turn`, where a target of −100 does not count, and the turns' actions.
pub struct MicroBatch {
    pub inputs: Tensor,
    pub targets: Tensor,
    pub actions: Option<ActionChunks>,
}

/// Actions to learn by flow matching, fp32: `micro_batch_size × turns × chunk × joints`, but for the times.
pub struct ActionChunks {
    pub actions: Tensor,
    /// 1 where an element counts as a target, else 0.
    pub counted: Tensor,
    /// What the flow begins with, normally distributed.
    pub noise: Tensor,
    /// Where on its way from noise to actions each chunk is looked at, in `[0, 1)`: `micro_batch_size × turns`.
    pub times: Tensor,
}

impl MicroBatch {
    /// One of inputs and targets alone.
    pub fn new(inputs: Tensor, targets: Tensor) -> Self {
        Self { inputs, targets, actions: None }
    }

    /// The same in another memory.
    pub fn to_device(&self, device: Device) -> Result<Self, TchError> {
        let moved = |tensor: &Tensor| tensor.f_to_device(device);
        let actions = match &self.actions {
            None => None,
            Some(ActionChunks { actions, counted, noise, times }) => Some(ActionChunks {
                actions: moved(actions)?,
                counted: moved(counted)?,
                noise: moved(noise)?,
                times: moved(times)?,
            }),
        };
        Ok(Self { inputs: moved(&self.inputs)?, targets: moved(&self.targets)?, actions })
    }

    /// Everything that the model is given, by the name that the record has for it.
    pub fn contents(&self) -> Vec<(&'static str, &Tensor)> {
        let mut all = vec![("inputs", &self.inputs), ("targets", &self.targets)];
        if let Some(ActionChunks { actions, counted, noise, times }) = &self.actions {
            all.extend([("actions", actions), ("counted", counted), ("noise", noise), ("times", times)]);
        }
        all
    }
}

/// One of the losses that a model learns from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// As the record spells it.
    pub name: &'static str,
    /// What its mean is multiplied by in the step's loss.
    pub weight: f64,
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

    /// The losses that [`Model::losses`] returns. The corpus counts the targets of each ([`crate::data::Corpus::targets`]);
    /// the step's loss is the sum of their weighted means.
    fn terms(&self) -> Vec<Term> {
        vec![Term { name: "loss", weight: 1.0 }]
    }

    /// A micro-batch's losses, each summed over its own targets: scalars, in the order of [`Model::terms`]. Weights are asked
    /// for as late as possible, in the order of [`Model::parameters`] as far as possible: some may still be under way from
    /// other ranks. `dropout` is None for evaluation.
    fn losses(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Vec<Tensor>, tch::TchError>;
}

/// The model that the configuration describes, for a vocabulary of this size, or this many classes.
pub fn build(model: &schema::Model, precision: schema::Precision, vocabulary: usize) -> Box<dyn Model> {
    let model: Box<dyn Model> = match model.kind {
        schema::ModelKind::Gpt => Box::new(Gpt::new(model, vocabulary)),
        schema::ModelKind::Resnet => Box::new(Resnet::new(model, vocabulary)),
        schema::ModelKind::Vla => Box::new(Vla::new(model, vocabulary)),
    };
    match precision::format(precision) {
        None => model,
        Some(format) => Box::new(Autocast::new(model, format)),
    }
}
