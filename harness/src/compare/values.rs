//! Two values beside each other: as decimals, as bits, and how far apart.

use lockstep_record::{Digest, Real};
use serde::{Serialize, Serializer};

/// How a floating-point value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    F64,
    F32,
    Bf16,
    F16,
}

impl Format {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// One floating-point value, in its own format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar {
    pub format: Format,
    /// The value's bits, in the low end.
    pub bits: u64,
}

impl Scalar {
    /// A recorded number. One that came out of fp32 is shown, and counted in ulps, as fp32.
    pub fn of_real(value: Real, format: Format) -> Self {
        match format {
            Format::F32 if fits_f32(value.0) => Self { format, bits: u64::from((value.0 as f32).to_bits()) },
            _ => Self { format: Format::F64, bits: value.bits() },
        }
    }

    /// From little-endian bytes, as many as the format has.
    pub fn from_le(format: Format, bytes: &[u8]) -> Self {
        let bits = bytes.iter().rev().fold(0u64, |bits, byte| (bits << 8) | u64::from(*byte));
        Self { format, bits }
    }

    /// The value in double precision: exact for every format.
    pub fn to_f64(self) -> f64 {
        match self.format {
            Format::F64 => f64::from_bits(self.bits),
            Format::F32 => f64::from(f32::from_bits(self.bits as u32)),
            Format::Bf16 => f64::from(f32::from_bits((self.bits as u32) << 16)),
            Format::F16 => f16_to_f64(self.bits as u16),
        }
    }

    /// Representable values from `self` to `other`: 1 for neighbours. None across formats and for NaN.
    pub fn ulps(self, other: Self) -> Option<u64> {
        if self.format != other.format || self.to_f64().is_nan() || other.to_f64().is_nan() {
            return None;
        }
        Some(self.ordinal().abs_diff(other.ordinal()))
    }

    /// Position on the number line: consecutive integers for consecutive values, 0 for both zeros.
    fn ordinal(self) -> i64 {
        let sign = 1u64 << (self.format.bytes() * 8 - 1);
        let magnitude = (self.bits & (sign - 1)) as i64;
        if self.bits & sign == 0 { magnitude } else { -magnitude }
    }
}

fn fits_f32(value: f64) -> bool {
    f64::from(value as f32).to_bits() == value.to_bits()
}

fn f16_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * (-24f64).exp2(),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * f64::from(exponent - 15).exp2(),
    }
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = self.format.bytes() * 2;
        match self.format {
            Format::F32 => write!(formatter, "{:?}", f32::from_bits(self.bits as u32))?,
            _ => write!(formatter, "{:?}", self.to_f64())?,
        }
        write!(formatter, " (0x{:0digits$x})", self.bits)
    }
}

/// What one run has where the other has something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Scalar(Scalar),
    Digest(Digest),
    /// An integer, a name, a list of sample ids, a part of a configuration.
    Text(String),
    Absent,
}

impl Value {
    pub fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(value.to_string())
    }

    pub fn optional(value: Option<impl std::fmt::Display>) -> Self {
        value.map_or(Self::Absent, Self::text)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scalar(scalar) => scalar.fmt(formatter),
            Self::Digest(digest) => digest.fmt(formatter),
            Self::Text(text) => formatter.write_str(text),
            Self::Absent => formatter.write_str("absent"),
        }
    }
}

impl Serialize for Value {
    /// `{"decimal", "bits"}`, `{"digest"}`, `{"text"}` or null.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Scalar(scalar) => {
                let text = scalar.to_string();
                let (decimal, bits) = text.split_once(" (").unwrap_or((&text, ""));
                map.serialize_entry("decimal", decimal)?;
                map.serialize_entry("bits", bits.trim_end_matches(')'))?;
                map.serialize_entry("format", &scalar.format)?;
            }
            Self::Digest(digest) => map.serialize_entry("digest", digest)?,
            Self::Text(text) => map.serialize_entry("text", text)?,
            Self::Absent => map.serialize_entry("absent", &true)?,
        }
        map.end()
    }
}

/// What counts as equal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The same bits.
    Exact,
    Tolerance(Tolerance),
    /// Within the golden run's envelope: a bound for each step and tensor.
    Auto,
}

/// `|candidate − golden| ≤ atol + rtol·|golden|`
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
    /// A bar of its own for the norm of all parameters: `|candidate − golden| < this`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter_norm_atol: Option<f64>,
}

impl Mode {
    /// Whether the two pass as equal. A NaN passes only as the same NaN, an infinity as the same one.
    pub fn accepts(self, golden: Scalar, candidate: Scalar) -> bool {
        if golden == candidate {
            return true;
        }
        let Some(allowed) = self.allowed(golden) else { return false };
        let (golden, candidate) = (golden.to_f64(), candidate.to_f64());
        golden.is_finite()
            && candidate.is_finite()
            && approx::abs_diff_eq!(candidate, golden, epsilon = allowed)
    }

    /// How far from the golden value a candidate may be, where it need not be the same.
    pub fn allowed(self, golden: Scalar) -> Option<f64> {
        match self {
            Self::Tolerance(tolerance) => Some(tolerance.atol + tolerance.rtol * golden.to_f64().abs()),
            Self::Exact | Self::Auto => None,
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact => formatter.write_str("exact"),
            Self::Auto => formatter.write_str("tolerance auto"),
            Self::Tolerance(t) => {
                write!(formatter, "rtol {:e} atol {:e}", t.rtol, t.atol)?;
                t.parameter_norm_atol.map_or(Ok(()), |bar| write!(formatter, " |Δnorm| < {bar:e}"))
            }
        }
    }
}

/// The largest distances seen, whether or not they passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Worst {
    /// In representable values of the format compared.
    pub ulps: u64,
    pub absolute: f64,
    /// Relative to the golden value.
    pub relative: f64,
    /// Distance ÷ what the tolerance allowed there; 0 where bits are demanded.
    #[serde(skip_serializing_if = "is_zero")]
    pub of_tolerance: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Worst {
    pub fn absorb(&mut self, other: &Self) {
        self.ulps = self.ulps.max(other.ulps);
        self.absolute = self.absolute.max(other.absolute);
        self.relative = self.relative.max(other.relative);
        self.of_tolerance = self.of_tolerance.max(other.of_tolerance);
    }

    pub fn note(&mut self, golden: Scalar, candidate: Scalar) {
        if golden == candidate {
            return;
        }
        self.ulps = self.ulps.max(golden.ulps(candidate).unwrap_or(u64::MAX));
        let absolute = (golden.to_f64() - candidate.to_f64()).abs();
        // A difference from or to a NaN is as large as can be, and `max` would drop it.
        let absolute = if absolute.is_nan() { f64::INFINITY } else { absolute };
        self.absolute = self.absolute.max(absolute).min(f64::MAX);
        let relative = absolute / golden.to_f64().abs();
        self.relative = self.relative.max(if relative.is_nan() { f64::MAX } else { relative }).min(f64::MAX);
    }

    /// A distance that has a limit.
    pub fn note_share(&mut self, distance: f64, allowed: f64) {
        let share = distance / allowed.max(f64::MIN_POSITIVE);
        let share = if share.is_nan() { f64::MAX } else { share };
        self.of_tolerance = self.of_tolerance.max(share).min(f64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn f32s(value: f32) -> Scalar {
        Scalar { format: Format::F32, bits: u64::from(value.to_bits()) }
    }

    fn within(rtol: f64, atol: f64) -> Mode {
        Mode::Tolerance(Tolerance { rtol, atol, parameter_norm_atol: None })
    }

    #[test]
    fn neighbours_are_one_ulp_apart_also_around_zero() {
        assert_eq!(f32s(1.0).ulps(f32s(1.0f32.next_up())), Some(1));
        assert_eq!(f32s(0.0).ulps(f32s(-0.0)), Some(0));
        assert_eq!(f32s(f32::from_bits(1)).ulps(f32s(-f32::from_bits(1))), Some(2));
        assert_eq!(f32s(f32::NAN).ulps(f32s(1.0)), None);
    }

    #[test]
    fn zeros_of_either_sign_and_nans_are_told_apart_by_bits() {
        assert!(!Mode::Exact.accepts(f32s(0.0), f32s(-0.0)));
        assert!(Mode::Exact.accepts(f32s(f32::NAN), f32s(f32::NAN)));
        assert!(!within(1.0, 1.0).accepts(f32s(f32::NAN), f32s(1.0)));
        assert!(!within(1.0, 1.0).accepts(f32s(f32::INFINITY), f32s(1.0)));
    }

    #[test]
    fn the_tolerance_is_relative_to_the_golden_value() {
        let mode = within(0.5, 0.0);
        assert!(mode.accepts(f32s(2.0), f32s(1.0)));
        assert!(!mode.accepts(f32s(1.0), f32s(2.0)));
        assert!(within(0.0, 0.25).accepts(f32s(1.0), f32s(1.25)));
        assert!(!within(0.0, 0.25).accepts(f32s(1.0), f32s(1.26)));
    }

    #[test]
    fn halves_are_read_right() {
        for (bits, value) in [(0x3c00u16, 1.0), (0xc000, -2.0), (0x0001, 2f64.powi(-24)), (0x7bff, 65504.0)] {
            assert_eq!(f16_to_f64(bits), value);
        }
        assert_eq!(Scalar::from_le(Format::Bf16, &[0x80, 0x3f]).to_f64(), 1.0);
    }

    #[test]
    fn a_value_from_fp32_is_measured_in_its_ulps() {
        let (a, b) = (Real(f64::from(0.1f32)), Real(f64::from(0.1f32.next_up())));
        assert_eq!(Scalar::of_real(a, Format::F32).ulps(Scalar::of_real(b, Format::F32)), Some(1));
        assert_eq!(Scalar::of_real(Real(0.1), Format::F32).format, Format::F64);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_zero_only_for_equals(a: f32, b: f32) {
            prop_assert_eq!(f32s(a).ulps(f32s(b)), f32s(b).ulps(f32s(a)));
            if !a.is_nan() && !b.is_nan() {
                prop_assert_eq!(f32s(a).ulps(f32s(b)) == Some(0), a == b);
            }
        }

        #[test]
        fn no_bits_panic(a: u64, b: u64) {
            for format in [Format::F64, Format::F32, Format::Bf16, Format::F16] {
                let of = |bits: u64| Scalar::from_le(format, &bits.to_le_bytes()[..format.bytes()]);
                let mut worst = Worst::default();
                worst.note(of(a), of(b));
                prop_assert!(worst.absolute >= 0.0 && worst.relative >= 0.0);
                let _ = (of(a).to_string(), within(1e-5, 1e-6).accepts(of(a), of(b)));
            }
        }
    }
}
