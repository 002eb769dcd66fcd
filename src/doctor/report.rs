//! The findings as text for people and as JSON for programs.

use std::fmt::Write;

use lockstep_record::exit;
use serde::Serialize;

use super::facts::Facts;
use super::finding::{Finding, Severity, count, hosts, whom, whom_ranks};

/// Of the JSON's shape: it changes when a program that reads it would have to.
const VERSION: u32 = 1;

/// All that one examination found.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    version: u32,
    exit_code: i32,
    world_size: usize,
    findings: Vec<Finding>,
    ranks: &'a [Facts],
}

impl<'a> Report<'a> {
    pub fn new(facts: &'a [Facts], findings: Vec<Finding>) -> Self {
        let exit_code = if findings.iter().any(|finding| finding.severity == Severity::Error) {
            exit::BOOTSTRAP
        } else {
            exit::OK
        };
        let world_size = facts.first().map_or(0, |facts| facts.size);
        Self { version: VERSION, exit_code, world_size, findings, ranks: facts }
    }

    /// [`exit::BOOTSTRAP`] if anything is an error.
    pub fn exit_code(&self) -> i32 {
        self.exit_code
    }

    /// One document.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// One line a finding, and one for its remedy.
    pub fn text(&self) -> String {
        let mut text = self.title();
        for finding in &self.findings {
            let Finding { id, severity, message, ranks, remedy } = finding;
            let whom = match ranks.len() {
                0 => String::new(),
                all if all == self.ranks.len() && self.ranks.len() == 1 => String::new(),
                all if all == self.ranks.len() => " (all ranks)".into(),
                _ => format!(": {}", whom_ranks(self.ranks, ranks)),
            };
            let _ = writeln!(text, "{:<8} {id:<21} {message}{whom}", severity.name());
            if let Some(remedy) = remedy {
                let _ = writeln!(text, "{:<8} {:<21} → {remedy}", "", "");
            }
        }
        text + &self.closing()
    }

    fn title(&self) -> String {
        let members: Vec<&Facts> = self.ranks.iter().collect();
        let backend = self.ranks.first().map_or("", |facts| &facts.backend);
        let places = hosts(self.ranks).len();
        format!(
            "lockstep doctor: {} ({backend}) on {}: {}\n",
            count(self.ranks.len(), "rank"),
            count(places, "host"),
            whom(&members)
        )
    }

    fn closing(&self) -> String {
        let number = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        let (errors, warnings) = (number(Severity::Error), number(Severity::Warning));
        let counts = [(errors, "error"), (warnings, "warning"), (number(Severity::Note), "note")];
        let counts: Vec<String> = counts.iter().map(|(number, noun)| count(*number, noun)).collect();
        let verdict = match (errors, warnings) {
            (0, 0) => "ready to train",
            (0, _) => "a training would run; see the warnings",
            _ => "a training would fail, or not keep its promise",
        };
        format!("{}: {verdict}\n", counts.join(", "))
    }
}
