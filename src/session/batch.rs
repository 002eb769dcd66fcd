//! Micro-batches as tensors.

use tch::Tensor;

use super::Session;
use crate::config::Config;
use crate::data::{Corpus, DataError, Split};
use crate::model::MicroBatch;

impl Session<'_> {
    /// The samples `ids` of the training or the validation part.
    pub fn micro_batch(&self, split: Split, ids: &[u64]) -> Result<MicroBatch, DataError> {
        micro_batch(&self.corpus, self.config, split, ids)
    }
}

/// As [`Session::micro_batch`], before there is a session.
pub fn micro_batch(
    corpus: &Corpus,
    config: &Config,
    split: Split,
    ids: &[u64],
) -> Result<MicroBatch, DataError> {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    corpus.fill(split, ids, &mut inputs, &mut targets)?;
    let shape = [ids.len() as i64, config.model.context as i64];
    Ok(MicroBatch {
        inputs: Tensor::from_slice(&inputs).view(shape),
        targets: Tensor::from_slice(&targets).view(shape),
    })
}
