//! A small policy with two losses, built as π0 is (Black et al. 2024): one transformer reads what there is to know as tokens,
//! writes a plan as further tokens, and turns noise into a chunk of continuous actions by flow matching.
//!
//! A sample is a sequence of turns, each the tokens of an observation and of a plan, then a chunk of actions:
//!
//! ```text
//! turn 0: o o o o o p p p p p p p │ a a a a │ turn 1: o o o o o p p p … │ a a a a
//!         tokens: causal            chunk: sees all tokens before it, and all of itself
//! ```
//! Nobody else sees a chunk: in training it is partly noise, and what came of it is in the next turn's observation.

use tch::{Device, Kind, TchError, Tensor};

use super::reader::Reader;
use super::transformer::{self, Attention, Blocks, Parameters};
use super::{Dropout, MicroBatch, Model, Term, Weights};
use crate::config::schema;
use crate::data::{JOINTS, TURN_TOKENS};

/// What a target is that does not count.
const IGNORED: i64 = -100;
/// The shortest and the longest period of the sines and cosines that tell the time, as in π0.
const PERIODS: [f64; 2] = [4e-3, 4.0];

/// Decoder over turns of tokens and actions, with tied token embeddings and learned positions.
pub struct Vla {
    blocks: Blocks,
    turns: i64,
    chunk: i64,
    vocabulary: i64,
    weights: [f64; 2],
    /// Which position sees which.
    mask: Tensor,
    /// 2π ÷ period, `width / 2` of them.
    frequencies: Tensor,
}

/// What the model makes of its inputs.
pub struct Predicted {
    /// Of every token's successor: `tokens × vocabulary`.
    pub logits: Tensor,
    /// `batch × turns × chunk × joints`.
    pub velocity: Tensor,
}

impl Vla {
    pub fn new(model: &schema::Model, vocabulary: usize) -> Self {
        let blocks = Blocks {
            layers: model.layers,
            heads: model.heads as i64,
            width: model.width as i64,
            layer_drop: model.layer_drop,
        };
        Self {
            blocks,
            turns: model.turns as i64,
            chunk: model.chunk as i64,
            vocabulary: vocabulary as i64,
            weights: [model.ar_weight, model.fm_weight],
            mask: mask(model.turns, model.chunk),
            frequencies: frequencies(model.width),
        }
    }

    /// Positions of one turn.
    fn turn(&self) -> i64 {
        TURN_TOKENS as i64 + self.chunk
    }

    /// What follows from `tokens`, `batch × turns × TURN_TOKENS`, and from chunks `noisy`, `batch × turns × chunk × JOINTS`,
    /// that have come as far as `times`, `batch × turns`.
    pub fn predict(
        &self,
        weights: &dyn Weights,
        (tokens, noisy, times): (&Tensor, &Tensor, &Tensor),
        dropout: Option<&Dropout>,
    ) -> Result<Predicted, TchError> {
        let (batch, width) = (tokens.size()[0], self.blocks.width);
        let mut reader = Reader::new(weights);
        let embeddings = reader.next()?;
        let positions = reader.next()?;
        let tokens = Tensor::f_embedding(embeddings, tokens, -1, false, false)?;
        let actions = reader.linear(noisy)?.f_add(&reader.linear(&self.clock(times)?)?.f_unsqueeze(2)?)?;
        let x = Tensor::f_cat(&[&tokens, &actions], 2)?;
        let x = x.f_view([batch, self.turns * self.turn(), width])?.f_add(positions)?;
        let x = transformer::drop(dropout)(0, x)?;
        let attention = Attention { mask: Some(&self.mask), ..Attention::default() };
        let x = self.blocks.run(&mut reader, x, attention, dropout)?;
        let x = reader.layer_norm(&x)?.f_view([batch, self.turns, self.turn(), width])?;
        let of_tokens = x.f_narrow(2, 0, TURN_TOKENS as i64)?.f_reshape([-1, width])?;
        let of_actions = x.f_narrow(2, TURN_TOKENS as i64, self.chunk)?.f_contiguous()?;
        Ok(Predicted {
            logits: of_tokens.f_matmul(&embeddings.f_transpose(0, 1)?)?,
            velocity: reader.linear(&of_actions)?,
        })
    }

    /// Sines and cosines of the times: `batch × turns × width`.
    fn clock(&self, times: &Tensor) -> Result<Tensor, TchError> {
        let frequencies = self.frequencies.f_to_device(times.device())?;
        let angles = times.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], -1)
    }
}

impl Model for Vla {
    fn parameters(&self) -> Parameters {
        let (width, joints) = (self.blocks.width, JOINTS as i64);
        let normal = transformer::NORMAL;
        let mut all = Vec::new();
        transformer::push(&mut all, "wte.weight", vec![self.vocabulary, width], normal);
        transformer::push(&mut all, "wpe.weight", vec![self.turns * self.turn(), width], normal);
        transformer::push_linear(&mut all, "action_in", joints, width, normal);
        transformer::push_linear(&mut all, "time_in", width, width, normal);
        self.blocks.push(&mut all);
        transformer::push_norm(&mut all, "ln_f", width);
        transformer::push_linear(&mut all, "action_out", width, joints, normal);
        all
    }

    fn terms(&self) -> Vec<Term> {
        let [ar, fm] = self.weights;
        vec![Term { name: "ar", weight: ar }, Term { name: "fm", weight: fm }]
    }

    /// Cross-entropy of the tokens that have a target, and squared error of the velocity.
    fn losses(
        &self,
        weights: &dyn Weights,
        batch: &MicroBatch,
        dropout: Option<&Dropout>,
    ) -> Result<Vec<Tensor>, TchError> {
        let missing = || TchError::Shape("a vla learns from actions, but this micro-batch has none".into());
        let chunks = batch.actions.as_ref().ok_or_else(missing)?;
        let noisy = chunks.at_their_times()?;
        let predicted = self.predict(weights, (&batch.inputs, &noisy, &chunks.times), dropout)?;
        let targets = batch.targets.f_view(-1)?;
        let sum = tch::Reduction::Sum;
        let ar = predicted.logits.f_cross_entropy_loss::<&Tensor>(&targets, None, sum, IGNORED, 0.0)?;
        Ok(vec![ar, chunks.squared_error(&predicted.velocity)?])
    }
}

/// True where a row's position sees a column's.
fn mask(turns: usize, chunk: usize) -> Tensor {
    let turn = TURN_TOKENS + chunk;
    let length = turns * turn;
    let is_action = |position: usize| position % turn >= TURN_TOKENS;
    let sees = |row: usize, column: usize| match is_action(column) {
        true => is_action(row) && row / turn == column / turn,
        false => column <= row,
    };
    let all: Vec<bool> =
        (0..length).flat_map(|row| (0..length).map(move |column| sees(row, column))).collect();
    Tensor::from_slice(&all).view([length as i64, length as i64])
}

/// Of sines whose periods lie between the shortest and the longest at equal ratios.
fn frequencies(width: usize) -> Tensor {
    let count = (width / 2) as i64;
    let [shortest, longest] = PERIODS;
    let exponents =
        Tensor::arange(count, (Kind::Double, Device::Cpu)) * ((longest / shortest).ln() / count as f64);
    (exponents.exp() * (std::f64::consts::TAU / longest)).to_kind(Kind::Float)
}

#[cfg(test)]
#[path = "vla_tests.rs"]
mod tests;
