//! Reads the flight recorders that the ranks of a broken run left, and finds where they part.

mod parting;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use lockstep_record::{
    Channel, FLIGHT_LINES_MAX, FlightLine, Manifest, RecordError, RunDir, read_lines, refuse_link,
};

use crate::compare::read_manifest;

pub use parting::{Parting, parting};

/// The last collectives of all ranks that left a file.
#[derive(Clone, Debug)]
pub struct Flight {
    /// As the manifest says, and at least the ranks that left a file.
    pub world_size: u32,
    /// In the order of their start.
    pub ranks: BTreeMap<u32, Vec<FlightLine>>,
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
pub enum FlightError {
    #[error("{} is not a run directory", .0.display())]
    NotARun(PathBuf),
    #[error(
        "{}: no rank left a flight recorder: it is written when the watchdog ends a run, when a collective fails, and \
         when collectives do not match", .0.display()
    )]
    NoFiles(PathBuf),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {reason}: not the file of a flight recorder", path.display())]
    Nonsense { path: PathBuf, line: usize, reason: String },
}

/// Reads `RUN/flight`.
pub fn read(run: &RunDir) -> Result<Flight, FlightError> {
    if !run.path().is_dir() {
        return Err(FlightError::NotARun(run.path().to_owned()));
    }
    let mut ranks = BTreeMap::new();
    for rank in recorded_ranks(run)? {
        ranks.insert(rank, read_rank(run, rank)?);
    }
    let Some(&last) = ranks.keys().last() else { return Err(FlightError::NoFiles(run.flight())) };
    // A run that broke early has no manifest yet.
    let manifest: Option<Manifest> = read_manifest(&run.manifest()).ok();
    let world_size = manifest.and_then(|manifest| Some(manifest.segments.last()?.world_size)).unwrap_or(0);
    Ok(Flight { world_size: world_size.max(last.saturating_add(1)), ranks })
}

/// The ranks that left a file.
fn recorded_ranks(run: &RunDir) -> Result<Vec<u32>, FlightError> {
    refuse_link(&run.flight())?;
    let io = |source| FlightError::Io { path: run.flight(), source };
    let entries = match std::fs::read_dir(run.flight()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let rank = |name: &str| name.strip_prefix("rank-")?.strip_suffix(".jsonl")?.parse::<u32>().ok();
    let mut ranks = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        // Only the spelling that the trainer uses: `rank-1.jsonl` would be a second file of rank 1.
        let is_its_file = |rank: &u32| run.rank_flight(*rank as usize).file_name() == Some(name.as_os_str());
        ranks.extend(name.to_str().and_then(rank).filter(is_its_file));
    }
    Ok(ranks)
}

fn read_rank(run: &RunDir, rank: u32) -> Result<Vec<FlightLine>, FlightError> {
    let path = run.rank_flight(rank as usize);
    let nonsense = |line, reason| FlightError::Nonsense { path: path.clone(), line, reason };
    let mut lines = Vec::new();
    let mut newest = BTreeMap::<Channel, u64>::new();
    for (index, line) in read_lines::<FlightLine>(&path)?.enumerate() {
        let line = line?;
        if index == FLIGHT_LINES_MAX {
            return Err(nonsense(index + 1, format!("more than {FLIGHT_LINES_MAX} lines")));
        }
        if let Some(earlier) =
            newest.insert(line.channel, line.sequence).filter(|&earlier| earlier >= line.sequence)
        {
            return Err(nonsense(index + 1, format!("sequence {} after {earlier}", line.sequence)));
        }
        lines.push(line);
    }
    Ok(lines)
}

impl Flight {
    /// Where the ranks part, on each channel on which they do.
    pub fn partings(&self) -> Vec<Parting> {
        Channel::ALL.into_iter().filter_map(|channel| parting(self, channel)).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for channel in Channel::ALL {
            let newest = self.ranks.values().flatten().filter(|line| line.channel == channel);
            let newest = newest.map(|line| line.sequence).max();
            let _ = match (parting(self, channel), newest) {
                (Some(parting), _) => writeln!(text, "{parting}"),
                (None, Some(newest)) => {
                    writeln!(
                        text,
                        "{channel}: all ranks that left a file finished the same collectives, up to {newest}"
                    )
                }
                (None, None) => writeln!(text, "{channel}: no collectives"),
            };
        }
        text
    }
}
