//! Parameters as the model reads them: each waits until its last update has arrived from the rank that made it, and is
//! where the model computes.

use std::cell::OnceCell;

use tch::{Device, TchError, Tensor};

use super::Session;
use crate::grad::layout::Slot;
use crate::model::{Dropout, MicroBatch, Weights};
use crate::reduce::Reducer;

/// The session's parameters, some of which may be under way.
pub struct Arriving<'a> {
    leaves: &'a [Tensor],
    slots: &'a [Slot],
    reducer: &'a Reducer<'a>,
    device: Device,
    /// On a GPU whose buckets lie in the host's memory: copies, which autograd knows to be copies. Backward brings each
    /// gradient back to its leaf, where hooks, buckets and updates are as on the CPU.
    copies: Vec<OnceCell<Tensor>>,
}

impl Weights for Arriving<'_> {
    fn get(&self, index: usize) -> Result<&Tensor, TchError> {
        let missing = || TchError::Shape(format!("the model has no parameter number {index}"));
        let leaf = self.leaves.get(index).ok_or_else(missing)?;
        self.reducer.arrive(self.slots[index].bucket).map_err(|error| TchError::Torch(error.to_string()))?;
        if leaf.device() == self.device {
            return Ok(leaf);
        }
        let place = &self.copies[index];
        if place.get().is_none() {
            let _ = place.set(leaf.f_to_device(self.device)?);
        }
        place.get().ok_or_else(missing)
    }
}

impl Session<'_> {
    /// What the model computes one micro-batch with.
    pub fn weights(&self) -> Arriving<'_> {
        let leaves = self.parameters.leaves();
        Arriving {
            leaves,
            slots: &self.layout.slots,
            reducer: &self.reducer,
            device: self.device,
            copies: leaves.iter().map(|_| OnceCell::new()).collect(),
        }
    }

    /// The model's losses on a micro-batch of the host's memory: see [`crate::model::Model::losses`].
    pub fn losses(&self, batch: &MicroBatch, dropout: Option<&Dropout>) -> Result<Vec<Tensor>, TchError> {
        let moved = match self.device {
            Device::Cpu => None,
            device => Some(batch.to_device(device)?),
        };
        self.model.losses(&self.weights(), moved.as_ref().unwrap_or(batch), dropout)
    }
}
