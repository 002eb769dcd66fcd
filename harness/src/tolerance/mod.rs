//! Tolerance that is earned: how far a run that cannot have the golden run's bits may be from it, by step and tensor.
//!
//! [`theory`] says what another order of additions can do to one sum; [`perturbed`] repeats the golden run with values that
//! are moved by a unit in the last place, which shows what training makes of it; [`calibrate`] turns that into limits with a
//! probability of false alarms; the [`Envelope`] holds them beside the golden run, and [`crate::compare`] reads it.
//! docs/tolerance.md has the derivation and the figures.

mod calibrate;
mod envelope;
mod make;
mod observe;
mod perturbed;
mod text;
pub mod theory;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lockstep_record::{Perturbed, RunDir, Unit, exit};

use crate::compare::CompareError;
use crate::launch::{LaunchRecord, PlaceError};

pub use envelope::{Envelope, Factor, Header, Measure, Series, Spreads, file_digest};
pub use make::{FALSE_ALARMS, RUNS_MIN, make};
use observe::{Names, observe};
pub use text::envelope_text;

/// Perturbed runs where nothing is said.
pub const RUNS_DEFAULT: u32 = 16;
/// More would take for ever.
pub const RUNS_MAX: u32 = 1024;

/// Why there is no envelope.
#[derive(Debug, thiserror::Error)]
pub enum ToleranceError {
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{}: {problem}", path.display())]
    Golden { path: PathBuf, problem: String },
    #[error("perturbed run {}: {problem}", path.display())]
    Perturbed { path: PathBuf, problem: String },
    #[error("{0} perturbed runs are too few to tell how much they vary: at least {RUNS_MIN}")]
    TooFew(usize),
    #[error("{} exists already: remove it to make another", .0.display())]
    Exists(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted: no envelope was written")]
    Interrupted,
}

impl ToleranceError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Place(PlaceError::Io { .. }) | Self::Io { .. } => exit::INTERNAL,
            Self::Perturbed { .. } | Self::Interrupted => exit::CASE_FAILED,
            Self::Compare(CompareError::NotARun(_)) | Self::Place(_) | Self::Golden { .. } => exit::USAGE,
            Self::TooFew(_) | Self::Exists(_) => exit::USAGE,
            Self::Compare(_) => exit::CASE_FAILED,
        }
    }
}

/// How a golden run is to be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub trainer: &'a Path,
    pub runs: u32,
    pub perturbed: Perturbed,
    pub unit: Unit,
    /// Of one run.
    pub timeout: Duration,
    /// Whether the perturbed runs stay on disk.
    pub keep: bool,
    pub stop: &'a AtomicBool,
}

/// Repeats a golden run with perturbations, and writes its envelope beside it. `progress` hears of each run.
pub fn earn(
    golden: &Path,
    plan: &Plan,
    launches: &mut Vec<LaunchRecord>,
    progress: &mut dyn FnMut(&str),
) -> Result<Envelope, ToleranceError> {
    let run = RunDir::new(golden);
    check_place(&run)?;
    let made = perturbed::repeat(&run, plan, launches, progress).and_then(|runs| make(golden, &runs));
    // What failed leaves its logs; nothing but an envelope counts as one.
    let envelope = made?;
    envelope.write(&run)?;
    if !plan.keep {
        // Only room is at stake.
        let _ = std::fs::remove_dir_all(perturbed::folder(&run));
    }
    Ok(envelope)
}

/// Whether there is room for an envelope. A stored golden run does not change.
fn check_place(run: &RunDir) -> Result<(), ToleranceError> {
    if run.golden_header().exists() {
        let problem = "it is a stored golden run, which does not change: make the envelope of a run, and store it with \
                       `lockstep-harness bless` then";
        return Err(ToleranceError::Golden { path: run.path().to_owned(), problem: problem.into() });
    }
    match run.tolerance().exists() {
        true => Err(ToleranceError::Exists(run.tolerance())),
        false => Ok(()),
    }
}

/// What the golden run has, by step and by the number of a series in its envelope.
pub fn golden_values(golden: &RunDir) -> Result<BTreeMap<u64, BTreeMap<usize, f64>>, ToleranceError> {
    // An envelope numbers series as they come, in the golden run first.
    let steps = observe(golden, &mut Names::default())?;
    let values = |step: BTreeMap<usize, observe::Observation>| {
        step.into_iter().map(|(series, observation)| (series, observation.value)).collect()
    };
    Ok(steps.into_iter().map(|(number, step)| (number, values(step))).collect())
}

/// Writes the envelope that follows from runs that were made before.
pub fn write_from(golden: &Path, perturbed: &[PathBuf]) -> Result<Envelope, ToleranceError> {
    let run = RunDir::new(golden);
    check_place(&run)?;
    let envelope = make(golden, perturbed)?;
    envelope.write(&run)?;
    Ok(envelope)
}
