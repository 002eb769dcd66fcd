//! One source's settings: a tree of YAML becomes a flat list of keys with values, each with its origin.

use serde_json::Value;

use super::document::{self, Content, Entry, Node, Scalar, Style, shown};
use super::error::{Origin, Problem};
use super::expand::{Environment, expand};
use super::keys::{Key, Keys, Kind};
use super::scalar::{Resolved, resolve};
use super::suggest::remedy_for_unknown_key;

/// The key of a file that names the files it builds on.
const EXTENDS: &str = "extends";

/// One key's value and what set it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Dotted.
    pub key: String,
    pub value: Value,
    pub origin: Origin,
    /// Environment variables that went into the value.
    pub variables: Vec<String>,
}

/// A file's settings and the names of the files that it extends, with their lines.
#[derive(Debug, Default, PartialEq)]
pub struct FileSettings {
    pub extends: Vec<(String, usize)>,
    pub settings: Vec<Setting>,
}

/// Reads the text of a configuration file. `origin` says where it lies.
pub fn from_file(
    text: &str,
    origin: &Origin,
    environment: Environment<'_>,
) -> Result<FileSettings, Vec<Problem>> {
    let root = document::parse(text).map_err(|fault| vec![fault.within(origin)])?;
    let line = root.line;
    let Content::Mapping(mut entries) = root.content else {
        let message = format!("the file holds {}, not a mapping", described(&root.content));
        let remedy = "write sections and keys, such as `optim: { lr: 1.0e-3 }`";
        return Err(vec![Problem::new("", message, remedy).found_at(&origin.at(line))]);
    };
    let mut reader = Reader::new(origin, environment);
    let mut extends = Vec::new();
    if let Some(index) = entries.iter().position(|entry| entry.key == EXTENDS) {
        extends = reader.extends(entries.remove(index));
    }
    for entry in entries {
        reader.entry("", entry);
    }
    reader.finish().map(|settings| FileSettings { extends, settings })
}

/// Reads a `--set` flag, `key=value` with the value in YAML.
pub fn from_flag(flag: &str, environment: Environment<'_>) -> Result<Vec<Setting>, Vec<Problem>> {
    let origin = Origin::Set { flag: flag.into() };
    let Some((name, text)) = flag.split_once('=') else {
        let problem =
            Problem::new("", "there is no `=` in it", format!("write --set {}=VALUE", shown(flag.trim())));
        return Err(vec![problem.found_at(&origin)]);
    };
    let value = document::parse(text).map_err(|fault| vec![fault.within(&origin)])?;
    let mut reader = Reader::new(&origin, environment);
    reader.named(name.trim().into(), 1, value);
    reader.finish()
}

/// Collects settings and problems: one pass finds every problem of a file.
struct Reader<'a> {
    origin: &'a Origin,
    environment: Environment<'a>,
    settings: Vec<Setting>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn new(origin: &'a Origin, environment: Environment<'a>) -> Self {
        Self { origin, environment, settings: Vec::new(), problems: Vec::new() }
    }

    fn finish(self) -> Result<Vec<Setting>, Vec<Problem>> {
        if self.problems.is_empty() { Ok(self.settings) } else { Err(self.problems) }
    }

    fn problem(&mut self, line: usize, problem: Problem) {
        self.problems.push(problem.found_at(&self.origin.at(line)));
    }

    fn entry(&mut self, section: &str, entry: Entry) {
        if entry.key.contains('.') && Keys::get().find(&entry.key).is_some() {
            let (outer, inner) = entry.key.split_once('.').unwrap_or_default();
            let remedy = format!("write `{outer}: {{ {inner}: ... }}`");
            let problem = Problem::new(entry.key.as_str(), "dotted keys are for --set", remedy);
            return self.problem(entry.line, problem);
        }
        let name = if section.is_empty() { entry.key } else { format!("{section}.{}", entry.key) };
        self.named(name, entry.line, entry.value);
    }

    /// Recursion ends because a name is a section only if the schema says so, and its sections have keys
    /// alone.
    fn named(&mut self, name: String, line: usize, node: Node) {
        if let Some(key) = Keys::get().find(&name) {
            return match self.value(key, node) {
                Ok((value, variables)) => {
                    let origin = self.origin.at(line);
                    self.settings.push(Setting { key: name, value, origin, variables });
                }
                Err(problem) => self.problem(line, problem),
            };
        }
        if !Keys::get().is_section(&name) {
            let remedy = remedy_for_unknown_key(&name);
            return self.problem(line, Problem::new(name, "unknown key", remedy));
        }
        match node.content {
            Content::Mapping(entries) => entries.into_iter().for_each(|entry| self.entry(&name, entry)),
            content => {
                let message = format!("this is a section of keys, but it holds {}", described(&content));
                self.problem(
                    line,
                    Problem::new(name, message, "indent its keys below it, or delete the line"),
                );
            }
        }
    }

    fn value(&self, key: &Key, node: Node) -> Result<(Value, Vec<String>), Problem> {
        match node.content {
            Content::Scalar(scalar) => self.scalar(key, &scalar),
            Content::Sequence(nodes) => {
                let mut variables = Vec::new();
                let mut values = Vec::new();
                for node in nodes {
                    let (value, more) = self.value(key, node)?;
                    values.push(value);
                    variables.extend(more);
                }
                Ok((Value::Array(values), variables))
            }
            content @ Content::Mapping(_) => {
                let message = format!("found {}", described(&content));
                Err(Problem::new(key.name.as_str(), message, format!("give {key}")))
            }
        }
    }

    fn scalar(&self, key: &Key, scalar: &Scalar) -> Result<(Value, Vec<String>), Problem> {
        let expanded = expand(&scalar.text, self.environment)
            .map_err(|error| Problem::new(key.name.as_str(), error.to_string(), error.remedy()))?;
        let scalar = Scalar { text: expanded.text, style: scalar.style };
        let value = match resolve(&scalar) {
            // `name: 2024` is a name all the same.
            Resolved::Value(Value::Null) => Value::Null,
            _ if matches!(key.kind, Kind::Text | Kind::Texts) => Value::String(scalar.text),
            Resolved::Value(value) => value,
            Resolved::NotFinite => {
                let message = format!("found {}, which is not a finite number", shown(&scalar.text));
                return Err(Problem::new(key.name.as_str(), message, format!("give {key}")));
            }
        };
        Ok((value, expanded.variables))
    }

    fn extends(&mut self, entry: Entry) -> Vec<(String, usize)> {
        let nodes = match entry.value.content {
            Content::Sequence(nodes) => nodes,
            content => vec![Node { line: entry.value.line, content }],
        };
        let mut names = Vec::new();
        for Node { line, content } in nodes {
            match self.file_name(&content) {
                Ok(name) => names.push((name, line)),
                Err(problem) => self.problem(line, problem),
            }
        }
        names
    }

    fn file_name(&self, content: &Content) -> Result<String, Problem> {
        let Content::Scalar(scalar) = content else {
            let message = format!("found {}", described(content));
            return Err(Problem::new(EXTENDS, message, "give a file name or a list of file names"));
        };
        let name = expand(&scalar.text, self.environment)
            .map_err(|error| Problem::new(EXTENDS, error.to_string(), error.remedy()))?;
        if name.text.is_empty()
            || (scalar.style == Style::Plain && matches!(name.text.as_str(), "~" | "null"))
        {
            return Err(Problem::new(EXTENDS, "found no file name", "give one, or delete the line"));
        }
        Ok(name.text)
    }
}

fn described(content: &Content) -> &'static str {
    match content {
        Content::Scalar(scalar) if scalar.style == Style::Plain && scalar.text.is_empty() => "nothing",
        Content::Scalar(_) => "a single value",
        Content::Sequence(_) => "a list",
        Content::Mapping(_) => "a mapping",
    }
}
