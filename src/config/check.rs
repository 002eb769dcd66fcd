//! One value against its key: type, choices and bounds, all from the schema.

use serde_json::{Number, Value};

use super::document::shown;
use super::error::Problem;
use super::keys::{Key, Keys, Kind};
use super::suggest::nearest_choice;

/// Problems of single values, in the order of the schema. A key that `lookup` does not know is skipped.
pub fn check_values<'a>(lookup: impl Fn(&str) -> Option<&'a Value>) -> Vec<Problem> {
    let problem = |key: &Key| lookup(&key.name).and_then(|value| check(key, value).err());
    Keys::get().keys.iter().filter_map(problem).collect()
}

/// Whether `key` takes `value`.
pub fn check(key: &Key, value: &Value) -> Result<(), Problem> {
    let mut texts = value.as_array().into_iter().flatten().chain([value]).filter_map(Value::as_str);
    if let Some(separator) = texts.find_map(|text| text.chars().find(is_line_separator)) {
        let found = format!("found the line separator U+{:04X}", separator as u32);
        return Err(Problem::new(key.name.as_str(), found, "remove it, or write a newline (\\n) for it"));
    }
    if accepts(key, value) {
        return Ok(());
    }
    let near = value.as_str().and_then(|word| nearest_choice(&key.kind, word));
    let remedy = match near {
        Some(word) => format!("did you mean {word}? It takes {key}"),
        None => format!("give {key}"),
    };
    Err(Problem::new(key.name.as_str(), format!("found {}", described(value)), remedy))
}

/// A line break in YAML 1.1 and not in 1.2: a text with one in it is read back differently by different
/// libraries, so that a run could not be resumed from its own record.
fn is_line_separator(c: &char) -> bool {
    matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn accepts(key: &Key, value: &Value) -> bool {
    match (&key.kind, value) {
        (_, Value::Null) => key.nullable,
        (Kind::Text, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) => true,
        (Kind::Choice(choices), Value::String(word)) => choices.iter().any(|choice| choice.word == *word),
        (Kind::Whole(bounds), Value::Number(number)) => number.is_u64() && bounds.contain(number),
        (Kind::Number(bounds), Value::Number(number)) => {
            as_double(number).is_some_and(|n| bounds.contain(&n))
        }
        (Kind::Numbers(count), Value::Array(values)) => {
            values.len() as u64 == *count && values.iter().all(Value::is_number)
        }
        (Kind::Texts, Value::Array(values)) => values.iter().all(Value::is_string),
        _ => false,
    }
}

fn as_double(number: &Number) -> Option<Number> {
    number.as_f64().and_then(Number::from_f64)
}

/// A value as a message shows it.
pub fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", shown(text)),
        value => shown(&value.to_string()),
    }
}

/// The value of a dotted key in a configuration that was written out as a tree.
pub fn get<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(tree, |node, name| node.get(name))
}
