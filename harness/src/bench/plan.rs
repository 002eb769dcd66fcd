//! The plan of a bench: which two runs are compared, how each is launched, and what their ratios should be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measure::Metric;
use crate::plan_file::{
    PlanError, TIMEOUT_DEFAULT_S, check_name, check_ranks, find_config, folder_of, matches, read_yaml,
    seconds,
};

const PAIRS_MAX: usize = 1000;
const STEPS_MAX: u64 = 1_000_000;
/// The link of a comparison that names none: all ranks on this machine.
pub const LOOPBACK: &str = "loopback";

/// As it is written in YAML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    title: Option<String>,
    launcher: Option<Vec<String>>,
    timeout_s: Option<f64>,
    pairs: Option<usize>,
    turn_s: Option<f64>,
    warmup_steps: Option<u64>,
    steps: Option<u64>,
    #[serde(default)]
    links: BTreeMap<String, Link>,
    #[serde(default)]
    peers: BTreeMap<String, Peer>,
    #[serde(default)]
    comparisons: Vec<ComparisonFile>,
}

/// Hosts with links between them: how they are made, how ranks are started on them, and how they are taken
/// down.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Commands before the first run over this link.
    #[serde(default)]
    pub setup: Vec<Vec<String>>,
    /// Starts `{ranks}` processes of what follows it.
    pub launcher: Vec<String>,
    /// Commands after the last run over this link.
    #[serde(default)]
    pub teardown: Vec<Vec<String>>,
}

/// Another trainer, which repeats a golden run and writes a run record.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// As tables call it.
    pub label: String,
    /// With `{golden}`, `{run_dir}`, `{ranks}`, `{python}`, `{plan_dir}` and `{trainer}`. On this machine it
    /// starts its ranks itself; over a link it is started once a rank.
    pub command: Vec<String>,
    /// Succeeds where the command can run.
    #[serde(default)]
    pub requires: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComparisonFile {
    name: String,
    config: PathBuf,
    #[serde(default)]
    set: Vec<String>,
    ranks: u32,
    link: Option<String>,
    ours: Variant,
    theirs: TheirsFile,
    #[serde(default)]
    aims: Vec<Aim>,
    pairs: Option<usize>,
    warmup_steps: Option<u64>,
    steps: Option<u64>,
    timeout_s: Option<f64>,
}

/// Either a peer's name, or the fields of a [`Variant`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TheirsFile {
    peer: Option<String>,
    strategy: Option<String>,
    #[serde(default)]
    set: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
}

/// One way to run our trainer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub strategy: String,
    /// Settings on top of the comparison's.
    #[serde(default)]
    pub set: Vec<String>,
    /// Further words of the command line, such as `--comm none`.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// What the ratio of ours to theirs should be. Without a bound the ratio is only shown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aim {
    pub metric: Metric,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
}

/// A plan that has been checked.
#[derive(Clone, Debug)]
pub struct Plan {
    pub title: String,
    /// Folder of the plan's file.
    pub folder: PathBuf,
    /// Command that starts N ranks on this machine, `{ranks}` for N.
    pub launcher: Option<Vec<String>>,
    pub links: BTreeMap<String, Link>,
    pub comparisons: Vec<Comparison>,
}

/// Two ways to train the same, measured side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub name: String,
    pub config: PathBuf,
    pub set: Vec<String>,
    pub ranks: u32,
    /// [`LOOPBACK`], or a key of [`Plan::links`].
    pub link: String,
    pub ours: Variant,
    pub theirs: Side,
    pub aims: Vec<Aim>,
    pub pairs: usize,
    /// Both sides of a pair run at a time, one frozen while the other computes for this long; None: one after the other.
    pub turn: Option<Duration>,
    /// Steps at the start of each run that are not measured.
    pub warmup_steps: u64,
    /// Steps that are measured.
    pub steps: u64,
    /// Of one launch.
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub enum Side {
    Variant(Variant),
    Peer(Peer),
}

impl Comparison {
    pub fn steps_in_all(&self) -> u64 {
        self.warmup_steps + self.steps
    }

    /// Whether our own runs leave traces, which some figures need.
    pub fn is_traced(&self) -> bool {
        self.aims.iter().any(|aim| aim.metric == Metric::ExposedShare)
    }
}

impl Variant {
    /// For example `ddp native`, `ddp --comm none`.
    pub fn label(&self) -> String {
        let value = |set: &String| set.split_once('=').map_or(set.clone(), |(_, value)| value.to_owned());
        let words = self.set.iter().map(value).chain(self.flags.iter().cloned());
        std::iter::once(self.strategy.clone()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

impl Side {
    pub fn label(&self) -> String {
        match self {
            Self::Variant(variant) => variant.label(),
            Self::Peer(peer) => peer.label.clone(),
        }
    }

    /// Whether it repeats a golden run.
    pub fn needs_golden(&self) -> bool {
        matches!(self, Self::Peer(peer) if peer.command.iter().any(|word| word.contains("{golden}")))
    }
}

impl Plan {
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let fail = |problem: String| PlanError::File { path: path.to_owned(), problem };
        let file: PlanFile = read_yaml(path).map_err(&fail)?;
        let folder = folder_of(path).map_err(&fail)?;
        check(file, folder).map_err(fail)
    }

    /// Keeps the comparisons whose name contains one of the patterns, in which `*` stands for anything.
    pub fn select(&mut self, patterns: &[String]) {
        self.comparisons
            .retain(|comparison| patterns.iter().any(|pattern| matches(pattern, &comparison.name)));
    }
}

fn check(mut file: PlanFile, folder: PathBuf) -> Result<Plan, String> {
    for (name, link) in &file.links {
        check_link(name, link).map_err(|problem| format!("link `{name}`: {problem}"))?;
    }
    for (name, peer) in &file.peers {
        if peer.command.is_empty() {
            return Err(format!("peer `{name}`: needs a `command`"));
        }
    }
    let mut comparisons: Vec<Comparison> = Vec::new();
    for item in std::mem::take(&mut file.comparisons) {
        let name = item.name.clone();
        check_name(&name)?;
        if comparisons.iter().any(|earlier| earlier.name == name) {
            return Err(format!("two comparisons are called `{name}`"));
        }
        let comparison = make_comparison(item, &file, &folder)
            .map_err(|problem| format!("comparison `{name}`: {problem}"))?;
        comparisons.push(comparison);
    }
    if comparisons.is_empty() {
        return Err("has no comparisons, so there is nothing to run".into());
    }
    let PlanFile { title, launcher, links, .. } = file;
    Ok(Plan { title: title.unwrap_or_default(), folder, launcher, links, comparisons })
}

fn check_link(name: &str, link: &Link) -> Result<(), String> {
    check_name(name)?;
    if name == LOOPBACK {
        return Err("that name stands for this machine alone".into());
    }
    if !link.launcher.iter().any(|word| word.contains("{ranks}")) {
        return Err("its `launcher` needs `{ranks}`, the number of processes to start".into());
    }
    match link.setup.iter().chain(&link.teardown).any(Vec::is_empty) {
        true => Err("a command of `setup` or `teardown` is empty".into()),
        false => Ok(()),
    }
}

fn make_comparison(item: ComparisonFile, file: &PlanFile, folder: &Path) -> Result<Comparison, String> {
    let link = item.link.unwrap_or_else(|| LOOPBACK.into());
    if link != LOOPBACK && !file.links.contains_key(&link) {
        let known: Vec<&str> =
            std::iter::once(LOOPBACK).chain(file.links.keys().map(String::as_str)).collect();
        return Err(format!("link: `{link}` is none of {}", known.join(", ")));
    }
    let between = |key: &str, value: u64, low: u64, high: u64| match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(format!("{key}: {value} is not from {low} to {high}")),
    };
    let pairs = item.pairs.or(file.pairs).unwrap_or(5);
    for aim in &item.aims {
        check_aim(aim).map_err(|problem| format!("aims: {}: {problem}", aim.metric))?;
    }
    let metrics: Vec<Metric> = item.aims.iter().map(|aim| aim.metric).collect();
    if let Some(twice) = metrics.iter().enumerate().find(|&(index, metric)| metrics[..index].contains(metric))
    {
        return Err(format!("aims: two are about {}", twice.1));
    }
    // Each side's own clock, which tells what is exposed, would go on while it is frozen.
    let own_clock = metrics.contains(&Metric::ExposedShare);
    let warmup_steps = item.warmup_steps.or(file.warmup_steps).unwrap_or(2);
    let turn = file.turn_s.filter(|_| !own_clock).map(seconds).transpose()?;
    if turn.is_some() && warmup_steps == 0 {
        return Err(
            "turn_s: needs at least one step of warm-up, since a run's first step has no beginning".into()
        );
    }
    Ok(Comparison {
        config: find_config(folder, &item.config)?,
        set: item.set,
        ranks: check_ranks(item.ranks)?,
        link,
        ours: item.ours,
        theirs: make_theirs(item.theirs, &file.peers)?,
        // Speed is shown in any case.
        aims: match item.aims.is_empty() {
            true => vec![Aim { metric: Metric::TokensPerSecond, at_least: None, at_most: None }],
            false => item.aims,
        },
        pairs: between("pairs", pairs as u64, 1, PAIRS_MAX as u64).map(|_| pairs)?,
        turn,
        warmup_steps: between("warmup_steps", warmup_steps, 0, STEPS_MAX)?,
        steps: between("steps", item.steps.or(file.steps).unwrap_or(6), 1, STEPS_MAX)?,
        timeout: seconds(item.timeout_s.or(file.timeout_s).unwrap_or(TIMEOUT_DEFAULT_S))?,
        name: item.name,
    })
}

fn make_theirs(file: TheirsFile, peers: &BTreeMap<String, Peer>) -> Result<Side, String> {
    match (file.peer, file.strategy) {
        (Some(_), None) if !(file.set.is_empty() && file.flags.is_empty()) => {
            Err("theirs: `set` and `flags` are for our own trainer, not for a peer".into())
        }
        (Some(name), None) => match peers.get(&name) {
            Some(peer) => Ok(Side::Peer(peer.clone())),
            None => Err(format!("theirs: no peer is called `{name}`; add it under `peers`")),
        },
        (None, Some(strategy)) => Ok(Side::Variant(Variant { strategy, set: file.set, flags: file.flags })),
        _ => Err("theirs: needs either a `peer` or a `strategy`".into()),
    }
}

fn check_aim(aim: &Aim) -> Result<(), String> {
    match (aim.at_least, aim.at_most) {
        (Some(_), Some(_)) => Err("needs one bound, `at_least` or `at_most`".into()),
        (Some(bound), None) | (None, Some(bound)) if !(bound.is_finite() && bound > 0.0) => {
            Err(format!("{bound} is not a ratio: it must be a finite number above 0"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
