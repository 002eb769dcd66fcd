//! A GPT with the names, shapes and initial weights of Hugging Face's GPT-2 (Radford et al. 2019).

use tch::{Device, Kind, TchError, Tensor};

use super::reader::Reader;
use super::transformer::{self, Attention, Blocks, Parameters};
use super::{Dropout, MicroBatch, Model, Weights};
use crate::config::schema::{self, Positions};
use crate::mutate::{Mutation, active};

/// Base of the rotary frequencies (Su et al. 2021).
const ROTARY_BASE: f64 = 10_000.0;

/// Pre-norm decoder with causal attention, tied embeddings and dropout on the embeddings and on both outputs of
/// each block.
pub struct Gpt {
    blocks: Blocks,
    context: i64,
    vocabulary: i64,
    learned_positions: bool,
    /// cos and sin, each `context × head width`, when rotary.
    rotary: Option<(Tensor, Tensor)>,
}

impl Gpt {
    pub fn new(model: &schema::Model, vocabulary: usize) -> Self {
        let learned_positions = model.positions == Positions::Learned;
        let (context, head_width) = (model.context as i64, (model.width / model.heads) as i64);
        Self {
            blocks: Blocks {
                layers: model.layers,
                heads: model.heads as i64,
                width: model.width as i64,
                layer_drop: model.layer_drop,
            },
            context,
            vocabulary: vocabulary as i64,
            learned_positions,
            rotary: (!learned_positions).then(|| rotary_table(context, head_width)),
        }
    }

    fn embed(&self, reader: &mut Reader, inputs: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let tokens = reader.next()?;
        let mut x = Tensor::f_embedding(tokens, inputs, -1, false, false)?;
        if self.learned_positions {
            x = x.f_add(reader.next()?)?;
        }
        Ok((x, tokens.shallow_clone()))
    }
}

impl Model for Gpt {
    fn parameters(&self) -> Parameters {
        let width = self.blocks.width;
        let mut all = Vec::new();
        transformer::push(&mut all, "wte.weight", vec![self.vocabulary, width], transformer::NORMAL);
        if self.learned_positions {
            transformer::push(&mut all, "wpe.weight", vec![self.context, width], transformer::NORMAL);
        }
        self.blocks.push(&mut all);
        transformer::push_norm(&mut all, "ln_f", width);
        all
    }

    fn losses(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Vec<Tensor>, TchError> {
        let mut reader = Reader::new(weights);
        let (x, tokens) = self.embed(&mut reader, &batch.inputs)?;
        let x = transformer::drop(dropout)(0, x)?;
        let attention = Attention { rotary: self.rotary.as_ref(), ..Attention::default() };
        let x = self.blocks.run(&mut reader, x, attention, dropout)?;
        let x = reader.layer_norm(&x)?;
        let logits = x.f_view([-1, self.blocks.width])?.f_matmul(&tokens.f_transpose(0, 1)?)?;
        let targets = batch.targets.f_view(-1)?;
        // No token is -100; a blank is 32.
        let ignored = if active(Mutation::IgnoredTargets) { 32 } else { -100 };
        let loss =
            logits.f_cross_entropy_loss::<&Tensor>(&targets, None, tch::Reduction::Sum, ignored, 0.0)?;
        Ok(vec![loss])
    }
}

/// cos and sin of position × frequency, each frequency twice: `context × head width`.
fn rotary_table(context: i64, head_width: i64) -> (Tensor, Tensor) {
    let options = (Kind::Double, Device::Cpu);
    let exponents = Tensor::arange_start_step(0, head_width, 2, options) / head_width as f64;
    let frequencies = (exponents * -ROTARY_BASE.ln()).exp();
    let angles = Tensor::arange(context, options).outer(&frequencies);
    let angles = Tensor::cat(&[&angles, &angles], 1);
    (angles.cos().to_kind(Kind::Float), angles.sin().to_kind(Kind::Float))
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
mod tests;
