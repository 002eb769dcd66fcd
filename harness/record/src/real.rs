//! A float that survives JSON with every bit.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A double that is written as a JSON number when finite (the shortest decimal that reads back to the same
/// bits) and as the string `"0x7ff8000000000000"` when it is an infinity or a NaN, which JSON cannot express.
/// Two values are equal when their bits are: a NaN equals itself, and −0 differs from +0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real(pub f64);

impl Real {
    /// The bits that equality is about.
    pub fn bits(self) -> u64 {
        self.0.to_bits()
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Real {}

impl From<f64> for Real {
    fn from(value: f64) -> Self {
        Self(value)
    }
}

impl std::fmt::Display for Real {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for Real {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f64(self.0)
        } else {
            serializer.serialize_str(&format!("{:#018x}", self.bits()))
        }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Real;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter
                    .write_str("a number, or the bits of a non-finite one such as \"0x7ff0000000000000\"")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Real, E> {
                Ok(Real(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Real, E> {
                text.strip_prefix("0x")
                    .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                    .map(|bits| Real(f64::from_bits(bits)))
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_bit_pattern_survives_json(bits: u64) {
            let value = Real(f64::from_bits(bits));
            let text = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(serde_json::from_str::<Real>(&text).unwrap(), value);
        }
    }

    #[test]
    fn a_nan_equals_itself_and_zeros_differ_by_sign() {
        assert_eq!(Real(f64::NAN), Real(f64::NAN));
        assert_ne!(Real(0.0), Real(-0.0));
    }

    #[test]
    fn other_strings_are_refused() {
        assert!(serde_json::from_str::<Real>("\"NaN\"").is_err());
    }
}
