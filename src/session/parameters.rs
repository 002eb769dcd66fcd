//! The model's parameters: leaves of autograd that lie in flat buckets.

use lockstep_record::{BLOCK_BYTES, Digest, block_digests, tensor_digest};
use tch::Tensor;

use crate::comm::{Comm, CommError};
use crate::grad::flat::{self, Flat};
use crate::grad::home::Home;
use crate::grad::layout::Layout;
use crate::model::Initial;
use crate::mutate::{Mutation, active, strikes};
use crate::random::Stream;
use crate::torch::TorchError;

/// Buffers and the views of them that the model computes with: an update of a buffer is one of the model.
pub struct Parameters {
    buffers: Vec<Flat>,
    leaves: Vec<Tensor>,
}

impl Parameters {
    /// All zero. Frozen ones take no part in autograd.
    pub fn new(layout: &Layout, home: Home) -> Self {
        let buffers = flat::zeros(layout, home);
        let leaf = |index: usize| {
            let (slot, spec) = (&layout.slots[index], &layout.parameters[index]);
            buffers[slot.bucket]
                .view(slot.range())
                .view(spec.shape.as_slice())
                .detach()
                .set_requires_grad(!layout.is_frozen(index))
        };
        let leaves = (0..layout.parameters.len()).map(leaf).collect();
        Self { buffers, leaves }
    }

    /// In the order of the model.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    pub fn buffers(&self) -> &[Flat] {
        &self.buffers
    }

    pub fn buffers_mut(&mut self) -> &mut [Flat] {
        &mut self.buffers
    }

    /// First values, each parameter from a stream of its own. The ranks share the work bucket by bucket, and everybody
    /// gets the result.
    pub fn initialise(
        &mut self,
        layout: &Layout,
        initial: &[Initial],
        seed: u64,
        comm: &dyn Comm,
    ) -> Result<(), CommError> {
        let maker = |bucket: usize| bucket % comm.size();
        for (index, (slot, initial)) in layout.slots.iter().zip(initial).enumerate() {
            if maker(slot.bucket) != comm.rank() {
                continue;
            }
            self.buffers[slot.bucket].overwrite(slot.range(), |values| match *initial {
                Initial::Constant(value) => values.fill(value),
                Initial::Normal { std } => {
                    let stream = if active(Mutation::SameWeights) { 0 } else { index as u32 };
                    Stream::initial_weights(seed, stream).fill_normal(0.0, std, values);
                }
            })?;
        }
        for (bucket, flat) in self.buffers.iter_mut().enumerate() {
            // By way of the host: it happens once.
            flat.edit(0..flat.len(), |values| comm.broadcast(maker(bucket), flat::bytes_mut(values)))??;
        }
        let lost = |mutation| strikes(mutation, comm.rank(), comm.size());
        if lost(Mutation::BroadcastLost) || lost(Mutation::UnequalStart) {
            self.lose_the_first_bucket()?;
        }
        Ok(())
    }

    /// A planted bug: zeros instead of what came.
    pub fn lose_the_first_bucket(&mut self) -> Result<(), TorchError> {
        let first = &mut self.buffers[0];
        first.overwrite(0..first.len(), |values| values.fill(0.0))
    }

    /// One digest of all buffers.
    pub fn digest(&self) -> Result<Digest, TorchError> {
        let mut blocks = Vec::new();
        for flat in &self.buffers {
            blocks.extend(block_digests(flat::bytes(&flat.read(0..flat.len())?), BLOCK_BYTES));
        }
        Ok(tensor_digest(blocks))
    }
}
