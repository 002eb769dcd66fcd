//! Whether what ran is what was asked for, from the run's own record.

use lockstep_record::{Manifest, RunDir, read_json};

/// What one launch must have been; None where anything goes.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub ranks: u32,
    pub strategy: Option<&'a str>,
    pub from_step: Option<u64>,
}

/// What ran must be what was asked for: N processes that each believe to be alone would all be equal.
/// `expected` has one entry a launch. Returns the record's manifest.
pub fn check_world(run: &RunDir, expected: &[Expected]) -> Result<Manifest, String> {
    let manifest: Manifest = read_json(&run.manifest()).map_err(|error| error.to_string())?;
    let segments = &manifest.segments;
    if segments.len() != expected.len() {
        let (asked, found) = (expected.len(), segments.len());
        return Err(format!("{asked} launches, but its record tells of {found}"));
    }
    for (index, (segment, wanted)) in segments.iter().zip(expected).enumerate() {
        let strategy = wanted.strategy.unwrap_or(&segment.strategy);
        let from_step = wanted.from_step.unwrap_or(segment.from_step);
        let asked = format!("{} rank(s), {strategy}, from step {from_step}", wanted.ranks);
        let found =
            format!("{} rank(s), {}, from step {}", segment.world_size, segment.strategy, segment.from_step);
        if asked != found {
            let launch = index + 1;
            return Err(format!("launch {launch}: asked for {asked}; its record says {found}"));
        }
    }
    Ok(manifest)
}
