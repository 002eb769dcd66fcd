//! Micro-batches as tensors.

use tch::Tensor;

use super::Session;
use crate::data::{DataError, Split};
use crate::model::MicroBatch;

impl Session<'_> {
    /// The samples `ids` of the training or the validation part.
    pub fn micro_batch(&self, split: Split, ids: &[u64]) -> Result<MicroBatch, DataError> {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        self.corpus.fill(split, ids, &mut inputs, &mut targets)?;
        let shape = [ids.len() as i64, self.config.model.context as i64];
        Ok(MicroBatch {
            inputs: Tensor::from_slice(&inputs).view(shape),
            targets: Tensor::from_slice(&targets).view(shape),
        })
    }
}
