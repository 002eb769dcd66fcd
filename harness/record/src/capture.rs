//! `capture/step-*/manifest.json`: one step in full, for finding where two runs part.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CheckpointFile, Digest, RankRange, Real, TensorEntry};

/// A capture exists once its folder has this file: it is written last, and the folder gets its final name after that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureManifest {
    /// [`crate::RECORD_VERSION`] of the writer.
    pub record_version: u32,
    pub step: u64,
    pub world_size: u32,
    /// As in [`crate::Segment`].
    pub strategy: String,
    /// L2 norm of the reduced gradient before clipping.
    pub gradient_norm: Real,
    pub clip_coefficient: Real,
    pub learning_rate: Real,
    /// In micro-batch order, whoever computed them.
    pub micro_batches: Vec<CapturedMicroBatch>,
    /// In the order in which they are reduced.
    pub buckets: Vec<CapturedBucket>,
    pub files: Vec<CheckpointFile>,
    /// In the order of events, and within one group in the model's order.
    pub tensors: Vec<CapturedTensor>,
}

/// One micro-batch, apart from its gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapturedMicroBatch {
    /// Who computed it.
    pub rank: u32,
    pub samples: Vec<u64>,
    /// Digest of the bytes that the model was given, as [`crate::tensor_digest`] of one block.
    pub inputs: Digest,
    pub targets: Digest,
    /// By name, of what else the model was given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, Digest>,
    /// Its share of the step's loss.
    pub loss: Real,
}

/// What is reduced as one, and who reduces which part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedBucket {
    /// Parameters in order of offset.
    pub parameters: Vec<CapturedSlot>,
    /// First element and the one after the last of each rank's shard, in elements of the bucket.
    pub shards: Vec<(u64, u64)>,
}

/// Where a parameter lies in its bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedSlot {
    pub tensor: String,
    /// In elements.
    pub offset: u64,
    /// In elements.
    pub elements: u64,
}

/// What a captured tensor is, in the order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureGroup {
    /// Parameters when the step begins.
    ParametersBefore,
    /// Optimizer state when the step begins.
    OptimizerBefore,
    /// One micro-batch's gradient, before anything is added to it.
    LocalGradient,
    /// The step's gradient before clipping.
    ReducedGradient,
    /// Optimizer state after the update.
    Optimizer,
    /// Parameters after the update.
    Parameters,
}

impl CaptureGroup {
    /// As in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::ParametersBefore => "parameters-before",
            Self::OptimizerBefore => "optimizer-before",
            Self::LocalGradient => "local-gradient",
            Self::ReducedGradient => "reduced-gradient",
            Self::Optimizer => "optimizer",
            Self::Parameters => "parameters",
        }
    }
}

/// One value of one tensor. A second entry of the same group, micro-batch and name is a replica that has parted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedTensor {
    pub group: CaptureGroup,
    /// Of local gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// The ranks that hold this value, or, when `sharded`, that hold it together.
    pub ranks: Vec<RankRange>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sharded: bool,
    /// Named `wte.weight`, or `exp_avg/wte.weight` for optimizer state.
    #[serde(flatten)]
    pub tensor: TensorEntry,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Piece;

    /// The form that `docs/run-record.md` shows.
    #[test]
    fn a_tensor_reads_back() {
        let tensor = CapturedTensor {
            group: CaptureGroup::LocalGradient,
            micro_batch: Some(3),
            ranks: vec![(1, 1)],
            sharded: false,
            tensor: TensorEntry {
                name: "wte.weight".into(),
                dtype: "F32".into(),
                shape: vec![70, 50],
                digest: Digest(7),
                pieces: vec![Piece { file: "f".into(), key: "k".into(), offset: 0, length: 3500 }],
            },
        };
        let text = serde_json::to_string(&tensor).unwrap();
        assert!(
            text.starts_with(
                r#"{"group":"local-gradient","micro_batch":3,"ranks":[[1,1]],"name":"wte.weight""#
            ),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<CapturedTensor>(&text).unwrap(), tensor);
    }

    #[test]
    fn groups_are_spelled_in_files_as_in_the_manifest() {
        for group in [
            CaptureGroup::ParametersBefore,
            CaptureGroup::OptimizerBefore,
            CaptureGroup::LocalGradient,
            CaptureGroup::ReducedGradient,
            CaptureGroup::Optimizer,
            CaptureGroup::Parameters,
        ] {
            assert_eq!(serde_json::to_value(group).unwrap(), group.name());
        }
    }
}
