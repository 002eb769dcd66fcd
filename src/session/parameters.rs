//! The model's parameters: leaves of autograd that lie in flat buckets.

use lockstep_record::{BLOCK_BYTES, Digest, block_digests, tensor_digest};
use tch::Tensor;

use crate::comm::{Comm, CommError};
use crate::grad::flat::{self, Flat};
use crate::grad::layout::Layout;
use crate::model::Initial;
use crate::mutate::{Mutation, active, strikes};
use crate::random::Stream;

/// Buffers and the views of them that the model computes with: an update of a buffer is one of the model.
pub struct Parameters {
    buffers: Vec<Flat>,
    leaves: Vec<Tensor>,
}

impl Parameters {
    /// All zero. Frozen ones take no part in autograd.
    pub fn new(layout: &Layout) -> Self {
        let buffers = flat::zeros(layout);
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
            let values = &mut self.buffers[slot.bucket].as_mut_slice()[slot.range()];
            match *initial {
                Initial::Constant(value) => values.fill(value),
                Initial::Normal { std } => {
                    let stream = if active(Mutation::SameWeights) { 0 } else { index as u32 };
                    Stream::initial_weights(seed, stream).fill_normal(0.0, std, values);
                }
            }
        }
        let share = |(bucket, flat): (usize, &mut Flat)| {
            comm.broadcast(maker(bucket), flat::bytes_mut(flat.as_mut_slice()))
        };
        self.buffers.iter_mut().enumerate().try_for_each(share)?;
        let lost = |mutation| strikes(mutation, comm.rank(), comm.size());
        if lost(Mutation::BroadcastLost) || lost(Mutation::UnequalStart) {
            self.buffers[0].as_mut_slice().fill(0.0);
        }
        Ok(())
    }

    /// One digest of all buffers.
    pub fn digest(&self) -> Digest {
        let blocks = |flat: &Flat| block_digests(flat::bytes(flat.as_slice()), BLOCK_BYTES);
        tensor_digest(self.buffers.iter().flat_map(blocks))
    }
}
