//! A published checkpoint on disk: its manifest, its files, and any range of any tensor.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use lockstep_record::{CheckpointManifest, TensorEntry, open_plain_file, read_json};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::CheckpointError;
use crate::files;
use crate::grad::layout::overlap;

/// An open checkpoint.
pub struct Archive {
    folder: PathBuf,
    manifest: CheckpointManifest,
    maps: Vec<Mmap>,
}

/// Its files with their headers parsed.
pub struct Reader<'a> {
    folder: &'a Path,
    files: HashMap<&'a str, SafeTensors<'a>>,
}

impl Archive {
    /// Reads the manifest and maps the files; nothing is verified yet.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let manifest: CheckpointManifest = read_json(&folder.join("manifest.json"))
            .map_err(|error| CheckpointError::unreadable(folder, error))?;
        let map = |name: &str| {
            let file = plain_file(folder, name)?;
            // SAFETY: a published checkpoint is never written to; a file that shrinks under us would end the
            // process with SIGBUS, as it would any reader.
            unsafe { Mmap::map(&file) }.map_err(|error| format!("{name}: {error}"))
        };
        let maps: Result<_, String> = manifest.files.iter().map(|file| map(&file.name)).collect();
        let maps = maps.map_err(|reason| CheckpointError::damaged(folder, reason))?;
        Ok(Self { folder: folder.to_owned(), manifest, maps })
    }

    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// Checks length and digest of every file.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.verify_share(0, 1).map_err(|reason| CheckpointError::damaged(&self.folder, reason))
    }

    /// Checks every `size`-th file, from the `rank`-th on: ranks share the work.
    pub fn verify_share(&self, rank: usize, size: usize) -> Result<(), String> {
        for file in self.manifest.files.iter().skip(rank).step_by(size) {
            let opened = plain_file(&self.folder, &file.name)?;
            let (bytes, digest) =
                files::digest_of(opened).map_err(|error| format!("{}: {error}", file.name))?;
            if bytes != file.bytes {
                return Err(format!(
                    "{} has {bytes} bytes instead of {}: it was cut short",
                    file.name, file.bytes
                ));
            }
            if digest != file.blake3 {
                return Err(format!(
                    "{} does not have the digest that it was saved with: its content has changed",
                    file.name
                ));
            }
        }
        Ok(())
    }

    /// Parses the files' headers.
    pub fn reader(&self) -> Result<Reader<'_>, String> {
        let mut files = HashMap::new();
        for (file, map) in self.manifest.files.iter().zip(&self.maps) {
            check_offsets(map).map_err(|reason| format!("{}: {reason}", file.name))?;
            let tensors = SafeTensors::deserialize(map).map_err(|error| format!("{}: {error}", file.name))?;
            files.insert(file.name.as_str(), tensors);
        }
        Ok(Reader { folder: &self.folder, files })
    }

    /// A whole tensor's elements.
    pub fn read(&self, tensor: &TensorEntry) -> Result<Vec<f32>, CheckpointError> {
        let damaged = |reason| CheckpointError::damaged(&self.folder, reason);
        let elements = tensor.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let on_disk: u64 = self.maps.iter().map(|map| map.len() as u64).sum();
        match elements {
            Some(elements) if elements <= on_disk => {
                let mut values = vec![0.0; elements as usize];
                self.reader()
                    .and_then(|reader| reader.copy(tensor, 0..elements as usize, &mut values))
                    .map_err(damaged)?;
                Ok(values)
            }
            _ => Err(damaged(format!("{} is larger than its files", tensor.name))),
        }
    }
}

/// Opens a file of the checkpoint; a manifest or a link that points elsewhere is refused.
fn plain_file(folder: &Path, name: &str) -> Result<File, String> {
    match Path::new(name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => {
            open_plain_file(&folder.join(name)).map(|(file, _)| file).map_err(|error| error.to_string())
        }
        _ => Err(format!("`{name}` is not a plain file name")),
    }
}

/// What must be known of a safetensors header before the `safetensors` crate may add up what it claims: it does so
/// without regard to overflow.
fn check_offsets(file: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        data_offsets: (u64, u64),
    }
    let length = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes) as usize);
    let header =
        length.and_then(|length| file.get(8..length.checked_add(8)?)).ok_or("its header is cut short")?;
    let entries: HashMap<String, Entry> =
        serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let outside = |(_, entry): &(&String, &Entry)| entry.data_offsets.1 > file.len() as u64;
    match entries.iter().find(outside) {
        Some((name, _)) => Err(format!("{name} claims bytes past the end of the file")),
        None => Ok(()),
    }
}

impl Reader<'_> {
    /// Copies elements `wanted` of a tensor from its pieces.
    pub fn copy(&self, tensor: &TensorEntry, wanted: Range<usize>, target: &mut [f32]) -> Result<(), String> {
        let (mut covered, mut next) = (0, 0);
        for piece in &tensor.pieces {
            if piece.offset != next {
                return Err(format!("{}: its pieces leave a gap or overlap at element {next}", tensor.name));
            }
            next = piece.offset.saturating_add(piece.length);
            let place = piece.offset as usize..next as usize;
            let part = overlap(&wanted, &place);
            if part.is_empty() {
                continue;
            }
            let file = self
                .files
                .get(piece.file.as_str())
                .ok_or_else(|| format!("{}: not a file of {}", piece.file, self.folder.display()))?;
            let view = file.tensor(&piece.key).map_err(|error| format!("{}: {error}", piece.file))?;
            let bytes = view.data();
            if view.dtype() != Dtype::F32 || bytes.len() as u64 != piece.length.saturating_mul(4) {
                return Err(format!("{}: {} is not {} fp32 elements", piece.file, piece.key, piece.length));
            }
            let bytes = &bytes[(part.start - place.start) * 4..(part.end - place.start) * 4];
            let target = &mut target[part.start - wanted.start..part.end - wanted.start];
            for (value, bytes) in target.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            covered += part.len();
        }
        match covered == wanted.len() {
            true => Ok(()),
            false => Err(format!("{}: its pieces cover {covered} of {} elements", tensor.name, wanted.len())),
        }
    }
}
