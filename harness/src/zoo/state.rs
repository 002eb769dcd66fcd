//! The first step after which two runs hold another state, from the bytes of their checkpoints: a second opinion that
//! shares nothing with digests or with the search for the first difference.

use lockstep_record::RunDir;

use crate::compare::{Checkpoint, CompareError};

/// The first step of which both have a checkpoint whose tensors are not the same bytes. One that cannot be read differs.
pub fn first_different_state(golden: &RunDir, candidate: &RunDir) -> Result<Option<u64>, CompareError> {
    let steps = |run: &RunDir| run.checkpoint_steps().unwrap_or_default();
    let others = steps(candidate);
    for step in steps(golden).into_iter().filter(|step| others.contains(step)) {
        let golden = contents(Checkpoint::open(golden.checkpoint(step))?)?;
        let candidate = Checkpoint::open(candidate.checkpoint(step)).and_then(contents);
        if candidate.is_ok_and(|candidate| candidate == golden) {
            continue;
        }
        return Ok(Some(step));
    }
    Ok(None)
}

/// All tensors by name.
fn contents(mut checkpoint: Checkpoint) -> Result<Vec<(String, Vec<u8>)>, CompareError> {
    let mut all = Vec::new();
    for entry in checkpoint.manifest.tensors.clone() {
        let mut stream = checkpoint.stream(&entry)?;
        let mut bytes = vec![0; usize::try_from(stream.remaining()).unwrap_or(usize::MAX)];
        stream.fill(&mut bytes)?;
        all.push((entry.name, bytes));
    }
    Ok(all)
}
