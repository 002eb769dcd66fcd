//! What transformers are made of: pre-norm blocks with the names, shapes and initial weights of Hugging Face's GPT-2
//! (Radford et al. 2019).

use tch::{TchError, Tensor};

use super::reader::Reader;
use super::{Dropout, Initial};
use crate::grad::layout::ParameterSpec;

/// LayerNorm's term against division by zero, as in GPT-2.
const NORM_EPS: f64 = 1e-5;
/// Tensors in a block: two norms and four linear layers, each with weight and bias.
pub const BLOCK_PARAMETERS: usize = 12;
/// Initial weights, as in GPT-2.
pub const NORMAL: Initial = Initial::Normal { std: INITIAL_STD };
const INITIAL_STD: f64 = 0.02;

/// Parameters with their first values, in the model's order.
pub type Parameters = Vec<(ParameterSpec, Initial)>;

/// Adds one parameter.
pub fn push(all: &mut Parameters, name: impl Into<String>, shape: Vec<i64>, initial: Initial) {
    all.push((ParameterSpec { name: name.into(), shape }, initial));
}

/// Adds a linear layer: `in × out`, and a bias.
pub fn push_linear(all: &mut Parameters, name: &str, from: i64, to: i64, initial: Initial) {
    push(all, format!("{name}.weight"), vec![from, to], initial);
    push(all, format!("{name}.bias"), vec![to], Initial::Constant(0.0));
}

/// Adds a LayerNorm.
pub fn push_norm(all: &mut Parameters, name: &str, width: i64) {
    push(all, format!("{name}.weight"), vec![width], Initial::Constant(1.0));
    push(all, format!("{name}.bias"), vec![width], Initial::Constant(0.0));
}

impl Reader<'_> {
    /// y = x·w + b with w as `in × out`.
    pub fn linear(&mut self, input: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (self.next()?, self.next()?);
        let flat = input.f_view([-1, weight.size()[0]])?;
        let mut shape = input.size();
        shape.pop();
        shape.push(weight.size()[1]);
        bias.f_addmm(&flat, weight)?.f_view(shape.as_slice())
    }

    pub fn layer_norm(&mut self, input: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (self.next()?, self.next()?);
        input.f_layer_norm(weight.size(), Some(weight), Some(bias), NORM_EPS, false)
    }
}

/// Applies dropout at a numbered site, or nothing.
pub type Drop<'a> = dyn Fn(u32, Tensor) -> Result<Tensor, TchError> + 'a;

/// The dropout of one micro-batch, or of an evaluation, as blocks apply it.
pub fn drop(dropout: Option<&Dropout>) -> impl Fn(u32, Tensor) -> Result<Tensor, TchError> {
    move |site, x| match dropout {
        Some(dropout) if dropout.probability > 0.0 => dropout.apply(site, &x),
        _ => Ok(x),
    }
}

/// Which positions see which, and how they know their order.
#[derive(Clone, Copy, Default)]
pub struct Attention<'a> {
    /// `positions × positions`, true where a row's position sees a column's; none for all that come before.
    pub mask: Option<&'a Tensor>,
    /// cos and sin, each `positions × head width`, where queries and keys are rotated.
    pub rotary: Option<&'a (Tensor, Tensor)>,
}

/// The trunk: blocks of attention and a feed-forward layer, with dropout on both outputs of each, under `h.0`, `h.1`, ….
pub struct Blocks {
    pub layers: usize,
    pub heads: i64,
    pub width: i64,
    /// Probability that a micro-batch skips a block in training.
    pub layer_drop: f64,
}

impl Blocks {
    /// Adds the blocks' parameters.
    pub fn push(&self, all: &mut Parameters) {
        let (width, wide) = (self.width, 4 * self.width);
        // GPT-2 shrinks what is added to the residual stream by the number of additions.
        let residual = Initial::Normal { std: INITIAL_STD / (2.0 * self.layers as f64).sqrt() };
        for layer in 0..self.layers {
            push_norm(all, &format!("h.{layer}.ln_1"), width);
            push_linear(all, &format!("h.{layer}.attn.c_attn"), width, 3 * width, NORMAL);
            push_linear(all, &format!("h.{layer}.attn.c_proj"), width, width, residual);
            push_norm(all, &format!("h.{layer}.ln_2"), width);
            push_linear(all, &format!("h.{layer}.mlp.c_fc"), width, wide, NORMAL);
            push_linear(all, &format!("h.{layer}.mlp.c_proj"), wide, width, residual);
        }
    }

    /// Runs `x`, `batch × positions × width`, through all blocks that this micro-batch does not skip.
    pub fn run(
        &self,
        reader: &mut Reader,
        mut x: Tensor,
        attention: Attention,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor, TchError> {
        let drop = drop(dropout);
        for layer in 0..self.layers {
            if dropout.is_some_and(|dropout| dropout.skips_layer(layer, self.layer_drop)) {
                reader.skip(BLOCK_PARAMETERS);
                continue;
            }
            x = self.block(reader, x, attention, 1 + 2 * layer as u32, &drop)?;
        }
        Ok(x)
    }

    fn block(
        &self,
        reader: &mut Reader,
        x: Tensor,
        attention: Attention,
        site: u32,
        drop: &Drop,
    ) -> Result<Tensor, TchError> {
        let normed = reader.layer_norm(&x)?;
        let x = x.f_add(&drop(site, self.attend(reader, &normed, attention)?)?)?;
        let normed = reader.layer_norm(&x)?;
        let hidden = crate::torch::gelu_tanh(&reader.linear(&normed)?)?;
        x.f_add(&drop(site + 1, reader.linear(&hidden)?)?)
    }

    fn attend(&self, reader: &mut Reader, x: &Tensor, attention: Attention) -> Result<Tensor, TchError> {
        let (batch, time, width) = x.size3()?;
        let qkv = reader.linear(x)?.f_split(width, 2)?;
        let head =
            |part: &Tensor| part.f_view([batch, time, self.heads, width / self.heads])?.f_transpose(1, 2);
        let (mut q, mut k, v) = (head(&qkv[0])?, head(&qkv[1])?, head(&qkv[2])?);
        if let Some(table) = attention.rotary {
            (q, k) = (rotate(&q, table)?, rotate(&k, table)?);
        }
        let mask = attention.mask.map(|mask| mask.f_to_device(x.device())).transpose()?;
        let causal = mask.is_none();
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, false)?;
        let mixed = mixed.f_transpose(1, 2)?.f_contiguous()?.f_view([batch, time, width])?;
        reader.linear(&mixed)
    }
}

/// Rotates the two halves of each head against each other, as Llama does.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[halves[1].f_neg()?, halves[0].shallow_clone()], -1)?;
    let here = |table: &Tensor| table.f_to_device(x.device());
    x.f_mul(&here(cos)?)?.f_add(&turned.f_mul(&here(sin)?)?)
}
