//! Whether two runs are the same run, and if not, where they first part.

mod bars;
mod checkpoint;
mod config;
mod difference;
mod digests;
mod elements;
mod join;
mod steps;
mod tensors;
mod values;

use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, RecordError, RunDir, open_plain_file, read_json, read_lines};
use serde::Serialize;

use crate::goldens::{self, Families};
use crate::tolerance::Envelope;

pub use bars::{Bars, Subject};
pub use checkpoint::compare_checkpoints;
pub use config::{compare_manifests, config_digest};
pub use difference::{Check, Difference, Event, Place, Verdict, rank_text};
pub use digests::compare_digests;
pub use join::{Join, Stepped, by_step, in_order};
pub use steps::{compare_metrics, compare_samples, scale_text};
pub(crate) use tensors::dtype;
pub use tensors::{Checkpoint, TensorStream, blake3_of};
pub use values::{Format, Mode, Scalar, Tolerance, Value, Worst};

/// The largest `manifest.json` of a run or a checkpoint that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Why two runs could not be compared. Nothing is known about them then: it is never a pass.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("{}: not a run directory: it has no manifest.json", .0.display())]
    NotARun(PathBuf),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{} has no envelope yet: make it with `lockstep-harness tolerance {}`", .0.display(), .0.display())]
    NoEnvelope(PathBuf),
    #[error(
        "{} and {} have no step in common, so nothing is known about them",
        golden.display(),
        candidate.display()
    )]
    NothingCompared { golden: PathBuf, candidate: PathBuf },
    #[error("{0}. Bless a golden run of this family, compare within a tolerance, or say --any-family")]
    OtherFamily(String),
}

impl CompareError {
    pub(crate) fn malformed(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// What came out of comparing two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub golden: PathBuf,
    pub candidate: PathBuf,
    pub mode: Mode,
    /// Steps that both runs have.
    pub steps: u64,
    pub checks: Vec<Check>,
    /// Named reasons for a difference that is not the trainer's fault, such as another instruction set, and
    /// anything that weakens what was compared.
    pub notes: Vec<String>,
}

impl Comparison {
    /// True when every check passed. At least one step was compared, or there would be an error instead.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Different)
    }

    /// The earliest event at which the runs part.
    pub fn first_difference(&self) -> Option<&Difference> {
        self.checks.iter().filter_map(|check| check.first.as_ref()).min_by_key(|d| d.place.order())
    }

    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }
}

/// A run directory whose manifest has been read.
pub struct Run {
    pub dir: RunDir,
    pub manifest: Manifest,
}

impl Run {
    pub fn open(path: &Path) -> Result<Self, CompareError> {
        let dir = RunDir::new(path);
        // A link is there, and is refused by name below.
        if dir.manifest().symlink_metadata().is_err() {
            return Err(CompareError::NotARun(path.to_owned()));
        }
        let manifest = read_manifest(&dir.manifest())?;
        Ok(Self { dir, manifest })
    }

    /// The first step that this run itself took: 1, unless it went on from another run's checkpoint.
    fn first_step(&self) -> u64 {
        self.manifest.segments.first().map_or(1, |segment| segment.from_step.saturating_add(1))
    }

    /// Ranks at work when `step` was made.
    fn world_size_at(&self, step: u64) -> Option<u32> {
        let segments = &self.manifest.segments;
        let segment = segments.iter().rev().find(|segment| segment.from_step < step).or(segments.first());
        segment.map(|segment| segment.world_size)
    }
}

/// Reads a manifest, after making sure that it is a plain file of sane size.
pub(crate) fn read_manifest<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CompareError> {
    let (_, bytes) = open_plain_file(path)?;
    if bytes > MANIFEST_BYTES_MAX {
        let problem = format!("{bytes} bytes are too many for a manifest (at most {MANIFEST_BYTES_MAX})");
        return Err(CompareError::malformed(path, problem));
    }
    Ok(read_json(path)?)
}

/// The lines of a file of the record, in constant memory.
pub(crate) fn lines<T: serde::de::DeserializeOwned + Stepped>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T, CompareError>> + use<T>, CompareError> {
    Ok(in_order(path.to_owned(), read_lines(path)?))
}

/// Compares two run directories. `golden` is the reference: tolerances are relative to it, and [`Mode::Auto`] reads its
/// envelope. A stored golden run of another family is refused.
pub fn compare(golden: &Path, candidate: &Path, mode: Mode) -> Result<Comparison, CompareError> {
    compare_families(golden, candidate, mode, Families::Same)
}

/// As [`compare`], and says whether a stored golden run may be of another family.
pub fn compare_families(
    golden: &Path,
    candidate: &Path,
    mode: Mode,
    families: Families,
) -> Result<Comparison, CompareError> {
    let (golden, candidate) = (Run::open(golden)?, Run::open(candidate)?);
    let (mut checks, mut notes) = compare_manifests(&golden.manifest, &candidate.manifest);
    notes.extend(goldens::admit(&golden, &candidate, mode, families)?);
    let envelope = match mode {
        Mode::Auto => Some(Envelope::load(&golden.dir, &golden.manifest)?),
        _ => None,
    };
    notes.extend(envelope.as_ref().map(Envelope::describe));
    let bars = envelope.as_ref().map_or(Bars::Same(mode), Bars::Envelope);
    let first_step = golden.first_step().max(candidate.first_step());
    if first_step > 1 {
        notes.push(format!("compared from step {first_step}: one of the runs starts there"));
    }

    let pair = |file: fn(&RunDir) -> PathBuf| (file(&golden.dir), file(&candidate.dir));
    let (left, right) = pair(RunDir::samples);
    checks.push(compare_samples(Join::new(lines(&left)?, lines(&right)?), first_step)?);

    let (left, right) = pair(RunDir::metrics);
    let metrics = compare_metrics(Join::new(lines(&left)?, lines(&right)?), first_step, bars)?;
    if metrics.steps == 0 {
        let (golden, candidate) = (golden.dir.path().to_owned(), candidate.dir.path().to_owned());
        return Err(CompareError::NothingCompared { golden, candidate });
    }
    checks.extend(metrics.checks);

    let (left, right) = pair(RunDir::digests);
    // A link that leads nowhere is there, too, and is refused by name.
    if left.symlink_metadata().is_ok() && right.symlink_metadata().is_ok() {
        let worlds = [&golden, &candidate].map(|run| move |step| run.world_size_at(step));
        let steps = |path: &Path| Ok::<_, CompareError>(by_step(path.to_owned(), lines(path)?));
        checks.extend(compare_digests(steps(&left)?, steps(&right)?, bars, worlds)?);
    } else {
        notes.push(
            "one of the runs has no digests.jsonl: its steps were not compared tensor by tensor".into(),
        );
    }
    checks.extend(compare_checkpoints(&golden.dir, &candidate.dir, bars)?);

    Ok(Comparison {
        golden: golden.dir.path().to_owned(),
        candidate: candidate.dir.path().to_owned(),
        mode,
        steps: metrics.steps,
        checks,
        notes,
    })
}
