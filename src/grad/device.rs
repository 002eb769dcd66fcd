//! The additions of the ordered sum where buckets lie on a device: the same ones in the same order as on the host, by libtorch's
//! kernels, each over all elements at once. Element by element they are IEEE's, so the bits are those of the host's loops.
//!
//! Everything goes to the calling thread's current stream.

use std::ops::Range;

use tch::Tensor;

use super::flat::Flat;
use super::tree::{LeafSum, Merge};
use crate::mutate::{Mutation, active_from};
use crate::precision::Format;
use crate::torch::TorchError;

/// Adds one gradient, and the kept one of its left sibling, to what lies in a range of the slots.
pub fn add_leaf(
    slots: &[Flat],
    plan: &LeafSum,
    range: &Range<usize>,
    kept: Option<&Tensor>,
    gradient: &Tensor,
    format: Option<Format>,
) -> Result<(), TorchError> {
    let place = |slot: usize| slots[slot].view(range.clone());
    let gradient = gradient.f_view([-1])?;
    let mut sum = match kept {
        Some(kept) => rounded(kept.f_view([-1])?.f_add(&gradient)?, format)?,
        None => gradient,
    };
    for &slot in &plan.left {
        // The last one takes the sum: no memory is needed for it.
        if slot == plan.into {
            return add(&mut place(slot), &sum, format);
        }
        sum = rounded(place(slot).f_add(&sum)?, format)?;
    }
    match plan.left.is_empty() && active_from(Mutation::ZeroGradSkipped, 2) {
        false => Ok(place(plan.into).f_copy_(&sum)?),
        true => add(&mut place(plan.into), &sum, None),
    }
}

/// Does all merges in their order: of `slots`, the later one is added to the earlier.
pub fn merge(slots: &mut [Tensor], merges: &[Merge], format: Option<Format>) -> Result<(), TorchError> {
    for &Merge { into, from } in merges {
        let (sums, others) = slots.split_at_mut(from);
        add(&mut sums[into], &others[0], format)?;
    }
    Ok(())
}

/// `sum += other`, rounded to a 16-bit format if there is one.
fn add(sum: &mut Tensor, other: &Tensor, format: Option<Format>) -> Result<(), TorchError> {
    // What comes back is another handle of `sum`.
    drop(sum.f_add_(other)?);
    match format {
        None => Ok(()),
        Some(format) => Ok(sum.f_copy_(&sum.f_to_kind(format.kind())?)?),
    }
}

fn rounded(sum: Tensor, format: Option<Format>) -> Result<Tensor, TorchError> {
    match format {
        None => Ok(sum),
        Some(format) => Ok(sum.f_to_kind(format.kind())?.f_to_kind(tch::Kind::Float)?),
    }
}
