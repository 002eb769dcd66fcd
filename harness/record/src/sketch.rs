//! Sketches: eight numbers a tensor from which the distance of two tensors can be estimated without either.
//!
//! A random projection (Johnson and Lindenstrauss 1984) in the form of a count sketch (Charikar et al. 2002; Thorup and
//! Zhang 2004): each element is added, with a random sign, to one random bin of eight. The sketch of a difference is the
//! difference of the sketches, and the square sum of its bins has the squared distance as its mean. All runs use the same
//! signs and bins, whatever their seed.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::{BLOCK_ELEMENTS, Real};

/// Numbers in a sketch. The estimate of a squared distance has a relative standard deviation of √(2/8) = 1/2.
pub const SKETCH_BINS: usize = 8;
/// Elements that one hash of 128 bits serves, four bits each.
const NIBBLES: usize = 32;

/// The sketch of one block, before it is turned by its place in the tensor.
pub type BlockSketch = [f64; SKETCH_BINS];

/// The sketch of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch(pub [Real; SKETCH_BINS]);

/// Bin (low three bits) and sign (bit 3) of each element of a block: element `i` has nibble `i % 32`, the lowest first, of
/// XXH3-128 (seed 0) of `i / 32` as eight little-endian bytes.
static CODES: LazyLock<[u8; BLOCK_ELEMENTS]> = LazyLock::new(|| {
    std::array::from_fn(|element| {
        let hash = XxHash3_128::oneshot(&((element / NIBBLES) as u64).to_le_bytes());
        (hash >> (4 * (element % NIBBLES))) as u8 & 15
    })
});

/// The sums of one block's elements, at most [`BLOCK_ELEMENTS`], in order and in double precision.
pub fn block_sketch(elements: &[f32]) -> BlockSketch {
    let mut bins = [0.0; SKETCH_BINS];
    // The sign is a factor, since a processor cannot guess which way a random branch goes.
    for (&element, &code) in elements.iter().zip(CODES.iter()) {
        bins[usize::from(code & 7)] += f64::from(element) * [1.0, -1.0][usize::from(code >> 3 & 1)];
    }
    bins
}

impl Sketch {
    /// Of a tensor, from its blocks in order. Each block's bins are turned and signed by its number, so that what repeats
    /// from block to block does not add up: XXH3-128 (seed 1) of the number as eight little-endian bytes has by how many
    /// bins in its low three bits, and the sign in bit 3.
    pub fn of_blocks(blocks: impl IntoIterator<Item = BlockSketch>) -> Self {
        let mut bins = [0.0; SKETCH_BINS];
        for (number, block) in (0u64..).zip(blocks) {
            let code = XxHash3_128::oneshot_with_seed(1, &number.to_le_bytes()) as usize & 15;
            for (bin, sum) in block.into_iter().enumerate() {
                bins[(bin + code) % SKETCH_BINS] += if code & 8 == 0 { sum } else { -sum };
            }
        }
        Self(bins.map(Real))
    }

    /// Of a tensor's elements.
    pub fn of(elements: &[f32]) -> Self {
        Self::of_blocks(elements.chunks(BLOCK_ELEMENTS).map(block_sketch))
    }

    /// The estimate of the Euclidean distance of the two tensors; NaN or infinite if either has such an element.
    pub fn distance(&self, other: &Self) -> f64 {
        let squares = self.0.iter().zip(&other.0).map(|(left, right)| (left.0 - right.0).powi(2));
        squares.sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let value =
            |i: u64| (XxHash3_128::oneshot_with_seed(seed, &i.to_le_bytes()) as i32) as f32 / 2f32.powi(31);
        (0..count as u64).map(value).collect()
    }

    fn norm(elements: &[f32]) -> f64 {
        elements.iter().map(|&element| f64::from(element).powi(2)).sum::<f64>().sqrt()
    }

    /// Pinned so that a writer of the record in another language can be checked against the same numbers.
    #[test]
    fn the_definition_is_pinned() {
        assert_eq!(CODES[..8], [2, 11, 5, 6, 6, 5, 3, 0]);
        let ramp: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        let expected = [43551.0, 43033.0, 22469.0, 16864.0, -13937.0, -23817.0, -2008.0, 33893.0];
        assert_eq!(Sketch::of(&ramp).0.map(|bin| bin.0), expected);
    }

    #[test]
    fn codes_are_even() {
        for bin in 0..16 {
            let count = CODES.iter().filter(|&&code| code == bin).count();
            assert!((40..90).contains(&count), "{bin}: {count}");
        }
    }

    /// Over many differences, random and regular ones, the estimate of the square is right on average, and never far off.
    #[test]
    fn the_distance_is_estimated_without_bias() {
        let regular = |period: usize| -> Vec<f32> {
            (0..5000).map(|i| if i % period == 0 { 1.0 } else { 0.0 }).collect()
        };
        let mut differences: Vec<Vec<f32>> = (0..300).map(|seed| values(seed, 5000)).collect();
        differences.extend((1..300).map(regular));
        let base = values(1000, 5000);
        let ratios: Vec<f64> = differences
            .iter()
            .map(|difference| {
                let moved: Vec<f32> = base.iter().zip(difference).map(|(a, b)| a + b).collect();
                let truth: Vec<f32> = base.iter().zip(&moved).map(|(a, b)| a - b).collect();
                (Sketch::of(&base).distance(&Sketch::of(&moved)) / norm(&truth)).powi(2)
            })
            .collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        assert!((mean - 1.0).abs() < 0.15, "{mean}");
        assert!(ratios.iter().all(|&ratio| (0.02..6.0).contains(&ratio)), "{ratios:?}");
    }

    /// Where bins collide least: one element that differs is seen in full.
    #[test]
    fn one_element_is_measured_exactly() {
        let base = vec![0f32; 4000];
        for element in [0, 1023, 1024, 3999] {
            let mut other = base.clone();
            other[element] = 0.25;
            assert_eq!(Sketch::of(&base).distance(&Sketch::of(&other)), 0.25);
        }
    }

    proptest! {
        #[test]
        fn however_blocks_are_spread_the_sketch_is_the_same(count in 1usize..5000, cut in 0usize..6) {
            let elements = values(7, count);
            let (left, right) = elements.split_at((cut * BLOCK_ELEMENTS).min(count));
            let blocks = |part: &[f32]| part.chunks(BLOCK_ELEMENTS).map(block_sketch).collect::<Vec<_>>();
            prop_assert_eq!(Sketch::of_blocks([blocks(left), blocks(right)].concat()), Sketch::of(&elements));
        }

        #[test]
        fn json_keeps_every_bit(bits: [u64; SKETCH_BINS]) {
            let sketch = Sketch(bits.map(|bits| Real(f64::from_bits(bits))));
            let text = serde_json::to_string(&sketch).unwrap();
            prop_assert_eq!(serde_json::from_str::<Sketch>(&text).unwrap(), sketch);
        }
    }
}
