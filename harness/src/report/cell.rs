//! One case of a plan that was run.

use std::path::PathBuf;

use serde::Serialize;

use super::comparison::distance;
use super::curves::Curves;
use crate::compare::{Comparison, Mode};
use crate::launch::LaunchRecord;
use crate::verify::{Case, Group};

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Outcome {
    /// The reference of its group: it ran to its end.
    Golden,
    Passed,
    Different,
    /// What it needs is not on this machine. Nothing is known: it is no pass.
    Skipped {
        reason: String,
    },
    /// It failed, hung, or left a record that could not be compared. Nothing is known.
    CouldNotRun {
        reason: String,
    },
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Golden => "golden",
            Self::Passed => "passed",
            Self::Different => "DIFFERENT",
            Self::Skipped { .. } => "skipped",
            Self::CouldNotRun { .. } => "COULD NOT RUN",
        })
    }
}

/// A case that has been run.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub group: String,
    pub name: String,
    /// Ranks of its launches, such as `4→3`.
    pub ranks: String,
    /// Strategies of its launches, such as `ddp→zero1`.
    pub strategy: String,
    pub launches_planned: usize,
    pub foreign: bool,
    /// None for the golden run.
    pub against: Option<String>,
    pub mode: Mode,
    pub outcome: Outcome,
    pub started_unix_s: u64,
    /// Wall-clock time of its launches and its comparison.
    pub seconds: f64,
    pub run_dir: PathBuf,
    pub launches: Vec<LaunchRecord>,
    pub comparison: Option<Comparison>,
    /// For the view only; the run's own metrics have them.
    #[serde(skip)]
    pub curves: Curves,
}

impl Cell {
    pub fn new(group: &Group, case: &Case, run_dir: PathBuf, started_unix_s: u64) -> Self {
        Self {
            group: group.name.clone(),
            name: case.name.clone(),
            ranks: case.ranks(),
            strategy: case.strategy(),
            launches_planned: case.launches(),
            foreign: case.is_foreign(),
            against: case.against.clone(),
            mode: case.mode,
            outcome: Outcome::CouldNotRun { reason: "it was not run".into() },
            started_unix_s,
            seconds: 0.0,
            run_dir,
            launches: Vec::new(),
            comparison: None,
            curves: Curves::default(),
        }
    }

    pub fn expectation(&self) -> String {
        expectation(self.mode, self.against.as_deref())
    }

    pub fn distance(&self) -> Option<String> {
        self.comparison.as_ref().and_then(distance)
    }

    /// Why it did not pass: the first difference, or what went wrong.
    pub fn problem(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Golden | Outcome::Passed => None,
            Outcome::Different => self.comparison.as_ref()?.first_difference().map(ToString::to_string),
            Outcome::Skipped { reason } | Outcome::CouldNotRun { reason } => Some(reason.clone()),
        }
    }
}

/// `exact`, `rtol 1e-5 atol 1e-6`, with the case that it is compared with if that is not the golden run.
pub fn expectation(mode: Mode, against: Option<&str>) -> String {
    match against {
        None => "—".into(),
        Some("golden") => mode.to_string(),
        Some(other) => format!("{mode} vs {other}"),
    }
}
