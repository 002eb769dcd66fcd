//! Whole resolutions: files on disk, flags and an environment in; a configuration or a message out.

mod bad_input;
mod bad_values;
mod layering;
mod properties;

use std::path::{Path, PathBuf};

use super::{ConfigError, Resolved, load};

/// A folder of configuration files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text.as_bytes());
        }
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, files: &[&str], sets: &[&str]) -> Result<Resolved, ConfigError> {
        let files: Vec<PathBuf> = files.iter().map(|name| self.path(name)).collect();
        let sets: Vec<String> = sets.iter().map(|set| (*set).into()).collect();
        load(&files, &sets, &environment)
    }

    /// The message for the user, with the folder's own path left out.
    fn error(&self, files: &[&str], sets: &[&str]) -> String {
        let result = self.load(files, sets).and_then(|resolved| resolved.validate());
        self.short(&result.expect_err("this configuration is bad").to_string())
    }

    fn short(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn environment(name: &str) -> Option<String> {
    match name {
        "SIX" => Some("6".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

/// Leaves out line numbers of base.yaml, so that a new key there does not break every message.
fn without_base_lines(text: &str) -> String {
    let mut parts = text.split("embedded base.yaml:");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        short += "embedded base.yaml:<line>";
        short += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    short
}

/// The message for one file with `text` that extends base.yaml.
fn error_of(text: &str) -> String {
    let folder = Folder::new(&[("c.yaml", &format!("extends: base.yaml\n{text}"))]);
    folder.error(&["c.yaml"], &[])
}

/// The message for base.yaml and one flag.
fn error_of_set(set: &str) -> String {
    let result = load(&[], &[set.into()], &environment).and_then(|resolved| resolved.validate());
    result.expect_err("this flag is bad").to_string()
}

fn value<'a>(resolved: &'a Resolved, key: &str) -> &'a super::Setting {
    resolved.values.iter().find(|setting| setting.key == key).unwrap()
}

pub fn repository(name: &str) -> PathBuf {
    let here = Path::new(file!()).canonicalize().unwrap();
    here.ancestors().nth(4).unwrap().join(name)
}
