//! Reading `report.json` back.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::files::REPORT_VERSION;
use super::text::visible;
use super::view::{CaseReport, CaseView, Report};

/// The largest `report.json` that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}: it is not a report.json", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error(
        "{}: version {found} of report.json, this program reads {REPORT_VERSION}: {}",
        path.display(),
        if *found < u64::from(REPORT_VERSION) { "make the report again" } else { "update it" }
    )]
    Version { path: PathBuf, found: u64 },
    #[error("{}: larger than {BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
}

#[derive(Deserialize)]
struct Version {
    report_version: u64,
}

#[derive(Deserialize)]
struct Saved {
    title: String,
    started_unix_s: u64,
    seconds: f64,
    planned: usize,
    sentence: String,
    cells: Vec<SavedCell>,
}

#[derive(Deserialize)]
struct SavedCell {
    view: CaseView,
    #[serde(flatten)]
    facts: Map<String, Value>,
}

/// Reads a report that an earlier run of the harness wrote. The path is one that a person gave.
pub fn read_report(path: &Path) -> Result<Report, SavedError> {
    let mut text = Vec::new();
    let io = |source| SavedError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(SavedError::TooLarge { path: path.to_owned() });
    }
    let malformed = |source| SavedError::Malformed { path: path.to_owned(), source };
    let Version { report_version: found } = serde_json::from_slice(&text).map_err(malformed)?;
    if found != u64::from(REPORT_VERSION) {
        return Err(SavedError::Version { path: path.to_owned(), found });
    }
    let saved: Saved = serde_json::from_slice(&text).map_err(malformed)?;
    let case = |cell: SavedCell| CaseReport::new(cell.view, Value::Object(cell.facts));
    Ok(Report {
        title: visible(&saved.title),
        started_unix_s: saved.started_unix_s,
        seconds: saved.seconds,
        planned: saved.planned,
        sentence: visible(&saved.sentence),
        cases: saved.cells.into_iter().map(case).collect(),
    })
}
