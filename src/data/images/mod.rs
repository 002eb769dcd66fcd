//! Images with a class each, held in memory as CIFAR-10's files hold them: a record is one byte for the class, then
//! 32 × 32 bytes of red, of green and of blue, row by row.

mod augment;
mod cifar;
mod shapes;

use std::path::{Path, PathBuf};

use lockstep_record::DataInfo;

use super::corpus::{Corpus, DataError, Inputs, Samples, Split, train_part};
use crate::config::schema::Data;
use crate::mutate::{Mutation, active};
use augment::View;

/// Colours of a pixel.
const CHANNELS: usize = 3;
/// Pixels in a row, and rows in an image.
const SIDE: usize = 32;
const PIXELS: usize = CHANNELS * SIDE * SIDE;
/// The class and the pixels.
const RECORD: usize = 1 + PIXELS;

/// The set that is drawn by the program.
const SHAPES: &str = "embedded:shapes";
/// How bytes become numbers; its digest stands where a text's tokenizer has one. (byte − 127.5) ÷ 64 is exact in
/// fp32 and brings natural images near zero mean and unit variance.
const PREPROCESSING: &str = "pixels-1: (byte - 127.5) / 64";

/// Why images cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error(
        "cannot read {}: {error}; data.path must be a folder with CIFAR-10's binary version (data_batch_1.bin to \
         data_batch_5.bin and test_batch.bin), or {SHAPES}",
        path.display()
    )]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{} is not a regular file: data.path must be a folder with CIFAR-10's binary version", .0.display())]
    NotAFile(PathBuf),
    #[error(
        "{} has {bytes} bytes, which is not a whole number of records of {RECORD}: it was cut short, or is not of \
         CIFAR-10's binary version; fetch it again",
        path.display()
    )]
    Truncated { path: PathBuf, bytes: usize },
    #[error("{} is empty: fetch it again", .0.display())]
    Empty(PathBuf),
    #[error(
        "{}: image {image} has class {label}, but there are 10, from 0 to 9: the file is damaged, or not of \
         CIFAR-10's binary version",
        path.display()
    )]
    Label { path: PathBuf, image: usize, label: u8 },
    #[error("there are no images named `{0}` in the program: it has {SHAPES}")]
    UnknownEmbedded(String),
    #[error("no image is left to train on: lower data.validation_fraction")]
    NoTrainPart,
}

/// Records of both splits.
#[derive(Debug)]
struct Records {
    train: Vec<u8>,
    validation: Vec<u8>,
    classes: u8,
    /// BLAKE3 of all records in order.
    digest: String,
}

/// A set of images in memory, the same on every rank.
#[derive(Debug)]
pub struct Images {
    records: Records,
    train_samples: u64,
    validation_samples: u64,
    /// What augmentation is keyed by, where it is asked for.
    augment: Option<u64>,
}

impl Images {
    /// Draws or reads the images. `seed` keys the augmentation.
    pub fn load(data: &Data, seed: u64) -> Result<Self, DataError> {
        if !(0.0..1.0).contains(&data.validation_fraction) {
            return Err(DataError::ValidationFraction(data.validation_fraction));
        }
        if data.max_samples == Some(0) {
            return Err(DataError::NoSamples);
        }
        let records = records(&data.path, data.validation_fraction)?;
        let count = |records: &[u8]| (records.len() / RECORD) as u64;
        let train_samples = count(&records.train).min(data.max_samples.unwrap_or(u64::MAX));
        if train_samples == 0 {
            return Err(ImagesError::NoTrainPart.into());
        }
        let validation_samples = if data.validation_fraction > 0.0 { count(&records.validation) } else { 0 };
        Ok(Self { train_samples, validation_samples, augment: data.augment.then_some(seed), records })
    }

    fn record(&self, split: Split, id: u64) -> Result<&[u8], DataError> {
        let (records, samples) = match split {
            Split::Train => (&self.records.train, self.train_samples),
            Split::Validation => (&self.records.validation, self.validation_samples),
        };
        if id >= samples {
            return Err(DataError::NoSuchSample { split, id, samples });
        }
        Ok(&records[id as usize * RECORD..][..RECORD])
    }
}

fn records(path: &Path, validation_fraction: f64) -> Result<Records, ImagesError> {
    match path.to_str().and_then(|path| path.strip_prefix("embedded:")) {
        Some("shapes") => {
            let mut train = shapes::draw_all();
            let digest = blake3::hash(&train).to_string();
            let validation = train.split_off(train_part(shapes::IMAGES, validation_fraction) * RECORD);
            Ok(Records { train, validation, classes: shapes::CLASSES, digest })
        }
        Some(name) => Err(ImagesError::UnknownEmbedded(name.into())),
        None => cifar::read(path),
    }
}

impl Corpus for Images {
    fn info(&self) -> DataInfo {
        DataInfo {
            digest: self.records.digest.clone(),
            tokenizer: "pixels".into(),
            tokenizer_digest: blake3::hash(PREPROCESSING.as_bytes()).to_string(),
            vocabulary: u64::from(self.records.classes),
            train_samples: self.train_samples,
            validation_samples: self.validation_samples,
        }
    }

    fn warnings(&self) -> &[String] {
        &[]
    }

    /// An image has one class.
    fn targets(&self, _: Split, ids: &[u64]) -> Result<Vec<u64>, DataError> {
        Ok(vec![ids.len() as u64])
    }

    fn batch(&self, split: Split, ids: &[u64], epochs: Option<&[u64]>) -> Result<Samples, DataError> {
        let mut pixels = vec![0f32; ids.len() * PIXELS];
        let mut targets = Vec::with_capacity(ids.len());
        for (index, (&id, image)) in ids.iter().zip(pixels.chunks_exact_mut(PIXELS)).enumerate() {
            let record = self.record(split, id)?;
            let epoch = epochs.and_then(|epochs| epochs.get(index));
            let view = match (self.augment, epoch) {
                (Some(seed), Some(_)) if active(Mutation::AugmentWithoutEpoch) => View::random(seed, 0, id),
                (Some(seed), Some(&epoch)) => View::random(seed, epoch, id),
                _ => View::STRAIGHT,
            };
            view.render(&record[1..], image);
            targets.push(i64::from(record[0]));
        }
        let count = ids.len() as i64;
        Ok(Samples {
            inputs: Inputs::Pixels(pixels),
            input_shape: vec![count, CHANNELS as i64, SIDE as i64, SIDE as i64],
            targets,
            target_shape: vec![count],
            actions: None,
        })
    }
}

#[cfg(test)]
mod tests;
