//! What one run shows by itself, without a golden run to compare it with.
//!
//! [`CATALOGUE`] lists the checks. Each is a pure function of what was recorded: of one step and the one before it, or of
//! the run as a whole. A finding says where it was found and what to do about it.

mod catalogue;
mod checkpoint;
mod checks;
mod epochs;
mod facts;
mod finding;
mod history;
mod text;

use std::path::Path;

use lockstep_record::RecordError;

use crate::compare::{CompareError, Run};

pub use catalogue::{CATALOGUE, Check, Look};
pub use facts::{Context, Disorder, File, Numbered, StepFacts};
pub use finding::{Finding, Looked, Report, Severity, Status};
pub use history::{Brief, History};
pub use text::report_text;

use facts::Steps;

/// Findings of one check that are kept; the others are counted.
const FINDINGS_MAX: usize = 100;

/// Reads a run directory once and looks at it with every check of the catalogue.
pub fn lint(path: &Path) -> Result<Report, CompareError> {
    let run = Run::open(path)?;
    let context = Context::new(&run.manifest);
    let mut report = Report::new(path, CATALOGUE.iter());
    let checkpoints = run
        .dir
        .checkpoint_steps()
        .map_err(|source| RecordError::Io { path: run.dir.checkpoints(), source })?;
    let mut history = History::new(&context, &checkpoints);
    let mut steps = Steps::open(&run.dir)?;
    let mut before: Option<StepFacts> = None;
    while let Some(step) = steps.advance()? {
        for (index, check) in CATALOGUE.iter().enumerate() {
            if let Look::Step(look) = check.look {
                report.add(index, look(&context, before.as_ref(), &step));
            }
        }
        history.note(&context, &step);
        before = Some(step);
    }
    history.close(steps);
    for (index, check) in CATALOGUE.iter().enumerate() {
        match check.look {
            Look::Run(look) => report.add(index, look(&context, &history)),
            Look::Checkpoints => checkpoint::look(&run, &history, |looked| report.add(index, looked))?,
            Look::Step(_) => {}
        }
    }
    Ok(report)
}
