//! The configuration: YAML files that extend one another, `--set` flags and environment variables become one
//! typed [`Config`], each value with what set it. No default is written in code; `configs/base.yaml` has them
//! all.

mod check;
mod document;
pub mod env;
mod error;
mod expand;
mod keys;
mod layers;
mod resume;
mod scalar;
pub mod schema;
pub mod schema_docs;
mod settings;
pub mod show;
mod source;
mod suggest;
#[cfg(test)]
pub(crate) mod tests;
mod validate;

use std::path::PathBuf;

use serde_json::{Map, Value};

pub use error::{ConfigError, Origin, Problem};
pub use expand::Environment;
pub use resume::resume_compatible;
pub use schema::Config;
pub use settings::Setting;
pub use validate::{validate, validate_world};

/// A configuration and where each of its values came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub config: Config,
    /// One per key, in the order of the schema.
    pub values: Vec<Setting>,
}

/// Resolves a configuration: `files` left to right with what they extend (none: the embedded `base.yaml`),
/// then the `--set` flags left to right. Types, bounds and the names of keys are checked;
/// [`Resolved::validate`] checks how values fit together.
pub fn load(files: &[PathBuf], sets: &[String], env: Environment<'_>) -> Result<Resolved, ConfigError> {
    let base = [PathBuf::from("embedded:base.yaml")];
    let mut problems = Vec::new();
    let mut layers = vec![];
    match layers::read(if files.is_empty() { &base } else { files }, env) {
        Ok(settings) => layers.push(settings),
        Err(found) => problems.extend(found),
    }
    for flag in sets {
        match settings::from_flag(flag, env) {
            Ok(settings) => layers.push(settings),
            Err(found) => problems.extend(found),
        }
    }
    ConfigError::unless_empty(problems)?;
    let values = merge(layers);
    ConfigError::unless_empty(missing(&values).into_iter().collect())?;
    let lookup = |key: &str| values.iter().find(|setting| setting.key == key);
    let problems = check::check_values(|key| lookup(key).map(|setting| &setting.value));
    ConfigError::unless_empty(locate(&values, problems))?;
    let config = typed(&values)?;
    Ok(Resolved { config, values })
}

impl Resolved {
    /// Checks how the values fit together and whether the files that they name exist.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate(&self.config).map_err(|problems| ConfigError { problems: locate(&self.values, problems) })
    }

    /// Checks that `world_size` ranks can run this configuration.
    pub fn validate_world(&self, world_size: usize) -> Result<(), ConfigError> {
        validate_world(&self.config, world_size)
            .map_err(|problem| ConfigError { problems: locate(&self.values, vec![problem]) })
    }
}

/// Later settings win; the result is in the order of the schema.
fn merge(layers: Vec<Vec<Setting>>) -> Vec<Setting> {
    let all: Vec<Setting> = layers.into_iter().flatten().collect();
    let last = |key: &keys::Key| all.iter().rev().find(|setting| setting.key == key.name).cloned();
    keys::Keys::get().keys.iter().filter_map(last).collect()
}

fn missing(values: &[Setting]) -> Option<Problem> {
    let given = |name: &str| values.iter().any(|setting| setting.key == name);
    let names: Vec<&str> =
        keys::Keys::get().keys.iter().map(|key| key.name.as_str()).filter(|n| !given(n)).collect();
    let (first, more) = (names.first()?, names.len() - 1);
    let message = match more {
        0 => format!("the configuration gives no value to {first}"),
        1..=4 => format!("the configuration gives no value to {}", names.join(", ")),
        _ => format!("the configuration gives no value to {first} and {more} other keys"),
    };
    Some(Problem::new("", message, "add `extends: base.yaml`, which gives every key a value"))
}

/// Adds to each problem what set the value that it is about.
fn locate(values: &[Setting], problems: Vec<Problem>) -> Vec<Problem> {
    let origin =
        |key: &str| values.iter().find(|setting| setting.key == key).map(|setting| setting.origin.clone());
    problems
        .into_iter()
        .map(|problem| Problem { origin: problem.origin.or_else(|| origin(&problem.key)), ..problem })
        .collect()
}

/// What [`check`] let pass fits the types; serde has the last word all the same.
fn typed(values: &[Setting]) -> Result<Config, ConfigError> {
    serde_path_to_error::deserialize(tree(values)).map_err(|error| {
        let problem = Problem::new(error.path().to_string(), error.inner().to_string(), "correct the value");
        ConfigError { problems: locate(values, vec![problem]) }
    })
}

/// Flat keys as sections.
fn tree(values: &[Setting]) -> Value {
    let mut root = Map::new();
    for setting in values {
        let value = setting.value.clone();
        match setting.key.split_once('.') {
            None => root.insert(setting.key.clone(), value),
            Some((section, name)) => {
                let section = root.entry(section).or_insert_with(|| Value::Object(Map::new()));
                section.as_object_mut().and_then(|section| section.insert(name.into(), value))
            }
        };
    }
    Value::Object(root)
}
