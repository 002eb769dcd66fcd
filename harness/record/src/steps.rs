//! The lines of `metrics.jsonl`, `samples.jsonl` and `digests.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, LossScale, Real, Sketch};

/// One line of `metrics.jsonl`: a finished step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Optimizer updates done, this one included: the first line has step 1.
    pub step: u64,
    /// Epoch of the step's first sample, from 0.
    pub epoch: u64,
    /// Mean loss per token over the global batch, in nats, before the update.
    pub loss: Real,
    /// Each micro-batch's share of `loss`, in micro-batch order: they sum to it.
    pub micro_batch_losses: Vec<Real>,
    /// What `loss` is the weighted sum of, by name, of a model with more than one loss; else empty. Before their weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_terms: BTreeMap<String, LossTerm>,
    /// L2 norm of the reduced gradient before clipping.
    pub gradient_norm: Real,
    /// L2 norm of all parameters after the update.
    pub parameter_norm: Real,
    /// Factor by which clipping scaled the gradient: 1 when it did not.
    pub clip_coefficient: Real,
    pub learning_rate: Real,
    /// Mean loss per token on the validation split after the update, at the steps that evaluate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<Real>,
    /// The same for `validation_loss`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation_loss_terms: BTreeMap<String, LossTerm>,
    /// Of a step whose gradient was not finite and whose update was therefore left out: the first tensor of which that is
    /// true, in the model's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_for: Option<String>,
    /// Parameters that no micro-batch of the step used, and that were therefore not updated.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unused_parameters: u64,
    /// Where the loss is scaled: the scale of this step, before it was adjusted. All other numbers are those of the loss itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Targets in the global batch, of all losses together: tokens of a text, images, elements of actions.
    pub tokens: u64,
    /// Of rank 0's wall-clock time; not part of any comparison.
    pub tokens_per_second: Real,
    pub seconds: Seconds,
    /// The largest resident set of any rank, in bytes.
    pub resident_bytes_max: u64,
    /// Gradients and parameters that rank 0 sent, or left for others in shared memory, in bytes; 0 where the library adds (`reduction: native`), since it does not
    /// tell. Not part of any comparison.
    #[serde(default)]
    pub bytes_sent: u64,
}

/// One of several losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossTerm {
    /// Mean over `targets`.
    pub loss: Real,
    /// Its own targets in the global batch, or in all that an evaluation reads.
    pub targets: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Where rank 0 spent a step, in seconds of wall-clock time. Not part of any comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    pub data: f64,
    pub forward: f64,
    pub backward: f64,
    /// The training thread's: what nothing else hides.
    pub communication: f64,
    /// Of whichever thread: what `communication` would be if nothing hid it.
    #[serde(default)]
    pub communication_total: f64,
    pub optimizer: f64,
    /// Digests, metrics and their files.
    pub record: f64,
    pub total: f64,
}

/// One line of `samples.jsonl`: what a step was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleLine {
    pub step: u64,
    /// Sample ids of each micro-batch, in micro-batch order.
    pub micro_batches: Vec<Vec<u64>>,
    /// Of each micro-batch: what its dropout masks follow from, or random bits drawn from it. Micro-batches with the same
    /// value have the same masks. Empty without dropout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<Digest>,
}

/// What a digest was taken of. The order is the order of events in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What one micro-batch is made of, as the model is given it: `inputs`, `targets`, and what else the model learns from.
    Data,
    /// One micro-batch's gradient, before anything is added to it.
    LocalGradient,
    /// The step's gradient: the sum over all micro-batches, before clipping.
    ReducedGradient,
    /// What each rank makes of the gradient's norm: `gradient_norm` and `clip_coefficient`, each a single number.
    Norm,
    /// What each rank updates with: `learning_rate`, a single number.
    Schedule,
    /// Optimizer state after the update; the tensor is named `exp_avg/wte.weight` and the like.
    Optimizer,
    /// Parameters after the update; at step 0, as first broadcast.
    Parameters,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Phase::Data => "data",
            Phase::LocalGradient => "local gradient",
            Phase::ReducedGradient => "reduced gradient",
            Phase::Norm => "norm",
            Phase::Schedule => "schedule",
            Phase::Optimizer => "optimizer",
            Phase::Parameters => "parameters",
        })
    }
}

/// Ranks `first..=last`.
pub type RankRange = (u32, u32);

/// One line of `digests.jsonl`. Ranks that hold the same value share a line, so a healthy run has one line per
/// step, phase and tensor; a second line for the same three is a replica that has parted from the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DigestLine {
    pub step: u64,
    pub phase: Phase,
    pub tensor: String,
    /// For [`Phase::LocalGradient`]: which micro-batch, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// [`crate::tensor_digest`] over the tensor's blocks.
    pub digest: Digest,
    /// L2 norm of the tensor, accumulated in double precision.
    pub norm: Real,
    /// For distances between runs, where they are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sketch: Option<Sketch>,
    /// The ranks that hold this value, or, when `sharded`, that hold it together.
    pub ranks: Vec<RankRange>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sharded: bool,
}

/// Ascending ranks as ranges: `[0, 1, 2, 5]` is `[(0, 2), (5, 5)]`.
pub fn rank_ranges(ranks: impl IntoIterator<Item = u32>) -> Vec<RankRange> {
    let mut ranges: Vec<RankRange> = Vec::new();
    for rank in ranks {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(rank) => *last = rank,
            _ => ranges.push((rank, rank)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_range() {
        assert_eq!(rank_ranges([0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
        assert!(rank_ranges([]).is_empty());
    }
}
