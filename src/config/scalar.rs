//! The type of a scalar, by the core schema of YAML 1.2: `yes`, `on` and `1_000` are strings, `3e-4` is a
//! number.

use serde_json::{Number, Value};

use super::document::{Scalar, Style};

/// What a scalar says.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved {
    Value(Value),
    /// `.nan`, `.inf`, `-.inf`, or a number beyond the range of a double: nothing that a configuration can
    /// use.
    NotFinite,
}

/// Gives a scalar its type.
pub fn resolve(scalar: &Scalar) -> Resolved {
    if scalar.style == Style::Quoted {
        return Resolved::Value(Value::String(scalar.text.clone()));
    }
    match scalar.text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Resolved::Value(Value::Null),
        "true" | "True" | "TRUE" => Resolved::Value(Value::Bool(true)),
        "false" | "False" | "FALSE" => Resolved::Value(Value::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => Resolved::NotFinite,
        text => number(text).unwrap_or_else(|| Resolved::Value(Value::String(text.into()))),
    }
}

fn number(text: &str) -> Option<Resolved> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Some(Resolved::NotFinite);
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        if let Ok(value) = text.parse::<u64>() {
            return Some(Resolved::Value(value.into()));
        }
        if let Ok(value) = text.parse::<i64>() {
            return Some(Resolved::Value(value.into()));
        }
    } else if let Some(value) = radix(text) {
        return Some(Resolved::Value(value.into()));
    } else if !is_float(unsigned) {
        return None;
    }
    // Integers beyond 64 bits come here too: they are doubles, which no integer key accepts.
    let value: f64 = text.parse().ok()?;
    Some(Number::from_f64(value).map_or(Resolved::NotFinite, |number| Resolved::Value(Value::Number(number))))
}

fn radix(text: &str) -> Option<u64> {
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 8),
        _ => return None,
    };
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// `[0-9]+(\.[0-9]*)?` or `\.[0-9]+`, then an optional exponent.
fn is_float(unsigned: &str) -> bool {
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    is_digits(whole)
        && is_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| !exponent.is_empty() && is_digits(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn plain(text: &str) -> Resolved {
        resolve(&Scalar { text: text.into(), style: Style::Plain })
    }

    #[test]
    fn core_schema() {
        let cases = [
            ("12", json!(12)),
            ("-3", json!(-3)),
            ("+7", json!(7)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("017", json!(17)),
            ("18446744073709551615", json!(u64::MAX)),
            ("3e-4", json!(3e-4)),
            ("3.0E+4", json!(3e4)),
            (".5", json!(0.5)),
            ("5.", json!(5.0)),
            ("", json!(null)),
            ("~", json!(null)),
            ("True", json!(true)),
        ];
        for (text, expected) in cases {
            assert_eq!(plain(text), Resolved::Value(expected), "{text}");
        }
        for text in
            ["yes", "on", "1_000", "1e", ".", "-", "e5", "0x", "0x+1", "infinity", "nan", "1.2.3", "--1"]
        {
            assert_eq!(plain(text), Resolved::Value(json!(text)), "{text}");
        }
        for text in [".nan", ".inf", "-.inf", "+.INF", "1e999", "-1e999"] {
            assert_eq!(plain(text), Resolved::NotFinite, "{text}");
        }
        let quoted = resolve(&Scalar { text: "12".into(), style: Style::Quoted });
        assert_eq!(quoted, Resolved::Value(json!("12")));
    }

    proptest! {
        #[test]
        fn every_double_reads_back_with_its_bits(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let Resolved::Value(Value::Number(number)) = plain(&format!("{value:e}")) else {
                return Err(TestCaseError::fail("not a number"));
            };
            prop_assert_eq!(number.as_f64().unwrap().to_bits() << 1, bits << 1);
        }

        #[test]
        fn nothing_panics(text in "[-+.0-9eExo_a-f]{0,40}|\\PC{0,40}") {
            let _ = plain(&text);
        }
    }
}
