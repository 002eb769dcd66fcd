//! The table of keys, derived from the types in [`super::schema`]: what unknown keys are compared with, what
//! bounds are checked, and what the reference documentation lists.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Number, Value};

use super::schema::Config;

/// A key of the configuration, such as `optim.lr`.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Dotted.
    pub name: String,
    /// From the field's doc comment.
    pub meaning: String,
    pub kind: Kind,
    /// Whether null is a value.
    pub nullable: bool,
}

/// What values a key takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Text,
    Boolean,
    Whole(Bounds),
    Number(Bounds),
    Choice(Vec<Choice>),
    /// A list of this many numbers.
    Numbers(u64),
    /// A list of texts, of any length.
    Texts,
}

/// One word that a key takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub word: String,
    pub meaning: String,
}

/// Limits of a number, as the schema writes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bounds {
    pub minimum: Option<Number>,
    pub maximum: Option<Number>,
    pub above: Option<Number>,
    pub below: Option<Number>,
}

impl Bounds {
    fn from_schema(schema: &Map<String, Value>) -> Self {
        let number = |name: &str| schema.get(name).and_then(Value::as_number).cloned();
        Self {
            minimum: number("minimum"),
            maximum: number("maximum"),
            above: number("exclusiveMinimum"),
            below: number("exclusiveMaximum"),
        }
    }

    /// Whether `value` is inside. A NaN is not.
    pub fn contain(&self, value: &Number) -> bool {
        let order = |limit: &Number| compare(value, limit);
        let ordered = |limit: &Option<Number>, wanted: &[std::cmp::Ordering]| {
            limit.as_ref().is_none_or(|limit| order(limit).is_some_and(|order| wanted.contains(&order)))
        };
        use std::cmp::Ordering::{Equal, Greater, Less};
        ordered(&self.minimum, &[Equal, Greater])
            && ordered(&self.maximum, &[Equal, Less])
            && ordered(&self.above, &[Greater])
            && ordered(&self.below, &[Less])
    }
}

/// Whole numbers are compared as such: a double cannot tell 2^63 - 1 from 2^63.
fn compare(left: &Number, right: &Number) -> Option<std::cmp::Ordering> {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limits = [
            (" from ", &self.minimum),
            (" above ", &self.above),
            (" to ", &self.maximum),
            (" below ", &self.below),
        ];
        for (word, limit) in limits {
            if let Some(limit) = limit {
                // A double that is whole is written as such: 1000000, not 1000000.0.
                let text = limit.to_string();
                write!(formatter, "{word}{}", text.strip_suffix(".0").unwrap_or(&text))?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Key {
    /// What the key takes, in words: `a number above 0, or null`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Text => write!(formatter, "text")?,
            Kind::Boolean => write!(formatter, "true or false")?,
            Kind::Whole(bounds) => write!(formatter, "a whole number{bounds}")?,
            Kind::Number(bounds) => write!(formatter, "a number{bounds}")?,
            Kind::Numbers(count) => write!(formatter, "a list of {count} numbers")?,
            Kind::Texts => write!(formatter, "a list of texts")?,
            Kind::Choice(choices) => {
                let words: Vec<&str> = choices.iter().map(|choice| choice.word.as_str()).collect();
                write!(formatter, "{}", words.join(" | "))?;
            }
        }
        if self.nullable { write!(formatter, ", or null") } else { Ok(()) }
    }
}

/// A section, or the group of keys outside any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub meaning: String,
}

/// Every key and section of the schema, in its order.
#[derive(Debug)]
pub struct Keys {
    pub keys: Vec<Key>,
    pub sections: Vec<Section>,
}

impl Keys {
    /// The table of [`Config`].
    pub fn get() -> &'static Self {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(|| {
            let generator =
                SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator();
            let schema = generator.into_root_schema_for::<Config>().to_value();
            let mut keys = Keys { keys: Vec::new(), sections: Vec::new() };
            collect(&mut keys, "", &schema);
            keys
        })
    }

    pub fn find(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    pub fn is_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }
}

/// The schema is one that this program generated from its own types: a field that is no kind of value known
/// here is a programmer's mistake, which the tests below find.
fn collect(into: &mut Keys, prefix: &str, schema: &Value) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    // `required` keeps the order of the fields; the properties are sorted.
    let order =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let optional = properties.keys().map(String::as_str);
    let mut seen: Vec<&str> = Vec::new();
    for field in order.chain(optional) {
        if seen.contains(&field) {
            continue;
        }
        seen.push(field);
        let Some(property) = properties.get(field).and_then(Value::as_object) else { continue };
        let name = if prefix.is_empty() { field.to_owned() } else { format!("{prefix}.{field}") };
        let meaning = description(property);
        if property.contains_key("properties") {
            into.sections.push(Section { name: name.clone(), meaning });
            collect(into, &name, &Value::Object(property.clone()));
        } else if let Some((kind, nullable)) = kind(property) {
            into.keys.push(Key { name, meaning, kind, nullable });
        }
    }
}

fn description(schema: &Map<String, Value>) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn kind(schema: &Map<String, Value>) -> Option<(Kind, bool)> {
    if let Some(choices) = choices(schema) {
        return Some((Kind::Choice(choices), false));
    }
    let types: Vec<&str> = match schema.get("type")? {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let nullable = types.contains(&"null");
    let kind = match types.into_iter().find(|name| *name != "null")? {
        "string" => Kind::Text,
        "boolean" => Kind::Boolean,
        "integer" => Kind::Whole(Bounds::from_schema(schema)),
        "number" => Kind::Number(Bounds::from_schema(schema)),
        "array" => match schema.get("maxItems").and_then(Value::as_u64) {
            Some(count) => Kind::Numbers(count),
            None if schema.get("items")?.get("type")? == "string" => Kind::Texts,
            None => return None,
        },
        _ => return None,
    };
    Some((kind, nullable))
}

fn choices(schema: &Map<String, Value>) -> Option<Vec<Choice>> {
    let variants = schema.get("oneOf")?.as_array()?;
    let choice = |variant: &Value| {
        let word = variant.get("const")?.as_str()?.to_owned();
        Some(Choice { word, meaning: description(variant.as_object()?) })
    };
    variants.iter().map(choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every leaf of a configuration written out, as dotted keys.
    fn leaves(prefix: &str, value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (name, inner) in map {
                    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    leaves(&path, inner, into);
                }
            }
            _ => into.push(prefix.to_owned()),
        }
    }

    #[test]
    fn the_table_has_every_key_that_a_configuration_has_and_no_other() {
        let config = crate::config::load(&[], &[], &|_| None).unwrap().config;
        let mut expected = Vec::new();
        leaves("", &serde_json::to_value(&config).unwrap(), &mut expected);
        let mut found: Vec<String> = Keys::get().keys.iter().map(|key| key.name.clone()).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        assert!(found.len() > 40);
    }

    #[test]
    fn every_key_section_and_choice_has_a_meaning() {
        for key in &Keys::get().keys {
            assert!(key.meaning.ends_with('.'), "{}: `{}`", key.name, key.meaning);
            if let Kind::Choice(choices) = &key.kind {
                assert!(choices.iter().all(|choice| choice.meaning.ends_with('.')), "{}", key.name);
            }
        }
        assert!(Keys::get().sections.iter().all(|section| section.meaning.ends_with('.')));
        assert_eq!(Keys::get().sections.len(), 11);
    }

    #[test]
    fn keys_say_what_they_take() {
        let cases = [
            ("run.threads_per_rank", "a whole number from 1 to 1024"),
            ("optim.clip_norm", "a number above 0, or null"),
            ("data.max_samples", "a whole number from 1, or null"),
            ("optim.betas", "a list of 2 numbers"),
            ("parallel.strategy", "single | ddp | zero1"),
            ("precision", "fp32 | bf16 | fp16"),
            ("scaler.growth_factor", "a number above 1 to 1000000"),
            ("model.dropout", "a number from 0 below 1"),
            ("run.deterministic", "true or false"),
            ("data.path", "text"),
            ("model.freeze", "a list of texts"),
        ];
        for (name, expected) in cases {
            assert_eq!(Keys::get().find(name).unwrap().to_string(), expected, "{name}");
        }
    }

    #[test]
    fn whole_bounds_are_exact_beyond_the_precision_of_a_double() {
        let Kind::Whole(bounds) = &Keys::get().find("run.seed").unwrap().kind else { panic!("not whole") };
        assert!(bounds.contain(&Number::from(i64::MAX as u64)));
        assert!(!bounds.contain(&Number::from(i64::MAX as u64 + 1)));
    }
}
