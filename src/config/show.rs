//! `lockstep config show`: every value with what set it, or the resolved configuration as YAML.

use super::check::described;
use super::document::{self, Style};
use super::expand::escape;
use super::schema::Config;
use super::{Resolved, Setting};
use crate::config::scalar;
use serde_json::Value;

/// One line a key: name, value, origin, and the environment variables that went into the value.
pub fn show(resolved: &Resolved) -> String {
    let rows: Vec<[String; 3]> = resolved.values.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (keys, values) = (width(0), width(1));
    let line = |[key, value, origin]: &[String; 3]| format!("{key:keys$}  {value:values$}  {origin}\n");
    rows.iter().map(line).collect()
}

fn row(setting: &Setting) -> [String; 3] {
    let mut origin = setting.origin.to_string();
    for (index, variable) in setting.variables.iter().enumerate() {
        origin += if index == 0 { " with $" } else { ", $" };
        origin += variable;
    }
    [setting.key.clone(), value(&setting.value), origin]
}

/// A value as one would write it: quotes only where the text would otherwise read as something else.
fn value(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(values) => {
            let items: Vec<String> = values.iter().map(self::value).collect();
            format!("[{}]", items.join(", "))
        }
        other => described(other),
    }
}

fn is_plain(text: &str) -> bool {
    let scalar = document::Scalar { text: text.into(), style: Style::Plain };
    !text.contains(char::is_control)
        && text.trim() == text
        && scalar::resolve(&scalar) == scalar::Resolved::Value(Value::String(text.into()))
}

impl Config {
    /// The configuration as YAML that loads to the same configuration, on any machine and in any environment.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let mut escaped = self.clone();
        escaped.run.name = escape(&escaped.run.name);
        for path in [&mut escaped.run.dir, &mut escaped.data.path, &mut escaped.data.cache_dir] {
            if let Some(text) = path.to_str() {
                *path = escape(text).into();
            }
        }
        escaped.model.freeze.iter_mut().for_each(|pattern| *pattern = escape(pattern));
        serde_yaml::to_string(&escaped)
    }
}
