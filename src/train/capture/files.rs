//! The files of a capture, and the manifest that makes them one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use lockstep_record::{
    CaptureGroup, CaptureManifest, CapturedBucket, CapturedMicroBatch, CapturedSlot, CapturedTensor,
    CheckpointFile, Digest, Piece, RECORD_VERSION, RankRange, Real, TensorEntry, tensor_digest,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::Numbers;
use crate::files;
use crate::grad::flat;
use crate::session::Session;

/// What one rank wrote, as it tells rank 0.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub files: Vec<CheckpointFile>,
    pub pieces: Vec<Written>,
    /// With their indices.
    pub micro_batches: Vec<(usize, CapturedMicroBatch)>,
}

/// One entry of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    pub group: CaptureGroup,
    pub micro_batch: Option<u32>,
    /// Kind of optimizer state, and parameter: the order within a group.
    pub order: (usize, usize),
    pub ranks: Vec<RankRange>,
    pub sharded: bool,
    pub tensor: String,
    pub shape: Vec<u64>,
    pub piece: Piece,
    pub blocks: Vec<Digest>,
}

/// An empty folder; what an earlier attempt left in it goes.
pub fn fresh_folder(folder: &Path) -> Result<(), String> {
    let text = |error: io::Error| format!("{}: {error}", folder.display());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(text(error)),
        _ => {}
    }
    fs::create_dir_all(folder).map_err(text)
}

/// One safetensors file.
pub fn write_file(
    folder: &Path,
    name: &str,
    tensors: Vec<(String, &[f32])>,
) -> Result<CheckpointFile, String> {
    let path = folder.join(name);
    let views = tensors
        .into_iter()
        .map(|(key, values)| view(values).map(|view| (key, view)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    safetensors::serialize_to_file(views, None, &path).map_err(|error| format!("{name}: {error}"))?;
    let (bytes, blake3) = files::digest(&path).map_err(|error| format!("{name}: {error}"))?;
    Ok(CheckpointFile { name: name.to_owned(), bytes, blake3 })
}

fn view(values: &[f32]) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
    TensorView::new(Dtype::F32, vec![values.len()], flat::bytes(values))
}

/// Writes the manifest and gives the folder its name; one of an earlier execution goes.
pub fn publish(
    session: &Session,
    (partial, target): (&Path, &Path),
    step: u64,
    numbers: Numbers,
    reports: &[Vec<u8>],
) -> Result<(), String> {
    let reports: Vec<Report> = reports
        .iter()
        .map(|report| serde_json::from_slice(report).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let manifest = manifest(session, step, numbers, reports);
    let io = |error: io::Error| format!("cannot publish the capture {}: {error}", target.display());
    files::write_synced(&partial.join("manifest.json"), &files::pretty_json(&manifest)).map_err(io)?;
    match fs::remove_dir_all(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    fs::rename(partial, target).map_err(io)
}

fn manifest(session: &Session, step: u64, numbers: Numbers, reports: Vec<Report>) -> CaptureManifest {
    let (mut files, mut pieces, mut micro_batches) = (Vec::new(), Vec::new(), Vec::new());
    for report in reports {
        files.extend(report.files);
        pieces.extend(report.pieces);
        micro_batches.extend(report.micro_batches);
    }
    micro_batches.sort_by_key(|(index, _)| *index);
    CaptureManifest {
        record_version: RECORD_VERSION,
        step,
        world_size: session.comm.size() as u32,
        strategy: session.config.parallel.strategy.name().into(),
        gradient_norm: Real(numbers.gradient_norm),
        clip_coefficient: Real(f64::from(numbers.clip)),
        learning_rate: Real(numbers.rate),
        micro_batches: micro_batches.into_iter().map(|(_, micro_batch)| micro_batch).collect(),
        buckets: buckets(session),
        files,
        tensors: tensors(pieces),
    }
}

fn buckets(session: &Session) -> Vec<CapturedBucket> {
    let layout = &session.layout;
    let slot = |&parameter: &usize| CapturedSlot {
        tensor: layout.parameters[parameter].name.clone(),
        offset: layout.slots[parameter].offset as u64,
        elements: layout.slots[parameter].elements as u64,
    };
    let trained = layout.buckets.iter().zip(session.ownership.shards()).take(layout.trained_buckets());
    trained
        .map(|(bucket, shards)| CapturedBucket {
            parameters: bucket.parameters.iter().map(slot).collect(),
            shards: shards.iter().map(|shard| (shard.start as u64, shard.end as u64)).collect(),
        })
        .collect()
}

/// Pieces of one value of one tensor come together, in the order of events and of the model.
fn tensors(pieces: Vec<Written>) -> Vec<CapturedTensor> {
    let mut values: BTreeMap<_, Vec<Written>> = BTreeMap::new();
    for piece in pieces {
        let key = (piece.group, piece.micro_batch, piece.order, piece.ranks.clone());
        values.entry(key).or_default().push(piece);
    }
    let tensor = |mut pieces: Vec<Written>| {
        pieces.sort_by_key(|written| written.piece.offset);
        let first = pieces[0].clone();
        CapturedTensor {
            group: first.group,
            micro_batch: first.micro_batch,
            ranks: first.ranks,
            sharded: first.sharded,
            tensor: TensorEntry {
                name: first.tensor,
                dtype: "F32".into(),
                shape: first.shape,
                digest: tensor_digest(pieces.iter().flat_map(|written| written.blocks.iter().copied())),
                pieces: pieces.into_iter().map(|written| written.piece).collect(),
            },
        }
    };
    values.into_values().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_record::{BLOCK_BYTES, block_digests};

    fn written(tensor: &str, order: usize, ranks: RankRange, offset: u64, values: &[f32]) -> Written {
        Written {
            group: CaptureGroup::Optimizer,
            micro_batch: None,
            order: (0, order),
            ranks: vec![ranks],
            sharded: true,
            tensor: tensor.into(),
            shape: vec![2048],
            piece: Piece { file: "f".into(), key: tensor.into(), offset, length: values.len() as u64 },
            blocks: block_digests(flat::bytes(values), BLOCK_BYTES),
        }
    }

    #[test]
    fn shards_become_one_tensor_with_the_digest_of_the_whole_and_parted_copies_stay_apart() {
        let values: Vec<f32> = (0..2048).map(|i| i as f32).collect();
        let pieces = vec![
            written("w", 1, (0, 1), 1024, &values[1024..]),
            written("w", 1, (0, 1), 0, &values[..1024]),
            written("v", 0, (0, 0), 0, &values),
            written("v", 0, (1, 1), 0, &values),
        ];
        let tensors = tensors(pieces);
        let names: Vec<_> = tensors.iter().map(|t| (t.tensor.name.as_str(), t.tensor.pieces.len())).collect();
        assert_eq!(names, [("v", 1), ("v", 1), ("w", 2)]);
        assert_eq!(tensors[2].tensor.digest, tensor_digest(block_digests(flat::bytes(&values), BLOCK_BYTES)));
        assert_eq!(tensors[1].ranks, [(1, 1)]);
    }
}
