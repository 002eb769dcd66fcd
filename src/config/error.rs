//! Where a value came from, what is wrong with it, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// What set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file on disk; `line` counts from 1.
    File { path: PathBuf, line: usize },
    /// A configuration that is part of the program, such as `base.yaml`.
    Embedded { name: &'static str, line: usize },
    /// A `--set` flag, as typed.
    Set { flag: String },
}

impl Origin {
    /// The same file at another line; a flag has no lines.
    pub fn at(&self, new: usize) -> Self {
        let mut origin = self.clone();
        match &mut origin {
            Self::File { line, .. } | Self::Embedded { line, .. } => *line = new,
            Self::Set { .. } => {}
        }
        origin
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Embedded { name, line } => write!(formatter, "embedded {name}:{line}"),
            Self::Set { flag } => write!(formatter, "--set {}", super::document::shown(flag)),
        }
    }
}

/// What is wrong in a text whose file its reader does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counts from 1.
    pub line: usize,
    pub message: String,
    pub remedy: String,
}

impl Fault {
    pub fn new(line: usize, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, message: message.into(), remedy: remedy.into() }
    }

    /// The problem that this fault is in the text from `origin`.
    pub fn within(self, origin: &Origin) -> Problem {
        Problem { origin: Some(origin.at(self.line)), ..Problem::new("", self.message, self.remedy) }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What set the value, where that is known.
    pub origin: Option<Origin>,
    /// Dotted key, or empty when the problem is not about one.
    pub key: String,
    pub message: String,
    /// What the user can do.
    pub remedy: String,
}

impl Problem {
    pub fn new(key: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { origin: None, key: key.into(), message: message.into(), remedy: remedy.into() }
    }

    pub fn found_at(mut self, origin: &Origin) -> Self {
        self.origin = Some(origin.clone());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(formatter, "{origin}: ")?;
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", super::document::shown(&self.key))?;
        }
        write!(formatter, "{}; {}", self.message, self.remedy)
    }
}

/// Problems shown at once: enough to mend a file in one go, few enough to read.
const SHOWN_MAX: usize = 20;

/// Why there is no configuration. It displays as the whole message for the user, one line a problem; the exit
/// code is that of a usage error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// An error if there is any problem.
    pub fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.problems.as_slice() {
            return problem.fmt(formatter);
        }
        write!(formatter, "{} problems in the configuration:", self.problems.len())?;
        for problem in self.problems.iter().take(SHOWN_MAX) {
            write!(formatter, "\n  {problem}")?;
        }
        match self.problems.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(formatter, "\n  and {more} more"),
        }
    }
}

impl std::error::Error for ConfigError {}
