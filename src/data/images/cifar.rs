//! CIFAR-10 (Krizhevsky 2009) in its binary version: five files to train on and one to validate with.

use std::path::Path;

use super::{ImagesError, RECORD, Records};

/// Airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
pub const CLASSES: u8 = 10;

const TRAIN: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const VALIDATION: &str = "test_batch.bin";

/// Reads the folder `path`.
pub fn read(path: &Path) -> Result<Records, ImagesError> {
    let mut hasher = blake3::Hasher::new();
    let mut train = Vec::new();
    for name in TRAIN {
        let records = read_file(&path.join(name))?;
        hasher.update(&records);
        train.extend(records);
    }
    let validation = read_file(&path.join(VALIDATION))?;
    hasher.update(&validation);
    Ok(Records { train, validation, classes: CLASSES, digest: hasher.finalize().to_string() })
}

fn read_file(path: &Path) -> Result<Vec<u8>, ImagesError> {
    let failed = |error| ImagesError::Unreadable { path: path.into(), error };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(ImagesError::NotAFile(path.into()));
    }
    let records = std::fs::read(path).map_err(failed)?;
    if records.is_empty() {
        return Err(ImagesError::Empty(path.into()));
    }
    if !records.len().is_multiple_of(RECORD) {
        return Err(ImagesError::Truncated { path: path.into(), bytes: records.len() });
    }
    match records.chunks_exact(RECORD).position(|record| record[0] >= CLASSES) {
        None => Ok(records),
        Some(image) => Err(ImagesError::Label { path: path.into(), image, label: records[image * RECORD] }),
    }
}
