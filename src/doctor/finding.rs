//! What is found: how bad, what, on which ranks, and what to do.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::facts::Facts;
use crate::comm::ranks_text;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// A training runs, but slower or less safely than it could.
    Warning,
    /// A training would fail, hang, or not keep its promise.
    Error,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One kind of finding, as the documentation lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub id: &'static str,
    pub severity: Severity,
    /// When it is found.
    pub when: &'static str,
    pub remedy: &'static str,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    pub severity: Severity,
    pub message: String,
    /// Whom it is about; empty where it is about all of them together.
    pub ranks: Vec<usize>,
    pub remedy: Option<&'static str>,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(id: &'static str, message: impl Into<String>) -> Self {
        Self { id, severity: Severity::Ok, message: message.into(), ranks: Vec::new(), remedy: None }
    }

    pub fn of(kind: &Kind, message: impl Into<String>, ranks: Vec<usize>) -> Self {
        Self {
            id: kind.id,
            severity: kind.severity,
            message: message.into(),
            ranks,
            remedy: Some(kind.remedy),
        }
    }
}

/// Asks every rank; those with the same answer share a finding.
pub fn each(kind: &Kind, all: &[Facts], ask: impl Fn(&Facts) -> Option<String>) -> Vec<Finding> {
    let mut answers = BTreeMap::<String, Vec<usize>>::new();
    for facts in all {
        if let Some(message) = ask(facts) {
            answers.entry(message).or_default().push(facts.rank);
        }
    }
    answers.into_iter().map(|(message, ranks)| Finding::of(kind, message, ranks)).collect()
}

/// A finding if the ranks do not all give the same answer.
pub fn agreement(kind: &Kind, what: &str, all: &[Facts], ask: impl Fn(&Facts) -> String) -> Option<Finding> {
    let groups = group(all, ask);
    let answers: Vec<String> =
        groups.iter().map(|(answer, members)| format!("{answer} on {}", whom(members))).collect();
    (groups.len() > 1)
        .then(|| Finding::of(kind, format!("{what} differs: {}", answers.join("; ")), Vec::new()))
}

/// The ranks that give the same answer.
pub fn group<K: Ord>(all: &[Facts], ask: impl Fn(&Facts) -> K) -> BTreeMap<K, Vec<&Facts>> {
    let mut groups = BTreeMap::<K, Vec<&Facts>>::new();
    for facts in all {
        groups.entry(ask(facts)).or_default().push(facts);
    }
    groups
}

/// The ranks of each host, in rank order.
pub fn hosts(all: &[Facts]) -> BTreeMap<(&str, &str), Vec<&Facts>> {
    let mut groups = BTreeMap::<(&str, &str), Vec<&Facts>>::new();
    for facts in all {
        groups.entry(facts.host_key()).or_default().push(facts);
    }
    groups
}

/// `ranks 0-3 (mars), rank 4 (venus)`, for a list of ranks.
pub fn whom_ranks(all: &[Facts], ranks: &[usize]) -> String {
    whom(&all.iter().filter(|facts| ranks.contains(&facts.rank)).collect::<Vec<_>>())
}

/// Ranks with their hosts; a few hosts at most.
pub fn whom(members: &[&Facts]) -> String {
    const HOSTS_MAX: usize = 4;
    let mut hosts = Vec::<(&str, Vec<u32>)>::new();
    for facts in members {
        match hosts.iter_mut().find(|(host, _)| *host == facts.host) {
            Some((_, ranks)) => ranks.push(facts.rank as u32),
            None => hosts.push((&facts.host, vec![facts.rank as u32])),
        }
    }
    let named: Vec<String> =
        hosts.iter().take(HOSTS_MAX).map(|(host, ranks)| format!("{} ({host})", ranks_text(ranks))).collect();
    let more = hosts.len().saturating_sub(HOSTS_MAX);
    let rest = if more > 0 { format!(", and {more} more hosts") } else { String::new() };
    named.join(", ") + &rest
}

/// The distinct answers of all ranks, joined.
pub fn distinct(all: &[Facts], ask: impl Fn(&Facts) -> String) -> String {
    let answers: BTreeSet<String> = all.iter().map(ask).filter(|answer| !answer.is_empty()).collect();
    answers.into_iter().collect::<Vec<_>>().join("; ")
}

/// A count with its noun.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
