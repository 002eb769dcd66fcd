//! Micro-batches as tensors.

use tch::Tensor;

use super::Session;
use crate::data::{Corpus, DataError, Inputs, Split};
use crate::model::MicroBatch;

impl Session<'_> {
    /// The samples `ids` of the training or the validation part, as they look in `epochs` (see [`Corpus::batch`]).
    pub fn micro_batch(
        &self,
        split: Split,
        ids: &[u64],
        epochs: Option<&[u64]>,
    ) -> Result<MicroBatch, DataError> {
        micro_batch(&*self.corpus, split, ids, epochs)
    }
}

/// As [`Session::micro_batch`], before there is a session.
pub fn micro_batch(
    corpus: &dyn Corpus,
    split: Split,
    ids: &[u64],
    epochs: Option<&[u64]>,
) -> Result<MicroBatch, DataError> {
    let samples = corpus.batch(split, ids, epochs)?;
    let inputs = match &samples.inputs {
        Inputs::Tokens(tokens) => Tensor::from_slice(tokens),
        Inputs::Pixels(pixels) => Tensor::from_slice(pixels),
    };
    Ok(MicroBatch {
        inputs: inputs.view(samples.input_shape.as_slice()),
        targets: Tensor::from_slice(&samples.targets).view(samples.target_shape.as_slice()),
    })
}
