//! What a bench found: `bench.json`, which several invocations add to.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, RecordError, open_plain_file};
use serde::{Deserialize, Serialize};

use super::cores::Accounting;
use super::measure::{Measured, Metric, figure};
use super::plan::{Aim, Comparison};
use super::statistics::{Met, Spread, judge};
use crate::median;

/// The largest `bench.json` that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Version of `bench.json`.
pub const BENCH_VERSION: u32 = 1;

/// Why results of an earlier invocation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}: it is not a bench.json of this program; name another folder", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{}: larger than {BYTES_MAX} bytes; name another folder", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: version {found} of bench.json, this program knows {BENCH_VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
}

#[derive(Deserialize)]
struct Version {
    bench_version: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub bench_version: u32,
    pub title: String,
    pub comparisons: Vec<Finding>,
}

/// One comparison that was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    /// Name of the configuration's file.
    pub config: String,
    pub ranks: u32,
    pub link: String,
    pub ours: SideInfo,
    pub theirs: SideInfo,
    pub warmup_steps: u64,
    /// Measured steps of a run.
    pub steps: u64,
    pub started_unix_s: u64,
    /// Processor, cores and kernel.
    pub machine: String,
    pub accounting: Accounting,
    /// Share of the cores that others may use during a pair that is quoted.
    pub disturbance_max: f64,
    pub pairs_wanted: usize,
    /// In the order in which they ran, repeated ones included.
    pub pairs: Vec<Pair>,
    /// One per aim.
    pub rows: Vec<Row>,
    /// Why it could not be run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Who ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SideInfo {
    pub label: String,
    /// Program, version and commit, and the libraries' versions, as its record says; empty if nothing ran.
    pub program: String,
    pub versions: BTreeMap<String, String>,
}

/// Ours and theirs, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    pub ours_first: bool,
    /// Both ran at a time, a second the one and a second the other.
    #[serde(default)]
    pub in_turns: bool,
    /// Others used more of the cores than they may: repeated while repeats are left, and never quoted as it
    /// is.
    pub disturbed: bool,
    pub ours: Measured,
    pub theirs: Measured,
}

/// What came out about one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub aim: Aim,
    /// One per pair that counts (the quiet ones; all if none was quiet, or if nothing is timed): ours ÷
    /// theirs, but see [`Metric`].
    pub figures: Vec<f64>,
    pub spread: Option<Spread>,
    pub met: Met,
    /// Medians over the same pairs, in the metric's unit.
    pub ours: Option<f64>,
    pub theirs: Option<f64>,
}

impl SideInfo {
    pub fn learn(&mut self, manifest: &Manifest) {
        let program = &manifest.program;
        let commit: String = program.git_commit.chars().take(12).collect();
        self.program = format!("{} {} {commit}", program.name, program.version);
        self.versions = manifest.segments.last().map(|segment| segment.versions.clone()).unwrap_or_default();
    }
}

impl Finding {
    pub fn new(
        comparison: &Comparison,
        accounting: Accounting,
        disturbance_max: f64,
        started_unix_s: u64,
    ) -> Self {
        let side = |label| SideInfo { label, ..SideInfo::default() };
        let stem = comparison.config.file_stem().unwrap_or_default();
        Self {
            name: comparison.name.clone(),
            config: stem.to_string_lossy().into_owned(),
            ranks: comparison.ranks,
            link: comparison.link.clone(),
            ours: side(comparison.ours.label()),
            theirs: side(comparison.theirs.label()),
            warmup_steps: comparison.warmup_steps,
            steps: comparison.steps,
            started_unix_s,
            machine: machine(),
            accounting,
            disturbance_max,
            pairs_wanted: comparison.pairs,
            pairs: Vec::new(),
            rows: comparison.aims.iter().map(|&aim| row(aim, &[], comparison.pairs)).collect(),
            problem: None,
        }
    }

    pub fn quiet(&self) -> usize {
        self.pairs.iter().filter(|pair| !pair.disturbed).count()
    }

    pub fn disturbed(&self) -> usize {
        self.pairs.len() - self.quiet()
    }

    /// Whether there are too few pairs that count: where nothing is timed, all do.
    pub fn wants_more(&self) -> bool {
        let timed = self.rows.iter().any(|row| row.aim.metric.is_timed());
        let count = if timed { self.quiet() } else { self.pairs.len() };
        count < self.pairs_wanted
    }

    pub fn add(&mut self, pair: Pair) {
        self.pairs.push(pair);
        self.judge();
    }

    /// Makes the rows anew from the pairs.
    fn judge(&mut self) {
        self.rows = self.rows.iter().map(|old| row(old.aim, &self.pairs, self.pairs_wanted)).collect();
    }
}

fn row(aim: Aim, pairs: &[Pair], wanted: usize) -> Row {
    let counts = |pair: &&Pair| !pair.disturbed || !aim.metric.is_timed();
    let quiet: Vec<&Pair> = pairs.iter().filter(counts).collect();
    let quoted: Vec<&Pair> = if quiet.is_empty() { pairs.iter().collect() } else { quiet.clone() };
    let figures: Option<Vec<f64>> =
        quoted.iter().map(|pair| figure(&pair.ours, &pair.theirs, aim.metric)).collect();
    let figures = figures.unwrap_or_default();
    let side = |of: fn(&Pair) -> &Measured| {
        let values: Option<Vec<f64>> = quoted.iter().map(|pair| of(pair).value(aim.metric)).collect();
        median(&values?)
    };
    let of_order = |ours_first: bool| -> Vec<f64> {
        let both = quoted.iter().zip(&figures).filter(|(pair, _)| pair.ours_first == ours_first);
        both.map(|(_, &figure)| figure).collect()
    };
    let spread = Spread::of(&of_order(true), &of_order(false));
    Row {
        aim,
        met: judge(&aim, spread.as_ref(), quiet.len(), wanted),
        spread,
        figures,
        ours: side(|pair| &pair.ours),
        theirs: side(|pair| &pair.theirs),
    }
}

impl Results {
    pub fn new(title: String) -> Self {
        Self { bench_version: BENCH_VERSION, title, comparisons: Vec::new() }
    }

    /// Reads `bench.json` in a folder; None if there is none.
    pub fn load(folder: &Path) -> Result<Option<Self>, ResultsError> {
        let path = folder.join("bench.json");
        if !path.exists() {
            return Ok(None);
        }
        let (file, bytes) = open_plain_file(&path)?;
        if bytes > BYTES_MAX {
            return Err(ResultsError::TooLarge { path });
        }
        let text = io::read_to_string(file.take(BYTES_MAX));
        let text = text.map_err(|source| ResultsError::Io { path: path.clone(), source })?;
        let malformed = |source| ResultsError::Malformed { path: path.clone(), source };
        // The version first: a newer file may have other fields.
        let Version { bench_version: found } = serde_json::from_str(&text).map_err(malformed)?;
        if found != BENCH_VERSION {
            return Err(ResultsError::Version { path, found });
        }
        let mut results: Self = serde_json::from_str(&text).map_err(malformed)?;
        // Pairs are what was measured; an earlier program may have judged them otherwise.
        results.comparisons.iter_mut().for_each(Finding::judge);
        Ok(Some(results))
    }

    /// Adds a comparison, or replaces an earlier one of the same name.
    pub fn put(&mut self, finding: Finding) {
        match self.comparisons.iter_mut().find(|earlier| earlier.name == finding.name) {
            Some(earlier) => *earlier = finding,
            None => self.comparisons.push(finding),
        }
    }

    /// Metrics that any row is about, in the order in which they first appear.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for row in self.comparisons.iter().flat_map(|finding| &finding.rows) {
            if !metrics.contains(&row.aim.metric) {
                metrics.push(row.aim.metric);
            }
        }
        metrics
    }
}

/// For example `2 cores of Intel(R) Xeon(R) Processor, Linux 6.1.0`.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, name)| name.trim());
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores of {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
