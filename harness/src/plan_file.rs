//! What plans of either kind have in common: how they are read, and what their names and limits may be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

/// The largest plan that is read, in bytes.
const PLAN_BYTES_MAX: u64 = 1 << 20;
/// What aliases may copy at most, in bytes.
const COPIES_BYTES_MAX: usize = 64 << 20;
/// Levels of brackets within brackets: the time that the YAML reader takes grows with their square.
const BRACKETS_MAX: usize = 100;
/// Seconds that a launch may take where the plan says nothing.
pub const TIMEOUT_DEFAULT_S: f64 = 600.0;
const TIMEOUT_MAX_S: f64 = 1e6;
const RANKS_MAX: u32 = 1 << 20;

/// What is wrong with a plan, and where.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
}

/// Reads a plan; an error names the key, the line and the column.
pub fn read_yaml<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let (file, bytes) = lockstep_record::open_plain_file(path).map_err(|_| match path.exists() {
        true => "cannot be read as a plain file".to_owned(),
        false => "no such plan".to_owned(),
    })?;
    if bytes > PLAN_BYTES_MAX {
        return Err(format!("{bytes} bytes are too many for a plan (at most {PLAN_BYTES_MAX})"));
    }
    let text = std::io::read_to_string(file).map_err(|error| error.to_string())?;
    parse(&text)
}

pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // Each alias is a copy: a short plan could fill the memory with copies of one long value.
    if text.matches('*').count().saturating_mul(text.len()) > COPIES_BYTES_MAX {
        return Err("has too many aliases (*NAME) for its length: write the values out".into());
    }
    if brackets_within_brackets(text) > BRACKETS_MAX {
        return Err(format!("has brackets ([ or {{) within brackets more than {BRACKETS_MAX} times"));
    }
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

/// The deepest level that brackets could open; those in quoted words and comments count, too.
fn brackets_within_brackets(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => (),
        }
        most = most.max(open);
    }
    most
}

/// The folder of a plan's file: paths in the plan start there.
pub fn folder_of(path: &Path) -> Result<PathBuf, String> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::canonicalize(folder).map_err(|error| error.to_string())
}

/// A configuration that a plan names.
pub fn find_config(folder: &Path, config: &Path) -> Result<PathBuf, String> {
    let path = folder.join(config);
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("config: no such file: {}", path.display())),
    }
}

pub fn seconds(value: f64) -> Result<Duration, String> {
    if value > 0.0 && value <= TIMEOUT_MAX_S {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(format!("timeout_s: {value} is not a number of seconds above 0 and up to {TIMEOUT_MAX_S}"))
    }
}

pub fn check_ranks(ranks: u32) -> Result<u32, String> {
    match ranks {
        1..=RANKS_MAX => Ok(ranks),
        _ => Err(format!("{ranks} ranks")),
    }
}

/// Names become folders.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(fine) {
        Ok(())
    } else {
        Err(format!("`{name}` is not a name of up to 64 letters, digits, `-`, `_` and `.`"))
    }
}

/// Whether `text` contains `pattern`, in which `*` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn aliases_cannot_fill_the_memory() {
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a,".repeat(100_000));
        assert!(parse::<serde_json::Value>(&text).unwrap_err().contains("too many aliases"));
        let few = parse::<serde_json::Value>("a: &a [x]\nb: [*a, *a]\n").unwrap();
        assert_eq!(few["b"][1][0], "x");
    }

    #[test]
    fn brackets_cannot_take_hours() {
        let deep = |levels: usize| format!("a: {}{}\n", "[".repeat(levels), "]".repeat(levels));
        assert!(parse::<serde_json::Value>(&deep(200_000)).unwrap_err().contains("more than 100 times"));
        assert!(parse::<serde_json::Value>(&deep(50)).is_ok());
        let wide = format!("a: [{}]\n", "[], ".repeat(1000));
        assert_eq!(brackets_within_brackets(&wide), 2);
    }

    proptest! {
        #[test]
        fn a_pattern_without_stars_is_a_substring(pattern in "[ab]{0,3}", text in "[ab]{0,6}") {
            prop_assert_eq!(matches(&pattern, &text), text.contains(&pattern));
        }
    }
}
