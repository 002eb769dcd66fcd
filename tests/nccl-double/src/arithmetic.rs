//! Reductions in the element's own type, one operand after the other: each partial result is rounded, as on a ring.

use crate::abi::{DataType, Reduction};

/// `total[i] = total[i] (op) operand[i]`, over raw little-endian elements.
pub fn combine(data_type: DataType, operation: Reduction, total: &mut [u8], operand: &[u8]) {
    macro_rules! integers {
        ($t:ty) => {
            each(total, operand, |a, b| {
                integer::<$t, _>(operation, <$t>::from_le_bytes(a), <$t>::from_le_bytes(b))
            })
        };
    }
    match data_type {
        DataType::Float32 => each(total, operand, |a, b| {
            (float(operation, f32::from_le_bytes(a).into(), f32::from_le_bytes(b).into()) as f32)
                .to_le_bytes()
        }),
        DataType::Float64 => each(total, operand, |a, b| {
            float(operation, f64::from_le_bytes(a), f64::from_le_bytes(b)).to_le_bytes()
        }),
        DataType::Bfloat16 => each(total, operand, |a, b| {
            let (a, b) = (bf16_to_f32(u16::from_le_bytes(a)), bf16_to_f32(u16::from_le_bytes(b)));
            f32_to_bf16(float(operation, a.into(), b.into()) as f32).to_le_bytes()
        }),
        DataType::Float16 => each(total, operand, |a, b| {
            let (a, b) = (f16_to_f32(u16::from_le_bytes(a)), f16_to_f32(u16::from_le_bytes(b)));
            f32_to_f16(float(operation, a.into(), b.into()) as f32).to_le_bytes()
        }),
        DataType::Int8 => integers!(i8),
        DataType::Uint8 => integers!(u8),
        DataType::Int32 => integers!(i32),
        DataType::Uint32 => integers!(u32),
        DataType::Int64 => integers!(i64),
        DataType::Uint64 => integers!(u64),
    }
}

/// What `ncclAvg` does after the sum.
pub fn divide(data_type: DataType, total: &mut [u8], ranks: usize) {
    let by = ranks as f64;
    match data_type {
        DataType::Float32 => {
            each(total, &[], |a, _| ((f64::from(f32::from_le_bytes(a)) / by) as f32).to_le_bytes());
        }
        DataType::Float64 => each(total, &[], |a, _| (f64::from_le_bytes(a) / by).to_le_bytes()),
        DataType::Bfloat16 => {
            each(total, &[], |a, _| f32_to_bf16(bf16_to_f32(u16::from_le_bytes(a)) / by as f32).to_le_bytes())
        }
        DataType::Float16 => {
            each(total, &[], |a, _| f32_to_f16(f16_to_f32(u16::from_le_bytes(a)) / by as f32).to_le_bytes())
        }
        // Integers: NCCL divides each operand beforehand; nobody averages them here.
        _ => {}
    }
}

/// An operand that is missing counts as zeros.
fn each<const N: usize>(total: &mut [u8], operand: &[u8], result: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let (total, _) = total.as_chunks_mut::<N>();
    let (operand, _) = operand.as_chunks::<N>();
    for (index, total) in total.iter_mut().enumerate() {
        *total = result(*total, operand.get(index).copied().unwrap_or([0; N]));
    }
}

/// Of two fp32 values a sum or a product in f64 that is rounded to fp32 is that of fp32: f64 has more than twice the bits.
fn float(operation: Reduction, a: f64, b: f64) -> f64 {
    match operation {
        Reduction::Sum | Reduction::Average => a + b,
        Reduction::Product => a * b,
        Reduction::Max => a.max(b),
        Reduction::Min => a.min(b),
    }
}

trait Integer<const N: usize>: Copy + Ord {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn bytes(self) -> [u8; N];
}

macro_rules! integer {
    ($($t:ty: $n:literal),*) => {$(
        impl Integer<$n> for $t {
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn multiply(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn bytes(self) -> [u8; $n] { self.to_le_bytes() }
        }
    )*};
}

integer!(i8: 1, u8: 1, i32: 4, u32: 4, i64: 8, u64: 8);

fn integer<T: Integer<N>, const N: usize>(operation: Reduction, a: T, b: T) -> [u8; N] {
    let result = match operation {
        Reduction::Sum | Reduction::Average => a.add(b),
        Reduction::Product => a.multiply(b),
        Reduction::Max => a.max(b),
        Reduction::Min => a.min(b),
    };
    result.bytes()
}

fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest, ties to even.
fn f32_to_bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fc0;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn f16_to_f32(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * (-24f32).exp2(),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * ((exponent - 15) as f32).exp2(),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// To nearest, ties to even.
fn f32_to_f16(value: f32) -> u16 {
    let sign = ((value.to_bits() >> 31) as u16) << 15;
    let magnitude = value.abs();
    if value.is_nan() {
        return sign | 0x7e00;
    }
    // Half of the last place above the largest number is the first that becomes infinite.
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    if magnitude < (-14f32).exp2() {
        return sign | (magnitude * 24f32.exp2()).round_ties_even() as u16;
    }
    let bits = magnitude.to_bits();
    // The exponent's bias changes from 127 to 15; a carry out of the fraction is right as it is.
    let rounded = bits + 0xfff + (bits >> 13 & 1) - (112 << 23);
    sign | (rounded >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_there_and_back() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            assert!(value.is_nan() || f32_to_f16(value) == bits, "{bits:#x} {value}");
            let value = bf16_to_f32(bits);
            assert!(value.is_nan() || f32_to_bf16(value) == bits, "{bits:#x} {value}");
        }
    }

    #[test]
    fn half_precision_rounds_to_nearest_even() {
        // Between 1 and 1 + 2^-10 (fp16), 1 and 1 + 2^-7 (bf16): ties go to the even neighbour.
        let halfway = |bits: i32| 1.0 + (-bits as f32).exp2() / 2.0;
        assert_eq!(f32_to_f16(halfway(10)), 0x3c00);
        assert_eq!(f32_to_f16(f32::from_bits(halfway(10).to_bits() + 1)), 0x3c01);
        assert_eq!(f32_to_bf16(halfway(7)), 0x3f80);
        assert_eq!(f32_to_f16(65519.0), 0x7bff);
        assert_eq!(f32_to_f16(-65520.0), 0xfc00);
    }

    #[test]
    fn sums_are_in_the_elements_type() {
        let mut total = 16_777_216f32.to_le_bytes().to_vec();
        combine(DataType::Float32, Reduction::Sum, &mut total, &1f32.to_le_bytes());
        assert_eq!(total, 16_777_216f32.to_le_bytes());
        let mut total = vec![250u8];
        combine(DataType::Uint8, Reduction::Sum, &mut total, &[10]);
        assert_eq!(total, [4]);
        let mut total = f32_to_f16(3.0).to_le_bytes().to_vec();
        combine(DataType::Float16, Reduction::Max, &mut total, &f32_to_f16(5.0).to_le_bytes());
        divide(DataType::Float16, &mut total, 2);
        assert_eq!(total, f32_to_f16(2.5).to_le_bytes());
    }
}
