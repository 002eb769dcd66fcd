//! A GPT with the names, shapes and initial weights of Hugging Face's GPT-2 (Radford et al. 2019).

use tch::{Device, Kind, TchError, Tensor};

use super::reader::Reader;
use super::{Dropout, Initial, MicroBatch, Model, Weights};
use crate::config::schema::{self, Positions};
use crate::grad::layout::ParameterSpec;
use crate::mutate::{Mutation, active};

/// LayerNorm's term against division by zero, as in GPT-2.
const NORM_EPS: f64 = 1e-5;
/// Tensors in a block: two norms and four linear layers, each with weight and bias.
const BLOCK_PARAMETERS: usize = 12;
/// Standard deviation of initial weights, as in GPT-2.
const INITIAL_STD: f64 = 0.02;
/// Base of the rotary frequencies (Su et al. 2021).
const ROTARY_BASE: f64 = 10_000.0;

/// Pre-norm decoder with causal attention, tied embeddings and dropout on the embeddings and on both outputs of
/// each block.
pub struct Gpt {
    layers: usize,
    heads: i64,
    width: i64,
    context: i64,
    vocabulary: i64,
    /// Probability that a micro-batch skips a block in training.
    layer_drop: f64,
    learned_positions: bool,
    /// cos and sin, each `context × head width`, when rotary.
    rotary: Option<(Tensor, Tensor)>,
}

impl Reader<'_> {
    /// y = x·w + b with w as `in × out`.
    fn linear(&mut self, input: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (self.next()?, self.next()?);
        let flat = input.f_view([-1, weight.size()[0]])?;
        let mut shape = input.size();
        shape.pop();
        shape.push(weight.size()[1]);
        bias.f_addmm(&flat, weight)?.f_view(shape.as_slice())
    }

    fn layer_norm(&mut self, input: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (self.next()?, self.next()?);
        input.f_layer_norm(weight.size(), Some(weight), Some(bias), NORM_EPS, false)
    }
}

impl Gpt {
    pub fn new(model: &schema::Model, vocabulary: usize) -> Self {
        let learned_positions = model.positions == Positions::Learned;
        let (context, head_width) = (model.context as i64, (model.width / model.heads) as i64);
        Self {
            layers: model.layers,
            heads: model.heads as i64,
            width: model.width as i64,
            context,
            vocabulary: vocabulary as i64,
            layer_drop: model.layer_drop,
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

    fn attention(&self, reader: &mut Reader, x: &Tensor) -> Result<Tensor, TchError> {
        let (batch, time, width) = x.size3()?;
        let qkv = reader.linear(x)?.f_split(width, 2)?;
        let head =
            |part: &Tensor| part.f_view([batch, time, self.heads, width / self.heads])?.f_transpose(1, 2);
        let (mut q, mut k, v) = (head(&qkv[0])?, head(&qkv[1])?, head(&qkv[2])?);
        if let Some(table) = &self.rotary {
            (q, k) = (rotate(&q, table)?, rotate(&k, table)?);
        }
        let mixed =
            Tensor::f_scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, 0.0, true, None, false)?;
        let mixed = mixed.f_transpose(1, 2)?.f_contiguous()?.f_view([batch, time, width])?;
        reader.linear(&mixed)
    }

    fn feed_forward(&self, reader: &mut Reader, x: &Tensor) -> Result<Tensor, TchError> {
        let hidden = crate::torch::gelu_tanh(&reader.linear(x)?)?;
        reader.linear(&hidden)
    }

    fn block(&self, reader: &mut Reader, x: Tensor, site: u32, drop: &Drop) -> Result<Tensor, TchError> {
        let normed = reader.layer_norm(&x)?;
        let x = x.f_add(&drop(site, self.attention(reader, &normed)?)?)?;
        let normed = reader.layer_norm(&x)?;
        x.f_add(&drop(site + 1, self.feed_forward(reader, &normed)?)?)
    }
}

/// Applies dropout at a numbered site, or nothing.
type Drop<'a> = dyn Fn(u32, Tensor) -> Result<Tensor, TchError> + 'a;

impl Model for Gpt {
    fn parameters(&self) -> Vec<(ParameterSpec, Initial)> {
        let (width, wide) = (self.width, 4 * self.width);
        let normal = Initial::Normal { std: INITIAL_STD };
        // GPT-2 shrinks what is added to the residual stream by the number of additions.
        let residual = Initial::Normal { std: INITIAL_STD / (2.0 * self.layers as f64).sqrt() };
        let mut all = vec![("wte.weight".to_owned(), vec![self.vocabulary, width], normal)];
        if self.learned_positions {
            all.push(("wpe.weight".into(), vec![self.context, width], normal));
        }
        let norm = |all: &mut Vec<_>, name: String| {
            all.push((format!("{name}.weight"), vec![width], Initial::Constant(1.0)));
            all.push((format!("{name}.bias"), vec![width], Initial::Constant(0.0)));
        };
        let linear = |all: &mut Vec<_>, name: String, from: i64, to: i64, initial| {
            all.push((format!("{name}.weight"), vec![from, to], initial));
            all.push((format!("{name}.bias"), vec![to], Initial::Constant(0.0)));
        };
        for layer in 0..self.layers {
            norm(&mut all, format!("h.{layer}.ln_1"));
            linear(&mut all, format!("h.{layer}.attn.c_attn"), width, 3 * width, normal);
            linear(&mut all, format!("h.{layer}.attn.c_proj"), width, width, residual);
            norm(&mut all, format!("h.{layer}.ln_2"));
            linear(&mut all, format!("h.{layer}.mlp.c_fc"), width, wide, normal);
            linear(&mut all, format!("h.{layer}.mlp.c_proj"), wide, width, residual);
        }
        norm(&mut all, "ln_f".into());
        all.into_iter().map(|(name, shape, initial)| (ParameterSpec { name, shape }, initial)).collect()
    }

    fn loss(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor, TchError> {
        let drop = |site: u32, x: Tensor| match dropout {
            Some(dropout) if dropout.probability > 0.0 => dropout.apply(site, &x),
            _ => Ok(x),
        };
        let mut reader = Reader::new(weights);
        let (x, tokens) = self.embed(&mut reader, &batch.inputs)?;
        let mut x = drop(0, x)?;
        for layer in 0..self.layers {
            if dropout.is_some_and(|dropout| dropout.skips_layer(layer, self.layer_drop)) {
                reader.skip(BLOCK_PARAMETERS);
                continue;
            }
            x = self.block(&mut reader, x, 1 + 2 * layer as u32, &drop)?;
        }
        let x = reader.layer_norm(&x)?;
        let logits = x.f_view([-1, self.width])?.f_matmul(&tokens.f_transpose(0, 1)?)?;
        let targets = batch.targets.f_view(-1)?;
        // No token is -100; a blank is 32.
        let ignored = if active(Mutation::IgnoredTargets) { 32 } else { -100 };
        logits.f_cross_entropy_loss::<&Tensor>(&targets, None, tch::Reduction::Sum, ignored, 0.0)
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

/// Rotates the two halves of each head against each other, as Llama does.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[halves[1].f_neg()?, halves[0].shallow_clone()], -1)?;
    let here = |table: &Tensor| table.f_to_device(x.device());
    x.f_mul(&here(cos)?)?.f_add(&turned.f_mul(&here(sin)?)?)
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
mod tests;
