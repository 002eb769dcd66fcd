//! What a check says.

use std::path::{Path, PathBuf};

use lockstep_record::RankRange;
use serde::Serialize;

use super::FINDINGS_MAX;
use super::catalogue::Check;
use crate::compare::rank_text;

/// How sure a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It looks wrong, and may have a reason.
    Warning,
    /// It is wrong: no correct training leaves such a record.
    Error,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing that is wrong, and where it can be seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Of the check, as are `severity` and `remedy`: set by [`Report::add`].
    pub check: &'static str,
    pub severity: Severity,
    /// Inside the run directory.
    pub file: PathBuf,
    /// Counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankRange>,
    pub message: String,
    pub remedy: &'static str,
}

impl Finding {
    pub fn new(file: impl Into<PathBuf>, line: Option<u64>, message: impl Into<String>) -> Self {
        Self {
            check: "",
            severity: Severity::Error,
            file: file.into(),
            line,
            step: None,
            tensor: None,
            micro_batch: None,
            ranks: Vec::new(),
            message: message.into(),
            remedy: "",
        }
    }

    pub fn at(self, step: u64) -> Self {
        Self { step: Some(step), ..self }
    }

    pub fn of(self, tensor: impl Into<String>) -> Self {
        Self { tensor: Some(tensor.into()), ..self }
    }

    pub fn in_micro_batch(self, micro_batch: Option<u32>) -> Self {
        Self { micro_batch, ..self }
    }

    pub fn on(self, ranks: Vec<RankRange>) -> Self {
        Self { ranks, ..self }
    }
}

impl std::fmt::Display for Finding {
    /// `error replicas: digests.jsonl:12: step 3, wte.weight, rank 1: …`
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}: {}", self.severity, self.check, self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        let places = [
            self.step.map(|step| format!("step {step}")),
            self.micro_batch.map(|micro_batch| format!("micro-batch {micro_batch}")),
            self.tensor.clone(),
            (!self.ranks.is_empty()).then(|| format!("rank {}", rank_text(&self.ranks))),
        ];
        let places: Vec<String> = places.into_iter().flatten().collect();
        if !places.is_empty() {
            write!(formatter, ": {}", places.join(", "))?;
        }
        write!(formatter, ": {}", self.message)
    }
}

/// What one look at a part of the record brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looked {
    /// Facts that were checked. None at all means that nothing is known.
    pub facts: u64,
    pub findings: Vec<Finding>,
}

impl Looked {
    /// Counts a fact, and keeps the finding if there is one.
    pub fn fact(&mut self, finding: Option<Finding>) {
        self.facts += 1;
        self.findings.extend(finding);
    }

    /// Counts a fact that must hold.
    pub fn holds(&mut self, holds: bool, finding: impl FnOnce() -> Finding) {
        self.fact((!holds).then(finding));
    }
}

/// What became of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: &'static str,
    pub severity: Severity,
    /// What the check makes sure of.
    pub about: &'static str,
    pub facts: u64,
    pub findings: u64,
}

/// What is known about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub run: PathBuf,
    /// In the order of the catalogue.
    pub checks: Vec<Status>,
    /// By check in that order, within a check in the order of time; at most [`FINDINGS_MAX`] of each.
    pub findings: Vec<Finding>,
    #[serde(skip)]
    remedies: Vec<&'static str>,
}

impl Report {
    pub(super) fn new<'a>(run: &Path, checks: impl Iterator<Item = &'a Check> + Clone) -> Self {
        let status = |check: &Check| Status {
            name: check.name,
            severity: check.severity,
            about: check.about,
            facts: 0,
            findings: 0,
        };
        Self {
            run: run.to_owned(),
            checks: checks.clone().map(status).collect(),
            findings: Vec::new(),
            remedies: checks.map(|check| check.remedy).collect(),
        }
    }

    pub(super) fn add(&mut self, index: usize, looked: Looked) {
        let (status, remedy) = (&mut self.checks[index], self.remedies[index]);
        status.facts += looked.facts;
        for finding in looked.findings {
            if status.findings < FINDINGS_MAX as u64 {
                let (check, severity) = (status.name, status.severity);
                self.findings.push(Finding { check, severity, remedy, ..finding });
            }
            status.findings += 1;
        }
    }

    /// Findings of at least this severity, those beyond the limit included.
    pub fn count(&self, severity: Severity) -> u64 {
        self.checks.iter().filter(|check| check.severity >= severity).map(|check| check.findings).sum()
    }

    /// Whether any step was recorded: a manifest alone says nothing about a training.
    pub fn knows_steps(&self) -> bool {
        self.checks.iter().any(|check| check.name == "steps" && check.facts > 0)
    }

    /// Findings by check, in the order of the catalogue.
    pub fn of(&self, check: &str) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.check == check)
    }
}
