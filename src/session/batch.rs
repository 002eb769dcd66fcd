//! Micro-batches as tensors.

use tch::Tensor;

use super::Session;
use crate::data::{ActionSamples, Corpus, DataError, Inputs, Split};
use crate::model::{ActionChunks, MicroBatch};
use crate::mutate::{Mutation, active};

impl Session<'_> {
    /// The samples `ids` of the training or the validation part, as they look in `epochs` (see [`Corpus::batch`]).
    pub fn micro_batch(
        &self,
        split: Split,
        ids: &[u64],
        epochs: Option<&[u64]>,
    ) -> Result<MicroBatch, DataError> {
        let rank = self.comm.rank() as u64;
        if active(Mutation::FlowNoiseByRank) {
            let epochs = epochs.map(|epochs| epochs.iter().map(|epoch| epoch + rank).collect::<Vec<_>>());
            return micro_batch(&*self.corpus, split, ids, epochs.as_deref());
        }
        micro_batch(&*self.corpus, split, ids, epochs)
    }

    /// How many targets these samples of the training or the validation part have, for each of the model's losses.
    pub fn targets<'i>(
        &self,
        split: Split,
        micro_batches: impl IntoIterator<Item = &'i Vec<u64>>,
    ) -> Result<Vec<u64>, DataError> {
        let mut all = vec![0; self.model.terms().len()];
        for ids in micro_batches {
            for (sum, count) in all.iter_mut().zip(self.corpus.targets(split, ids)?) {
                *sum += count;
            }
        }
        Ok(all)
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
        actions: samples.actions.as_ref().map(chunks),
    })
}

fn chunks(samples: &ActionSamples) -> ActionChunks {
    let whole = |values: &[f32]| Tensor::from_slice(values).view(samples.shape.as_slice());
    ActionChunks {
        actions: whole(&samples.actions),
        counted: whole(&samples.counted),
        noise: whole(&samples.noise),
        times: Tensor::from_slice(&samples.times).view(&samples.shape[..2]),
    }
}
