//! Norms whose bits do not depend on who holds what.
//!
//! Each block's sum of squares is taken in double precision by the rank that owns the block; every rank then adds
//! the blocks' sums in the order of the model. No partial sum ever spans a shard boundary.

use lockstep_record::BLOCK_ELEMENTS;

use super::layout::Layout;
use crate::mutate::{Mutation, active};

/// Lanes that are added in parallel: fixed, because it decides the order of the additions.
const LANES: usize = 8;

/// Sum of squares of one block in double precision, along a fixed order: eight interleaved sums, then those in
/// order.
pub fn block_square_sum(block: &[f32]) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { square_sum_with_avx2(block) };
    }
    square_sum(block)
}

/// The same additions and multiplications, and so the same bits, in vectors twice as wide.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn square_sum_with_avx2(block: &[f32]) -> f64 {
    square_sum(block)
}

#[inline(always)]
fn square_sum(block: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        // Of a length that the compiler knows, so that the lanes are in vector registers.
        add_squares(&mut lanes, chunk);
    }
    add_squares(&mut lanes, rest);
    lanes.iter().sum()
}

#[inline(always)]
fn add_squares(lanes: &mut [f64; LANES], values: &[f32]) {
    for (lane, &value) in lanes.iter_mut().zip(values) {
        *lane += f64::from(value) * f64::from(value);
    }
}

/// Sums of squares of the blocks that a shard (one bucket's owned elements) consists of, in order.
pub fn square_sums(shard: &[f32]) -> Vec<f64> {
    shard.chunks(BLOCK_ELEMENTS).map(block_square_sum).collect()
}

/// The planted bug: the whole shard in one go and in single precision, as the first of its blocks' sums.
pub fn single_precision_square_sum(shard: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0; shard.len().div_ceil(BLOCK_ELEMENTS)];
    if let Some(first) = sums.first_mut() {
        *first = f64::from(shard.iter().fold(0f32, |sum, value| sum + value * value));
    }
    sums
}

/// The L2 norm of each parameter and of all together, from the sums of squares of each bucket's blocks.
pub fn norms(layout: &Layout, buckets: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let square_sum = |slot: &super::layout::Slot| sum(&buckets[slot.bucket][slot.blocks()]);
    let mut squares: Vec<f64> = layout.slots.iter().map(square_sum).collect();
    let each = squares.iter().map(|square| square.sqrt()).collect();
    if active(Mutation::BiasesNotCounted) {
        let of_bias = |slot: &super::layout::Slot| !layout.buckets[slot.bucket].decays;
        let biases = layout.slots.iter().zip(&mut squares).filter(|(slot, _)| of_bias(slot));
        biases.for_each(|(_, square)| *square = 0.0);
    }
    (each, sum(&squares).sqrt())
}

fn sum(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |sum, value| sum + value)
}

/// The factor that brings a gradient of norm `norm` down to `limit`, as `torch.nn.utils.clip_grad_norm_` computes
/// it: limit / (norm + 1e-6), at most 1.
pub fn clip_coefficient(norm: f64, limit: Option<f64>) -> f32 {
    let most = if active(Mutation::ClipAboveOne) { f64::INFINITY } else { 1.0 };
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(most) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::layout::ParameterSpec;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    #[test]
    fn it_is_the_norm() {
        let specs = [("a", vec![3, 700]), ("b", vec![50])];
        let specs = specs.map(|(name, shape)| ParameterSpec { name: name.into(), shape });
        let layout = Layout::simple(specs.to_vec(), 1 << 20);
        let buckets: Vec<Vec<f32>> = layout.buckets.iter().map(|b| vec![0.0; b.elements]).collect();
        let mut filled = buckets.clone();
        for slot in &layout.slots {
            filled[slot.bucket][slot.range()].fill(0.5);
        }
        let sums: Vec<Vec<f64>> = filled.iter().map(|bucket| square_sums(bucket)).collect();
        let (each, all) = norms(&layout, &sums);
        assert_relative_eq!(each[0], (2100f64 / 4.0).sqrt());
        assert_relative_eq!(all, (2150f64 / 4.0).sqrt());
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip_coefficient(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_coefficient(4.0, None), 1.0);
        assert_relative_eq!(clip_coefficient(4.0, Some(1.0)), 0.25, epsilon = 1e-6);
        // A norm that is not finite ends the run before it could clip.
        assert_eq!(clip_coefficient(f64::NAN, Some(1.0)), 1.0);
    }

    proptest! {
        #[test]
        fn wider_vectors_change_no_bit(values in prop::collection::vec(-1e20f32..1e20, 0..100)) {
            prop_assert_eq!(block_square_sum(&values).to_bits(), square_sum(&values).to_bits());
        }

        #[test]
        fn shards_yield_the_same_sums(values in prop::collection::vec(-1e3f32..1e3, 1..6), parts in 1usize..7) {
            let bucket: Vec<f32> = (0..8 * BLOCK_ELEMENTS).map(|i| values[i % values.len()] / (i + 1) as f32).collect();
            let sharded: Vec<f64> = (0..parts)
                .map(|part| crate::partition::share(8, parts, part))
                .flat_map(|blocks| square_sums(&bucket[blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS]))
                .collect();
            prop_assert_eq!(sharded, square_sums(&bucket));
        }
    }
}
