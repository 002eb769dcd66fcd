//! Rounding to 16 bits and back.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use tch::Kind;

/// Elements that are rounded in place at a time: they stay in the processor's first cache.
const STRETCH: usize = 1024;

/// How a number looks in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The upper half of an fp32: its range, 8 significant bits.
    Bf16,
    /// IEEE 754 binary16: 11 significant bits, up to 65504, steps of 6e-8 near zero.
    Fp16,
}

impl Format {
    /// libtorch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::Fp16 => Kind::Half,
        }
    }

    /// Rounds to the nearest, ties to even. What is too large becomes infinite, as PyTorch's `Tensor.to` has it.
    pub fn round(self, values: &[f32], rounded: &mut [u16]) {
        match self {
            Self::Bf16 => rounded.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
            Self::Fp16 => rounded.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
        }
    }

    /// Back to fp32, which is exact.
    pub fn widen(self, rounded: &[u16], values: &mut [f32]) {
        match self {
            Self::Bf16 => rounded.reinterpret_cast::<bf16>().convert_to_f32_slice(values),
            Self::Fp16 => rounded.reinterpret_cast::<f16>().convert_to_f32_slice(values),
        }
    }

    /// Makes each value the nearest one that has 16 bits.
    pub fn round_in_place(self, values: &mut [f32]) {
        let mut rounded = [0u16; STRETCH];
        for values in values.chunks_mut(STRETCH) {
            let rounded = &mut rounded[..values.len()];
            self.round(values, rounded);
            self.widen(rounded, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Tensor;

    const FORMATS: [Format; 2] = [Format::Bf16, Format::Fp16];

    fn there_and_back(format: Format, values: &[f32]) -> Vec<f32> {
        let mut back = values.to_vec();
        format.round_in_place(&mut back);
        back
    }

    /// As libtorch does it, bit for bit.
    fn same_as_libtorch(values: &[f32]) {
        for format in FORMATS {
            let theirs = Tensor::from_slice(values).to_kind(format.kind()).to_kind(Kind::Float);
            let theirs = Vec::<f32>::try_from(&theirs).unwrap();
            for ((value, ours), theirs) in values.iter().zip(there_and_back(format, values)).zip(theirs) {
                let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
                assert!(same, "{format:?} of {value}: {ours}, libtorch {theirs}");
            }
        }
    }

    #[test]
    fn the_edges_are_rounded_as_in_libtorch() {
        let edges =
            [0.0, 65504.0, 65519.0, 65520.0, 5.96e-8, 2.98e-8, 2.98023e-8, 6.1e-5, 257.0 / 256.0, 1e-45];
        let special = [f32::MAX, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, -0.0];
        let all: Vec<f32> = edges.into_iter().chain(special).flat_map(|value| [value, -value]).collect();
        same_as_libtorch(&all);
    }

    proptest! {
        #[test]
        fn any_number_is_rounded_as_in_libtorch(bits in proptest::collection::vec(any::<u32>(), 1..200)) {
            same_as_libtorch(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        }

        /// What lets a sum be formed in fp32 and rounded after each addition: it is the sum that 16-bit arithmetic yields.
        #[test]
        fn a_rounded_sum_is_the_sum_of_16_bit_arithmetic(bits in proptest::collection::vec(any::<(u16, u16)>(), 1..200)) {
            for format in FORMATS {
                let (left, right): (Vec<u16>, Vec<u16>) = bits.iter().copied().unzip();
                let wide = |narrow: &[u16]| { let mut wide = vec![0.0; narrow.len()]; format.widen(narrow, &mut wide); wide };
                let (left, right) = (wide(&left), wide(&right));
                let mut ours: Vec<f32> = left.iter().zip(&right).map(|(left, right)| left + right).collect();
                format.round_in_place(&mut ours);
                let narrow = |values: &[f32]| Tensor::from_slice(values).to_kind(format.kind());
                let theirs = Vec::<f32>::try_from((narrow(&left) + narrow(&right)).to_kind(Kind::Float)).unwrap();
                for (ours, theirs) in ours.iter().zip(theirs) {
                    prop_assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{ours} {theirs}");
                }
            }
        }
    }
}
