//! A rank's own micro-batches: their gradients are taken from autograd and added up along the tree.

use tch::Tensor;

use super::flat::{self, Flat};
use super::layout::Layout;
use super::tree::{Accumulation, LeafPlan};
use super::unused::Usage;
use crate::torch::{TorchError, take_grad};

/// Partial sums of one rank: `slots[slot][bucket]`.
pub struct Accumulator {
    plan: Accumulation,
    slots: Vec<Vec<Flat>>,
}

impl Accumulator {
    pub fn new(plan: Accumulation, layout: &Layout) -> Self {
        Self { slots: (0..plan.slots).map(|_| flat::zeros_of_trained(layout)).collect(), plan }
    }

    /// Takes the gradients that backward left in the `leaves` (the model's parameters) for the `local`-th owned
    /// micro-batch. A missing one counts as zero, and is noted in `usage`. Calls `seen` with each trained parameter's
    /// gradient as it came from autograd.
    pub fn take(
        &mut self,
        layout: &Layout,
        leaves: &mut [Tensor],
        local: usize,
        usage: &mut Usage,
        mut seen: impl FnMut(usize, &[f32]),
    ) -> Result<(), TorchError> {
        let LeafPlan { slot, stores, merges } = &self.plan.leaves[local];
        for index in layout.trained() {
            let gradient = take_grad(&mut leaves[index])?;
            usage.note(index, gradient.is_some());
            let gradient = gradient.unwrap_or_else(|| leaves[index].zeros_like()).contiguous();
            let gradient = flat::elements(&gradient);
            seen(index, gradient);
            let place = &layout.slots[index];
            let sum = &mut self.slots[*slot][place.bucket].as_mut_slice()[place.range()];
            match stores {
                true => sum.copy_from_slice(gradient),
                false => flat::add(sum, gradient),
            }
        }
        for merge in merges {
            let (sums, others) = self.slots.split_at_mut(merge.from);
            for (sum, other) in sums[merge.into].iter_mut().zip(&others[0]) {
                flat::add(sum.as_mut_slice(), other.as_slice());
            }
        }
        Ok(())
    }

    /// This rank's partial sums of one bucket, in leaf order.
    pub fn partials(&self, bucket: usize) -> impl ExactSizeIterator<Item = &[f32]> {
        self.slots[..self.plan.partials.len()].iter().map(move |slot| slot[bucket].as_slice())
    }

    /// Where the step's gradient ends up: the first slot.
    pub fn gradient(&self) -> &[Flat] {
        &self.slots[0]
    }

    pub fn gradient_mut(&mut self) -> &mut [Flat] {
        &mut self.slots[0]
    }
}
