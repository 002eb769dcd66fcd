//! Parameters as the model reads them: each waits until its last update has arrived from the rank that made it.

use tch::{TchError, Tensor};

use super::Session;
use crate::grad::layout::Slot;
use crate::model::Weights;
use crate::reduce::Reducer;

/// The session's parameters, some of which may be under way.
pub struct Arriving<'a> {
    leaves: &'a [Tensor],
    slots: &'a [Slot],
    reducer: &'a Reducer<'a>,
}

impl Weights for Arriving<'_> {
    fn get(&self, index: usize) -> Result<&Tensor, TchError> {
        let missing = || TchError::Shape(format!("the model has no parameter number {index}"));
        let leaf = self.leaves.get(index).ok_or_else(missing)?;
        self.reducer.arrive(self.slots[index].bucket).map_err(|error| TchError::Torch(error.to_string()))?;
        Ok(leaf)
    }
}

impl Session<'_> {
    /// What the model computes with.
    pub fn weights(&self) -> Arriving<'_> {
        Arriving { leaves: self.parameters.leaves(), slots: &self.layout.slots, reducer: &self.reducer }
    }
}
