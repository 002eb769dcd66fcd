//! Whether checkpoints hold what they say, and what the run had when it saved them.

use std::path::{Path, PathBuf};

use lockstep_record::{
    BLOCK_ELEMENTS, CheckpointFile, RecordError, TensorEntry, block_digests, tensor_digest,
};

use super::facts::Context;
use super::finding::{Finding, Looked};
use super::history::History;
use crate::compare::{Checkpoint, CompareError, Run, blake3_of, dtype};
use lockstep_record::open_plain_file;

/// Elements that are in memory at a time: whole blocks.
const WINDOW_ELEMENTS: usize = 256 * BLOCK_ELEMENTS;

/// Reads every checkpoint of the run; what is wrong with one is a finding, never an error.
pub fn look(run: &Run, history: &History, mut add: impl FnMut(Looked)) -> Result<(), CompareError> {
    let steps = run
        .dir
        .checkpoint_steps()
        .map_err(|source| RecordError::Io { path: run.dir.checkpoints(), source })?;
    let context = Context::new(&run.manifest);
    for step in steps {
        let folder = run.dir.checkpoint(step);
        let inside = folder.strip_prefix(run.dir.path()).unwrap_or(&folder).to_owned();
        match Checkpoint::open(folder.clone()) {
            Ok(checkpoint) => add(look_at(Place { step, folder, inside }, checkpoint, &context, history)),
            Err(error) => {
                let finding = Finding::new(inside.join("manifest.json"), None, error.to_string()).at(step);
                add(Looked { facts: 1, findings: vec![finding] });
            }
        }
    }
    Ok(())
}

struct Place {
    step: u64,
    folder: PathBuf,
    /// The same folder, as seen from the run directory.
    inside: PathBuf,
}

impl Place {
    fn finding(&self, file: &str, message: impl Into<String>) -> Finding {
        Finding::new(self.inside.join(file), None, message).at(self.step)
    }
}

fn look_at(place: Place, mut checkpoint: Checkpoint, context: &Context, history: &History) -> Looked {
    let mut looked = state(&place, &checkpoint, context);
    for file in &checkpoint.manifest.files {
        looked.fact(whole_file(&place, file));
    }
    for tensor in checkpoint.manifest.tensors.clone() {
        let found = match digest(&mut checkpoint, &tensor) {
            Ok(found) => found,
            Err(error) => {
                looked.fact(Some(place.finding("manifest.json", error.to_string()).of(&tensor.name)));
                continue;
            }
        };
        looked.holds(found == tensor.digest, || {
            let file = tensor.pieces.first().map_or("manifest.json", |piece| piece.file.as_str());
            let message =
                format!("its elements have the digest {found}; the manifest says {}", tensor.digest);
            place.finding(file, message).of(&tensor.name)
        });
        if let Some(recorded) = history.digest(place.step, &tensor.name) {
            looked.holds(recorded == tensor.digest, || {
                let message = format!(
                    "saved with the digest {}; digests.jsonl has {recorded} after that step",
                    tensor.digest
                );
                place.finding("manifest.json", message).of(&tensor.name)
            });
        }
    }
    looked
}

/// What a resume reads besides tensors.
fn state(place: &Place, checkpoint: &Checkpoint, context: &Context) -> Looked {
    let mut looked = Looked::default();
    let (state, manifest) = (&checkpoint.manifest.state, context.manifest);
    let mut same = |what: &str, found: String, expected: String| {
        looked.holds(found == expected, || {
            place.finding("manifest.json", format!("{what} is {found}, but the run's is {expected}"))
        });
    };
    same("step", state.step.to_string(), place.step.to_string());
    same("seed", state.seed.to_string(), manifest.seed.to_string());
    same("data_digest", state.data_digest.clone(), manifest.data.digest.clone());
    same("tokenizer_digest", state.tokenizer_digest.clone(), manifest.data.tokenizer_digest.clone());
    if let Some(per_step) = context.samples_per_step().filter(|_| context.is_ours()) {
        same("samples_seen", state.samples_seen.to_string(), per_step.saturating_mul(place.step).to_string());
    }
    let names: std::collections::HashSet<&str> =
        checkpoint.manifest.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    for tensor in &manifest.model.tensors {
        let name = format!("model/{}", tensor.name);
        looked.holds(names.contains(name.as_str()), || {
            place.finding("manifest.json", "this parameter is not in the checkpoint").of(&tensor.name)
        });
    }
    looked
}

fn whole_file(place: &Place, listed: &CheckpointFile) -> Option<Finding> {
    let plain = Path::new(&listed.name).file_name().is_some_and(|name| name.to_str() == Some(&listed.name));
    if !plain {
        return Some(place.finding("manifest.json", format!("`{}` is not a plain file name", listed.name)));
    }
    let problem = match open_plain_file(&place.folder.join(&listed.name)) {
        Err(error) => error.to_string(),
        Ok((_, bytes)) if bytes != listed.bytes => {
            format!("has {bytes} bytes, but its manifest says {}", listed.bytes)
        }
        // Writers that know no BLAKE3 leave it out.
        Ok(_) if listed.blake3.is_empty() => return None,
        Ok((file, _)) => match blake3_of(file) {
            Err(error) => error.to_string(),
            Ok(found) if found == listed.blake3 => return None,
            Ok(found) => format!("its content has the BLAKE3 {found}; the manifest says {}", listed.blake3),
        },
    };
    Some(place.finding(&listed.name, problem))
}

fn digest(
    checkpoint: &mut Checkpoint,
    tensor: &TensorEntry,
) -> Result<lockstep_record::Digest, CompareError> {
    let element_bytes = dtype(&tensor.dtype).map_or(1, |(bytes, _)| bytes);
    let mut stream = checkpoint.stream(tensor)?;
    let (mut buffer, mut blocks) = (Vec::new(), Vec::new());
    while stream.remaining() > 0 {
        let bytes = stream.remaining().min((WINDOW_ELEMENTS * element_bytes) as u64) as usize;
        buffer.resize(bytes, 0u8);
        stream.fill(&mut buffer)?;
        blocks.extend(block_digests(&buffer, BLOCK_ELEMENTS * element_bytes));
    }
    Ok(tensor_digest(blocks))
}
