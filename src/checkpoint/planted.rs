//! The planted bugs of files: what is saved instead of the right thing, and what becomes of it. See [`crate::mutate`].

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

use lockstep_record::CheckpointManifest;

use crate::mutate::{Mutation, active, cut_to_bf16};

/// The name under which a parameter is saved.
pub fn name(name: &str) -> &str {
    match name {
        "h.0.ln_1.weight" if active(Mutation::TensorsSwapped) => "h.0.ln_2.weight",
        "h.0.ln_2.weight" if active(Mutation::TensorsSwapped) => "h.0.ln_1.weight",
        name => name,
    }
}

/// What is saved of a parameter.
pub fn values(values: Cow<'_, [f32]>) -> Cow<'_, [f32]> {
    match active(Mutation::Bf16Checkpoint) {
        false => values,
        true => values.iter().copied().map(cut_to_bf16).collect(),
    }
}

/// What happens to a checkpoint after it was published.
pub fn damage(folder: &Path, manifest: &CheckpointManifest) -> io::Result<()> {
    let Some(last) = manifest.files.last().map(|file| folder.join(&file.name)) else { return Ok(()) };
    if active(Mutation::FileLost) {
        fs::remove_file(&last)?;
    }
    if active(Mutation::BitFlipOnDisk) {
        let mut bytes = fs::read(&last)?;
        // Behind the header, in some tensor.
        let place = bytes.len() / 2;
        bytes[place] ^= 1;
        fs::write(&last, bytes)?;
    }
    Ok(())
}
