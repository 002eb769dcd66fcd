//! Reading a checkpoint's tensors piece by piece, in constant memory, from files that may be damaged or hostile.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_record::{CheckpointFile, CheckpointManifest, TensorEntry, open_plain_file, refuse_link};
use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

use super::CompareError;
use super::values::Format;

/// The longest safetensors header that is read. A header has about 100 bytes a tensor.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// What a safetensors header says of one entry. The `safetensors` crate parses only whole files in memory, adds
/// up what the header claims without a check for overflow, and would have a 1 GB file mapped.
#[derive(Debug, Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<u64>,
    /// First byte and the one after the last, counted from the end of the header.
    data_offsets: (u64, u64),
}

/// Bytes of one element, and its format if it is a floating-point one. None for a dtype without whole bytes.
pub(crate) fn dtype(name: &str) -> Option<(usize, Option<Format>)> {
    Some(match name {
        "F64" => (8, Some(Format::F64)),
        "F32" => (4, Some(Format::F32)),
        "BF16" => (2, Some(Format::Bf16)),
        "F16" => (2, Some(Format::F16)),
        "I64" | "U64" => (8, None),
        "I32" | "U32" => (4, None),
        "I16" | "U16" => (2, None),
        "I8" | "U8" | "BOOL" => (1, None),
        _ => return None,
    })
}

/// The entries of a safetensors header by name.
#[derive(Debug)]
struct Header(HashMap<String, HeaderEntry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match entries.entry(name) {
                        Entry::Vacant(place) => {
                            place.insert(map.next_value()?);
                        }
                        Entry::Occupied(other) => {
                            return Err(A::Error::custom(format!(
                                "two entries are called `{}`",
                                other.key()
                            )));
                        }
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// BLAKE3 of what is read, hexadecimal.
pub fn blake3_of(file: impl std::io::Read) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// A safetensors file whose header has been read, and nothing else. It is not kept open: a checkpoint of a thousand
/// ranks has more files than a process may open.
struct TensorFile {
    path: Arc<Path>,
    bytes: u64,
    data_start: u64,
    header: Header,
}

impl TensorFile {
    fn open(path: PathBuf, listed: &CheckpointFile) -> Result<Self, CompareError> {
        let (file, bytes) = open_plain_file(&path)?;
        let fail = |problem: String| CompareError::malformed(&path, problem);
        if bytes != listed.bytes {
            return Err(fail(format!("has {bytes} bytes, but its manifest says {}", listed.bytes)));
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)
            .map_err(|error| fail(format!("no safetensors header: {error}")))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length > bytes.saturating_sub(8) {
            return Err(fail(format!("its safetensors header claims {length} bytes, in a file of {bytes}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(|error| fail(error.to_string()))?;
        let header = serde_json::from_slice(&header)
            .map_err(|error| fail(format!("its safetensors header is not valid: {error}")))?;
        Ok(Self { path: path.into(), bytes, data_start: 8 + length, header })
    }

    /// Where the bytes of `key` begin, after checking that they are what the manifest says.
    fn locate(&self, key: &str, tensor: &TensorEntry, elements: u64) -> Result<u64, CompareError> {
        let fail = |problem: String| CompareError::malformed(&self.path, format!("entry `{key}` {problem}"));
        let entry = self.header.0.get(key).ok_or_else(|| fail("is missing".into()))?;
        if entry.dtype != tensor.dtype {
            return Err(fail(format!("is {}, but its manifest says {}", entry.dtype, tensor.dtype)));
        }
        let size = dtype(&entry.dtype).map_or(0, |(size, _)| size as u64);
        let (begin, end) = entry.data_offsets;
        let expected = elements.checked_mul(size);
        if product(&entry.shape) != Some(elements) || end.checked_sub(begin) != expected {
            let shape = &entry.shape;
            return Err(fail(format!(
                "has shape {shape:?} at bytes {begin}..{end}, not {elements} elements"
            )));
        }
        match (self.data_start.checked_add(begin), self.data_start.checked_add(end)) {
            (Some(start), Some(end)) if end <= self.bytes => Ok(start),
            _ => Err(fail(format!("claims bytes {begin}..{end}, past the end of the file"))),
        }
    }
}

/// Elements of a tensor; None if that overflows.
pub(super) fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))
}

/// A checkpoint's folder: opens each file once, when it is first needed.
pub struct Checkpoint {
    folder: PathBuf,
    pub manifest: CheckpointManifest,
    files: HashMap<String, TensorFile>,
}

impl Checkpoint {
    pub fn open(folder: PathBuf) -> Result<Self, CompareError> {
        refuse_link(&folder)?;
        let manifest = super::read_manifest(&folder.join("manifest.json"))?;
        Ok(Self { folder, manifest, files: HashMap::new() })
    }

    /// Of tensors and files that another manifest in the folder lists.
    pub fn of(folder: PathBuf, manifest: CheckpointManifest) -> Self {
        Self { folder, manifest, files: HashMap::new() }
    }

    /// The same checkpoint, opened once more.
    pub fn again(&self) -> Self {
        Self::of(self.folder.clone(), self.manifest.clone())
    }

    fn manifest_error(&self, problem: impl std::fmt::Display) -> CompareError {
        CompareError::malformed(&self.folder.join("manifest.json"), problem)
    }

    fn file(&mut self, name: &str) -> Result<&TensorFile, CompareError> {
        if !self.files.contains_key(name) {
            let mut parts = Path::new(name).components();
            let plain = matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None)
                if part.to_str() == Some(name));
            if !plain {
                return Err(self.manifest_error(format!("`{name}` is not a plain file name")));
            }
            let Some(listed) = self.manifest.files.iter().find(|file| file.name == name) else {
                return Err(
                    self.manifest_error(format!("`{name}` holds a piece but is not in its list of files"))
                );
            };
            let opened = TensorFile::open(self.folder.join(name), listed)?;
            self.files.insert(name.to_owned(), opened);
        }
        self.files.get(name).ok_or_else(|| self.manifest_error(format!("`{name}` is not open")))
    }

    /// The bytes of a tensor from its first element to its last, wherever its pieces lie.
    pub fn stream(&mut self, tensor: &TensorEntry) -> Result<TensorStream, CompareError> {
        let fail =
            |this: &Self, problem: &str| this.manifest_error(format!("tensor `{}`: {problem}", tensor.name));
        let Some((element_bytes, _)) = dtype(&tensor.dtype) else {
            return Err(fail(self, &format!("unknown dtype `{}`", tensor.dtype)));
        };
        let size = element_bytes as u64;
        let total = product(&tensor.shape).and_then(|elements| elements.checked_mul(size));
        let Some(total) = total else {
            return Err(fail(self, &format!("shape {:?} has too many elements", tensor.shape)));
        };
        let mut spans = Vec::with_capacity(tensor.pieces.len());
        let mut next = 0u64;
        for piece in &tensor.pieces {
            if piece.offset != next {
                let problem = format!("its pieces leave a gap or overlap at element {next}: `{}`", piece.key);
                return Err(fail(self, &problem));
            }
            next = next
                .checked_add(piece.length)
                .ok_or_else(|| fail(self, "the lengths of its pieces overflow"))?;
            let file = self.file(&piece.file)?;
            let start = file.locate(&piece.key, tensor, piece.length)?;
            let (path, bytes) = (Arc::clone(&file.path), piece.length.saturating_mul(size));
            if bytes > 0 {
                spans.push(Span { begin: piece.offset.saturating_mul(size), path, start, bytes });
            }
        }
        if next.checked_mul(size) != Some(total) {
            return Err(fail(
                self,
                &format!("its pieces have {next} elements, its shape {:?}", tensor.shape),
            ));
        }
        Ok(TensorStream { spans, total, position: 0, open: None })
    }
}

/// A stretch of a tensor's bytes that lies in one file.
#[derive(Clone, Debug)]
struct Span {
    /// First byte of the tensor that it holds.
    begin: u64,
    path: Arc<Path>,
    /// Where that byte is in the file.
    start: u64,
    bytes: u64,
}

/// Reads a tensor front to back, or from any place on. A clone reads on its own: threads share a tensor that way.
#[derive(Debug)]
pub struct TensorStream {
    /// In order, without gap.
    spans: Vec<Span>,
    total: u64,
    position: u64,
    /// The file that was read last, by the number of its span.
    open: Option<(usize, File)>,
}

impl Clone for TensorStream {
    fn clone(&self) -> Self {
        Self { spans: self.spans.clone(), open: None, ..*self }
    }
}

impl TensorStream {
    /// Bytes that are still to be read.
    pub fn remaining(&self) -> u64 {
        self.total - self.position
    }

    /// Goes on at this byte of the tensor; at its end if it is shorter.
    pub fn seek(&mut self, position: u64) {
        self.position = position.min(self.total);
    }

    /// Fills `buffer` with the next bytes; it must not be longer than what remains.
    pub fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), CompareError> {
        let mut index = self.spans.partition_point(|span| span.begin + span.bytes <= self.position);
        while !buffer.is_empty() {
            let end = || CompareError::malformed(Path::new("checkpoint"), "a tensor ended too early");
            let span = self.spans.get(index).ok_or_else(end)?;
            let skipped = self.position - span.begin;
            let now = (span.bytes - skipped).min(buffer.len() as u64) as usize;
            let (head, tail) = buffer.split_at_mut(now);
            let file = match self.open.take() {
                Some((number, file)) if number == index => file,
                _ => open_plain_file(&span.path)?.0,
            };
            let read = file.read_exact_at(head, span.start + skipped);
            read.map_err(|error| CompareError::malformed(&span.path, error))?;
            self.open = Some((index, file));
            self.position += now as u64;
            index += 1;
            buffer = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open_header(header: &[u8], claimed: u64) -> Result<TensorFile, CompareError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.safetensors");
        let bytes = [&claimed.to_le_bytes(), header].concat();
        std::fs::write(&path, &bytes).unwrap();
        let listed = CheckpointFile {
            name: "shard.safetensors".into(),
            bytes: bytes.len() as u64,
            blake3: String::new(),
        };
        TensorFile::open(path, &listed)
    }

    fn tensor(shape: Vec<u64>) -> TensorEntry {
        let digest = lockstep_record::Digest(0);
        TensorEntry { name: "w".into(), dtype: "F32".into(), shape, digest, pieces: Vec::new() }
    }

    #[test]
    fn absurd_lengths_are_refused_before_any_allocation() {
        for claimed in [u64::MAX, 1 << 60, HEADER_BYTES_MAX + 1, 3] {
            let error = open_header(b"{}", claimed).err().unwrap().to_string();
            assert!(error.contains("header claims"), "{error}");
        }
    }

    #[test]
    fn offsets_past_the_end_or_overflowing_are_refused() {
        for (begin, end, elements) in
            [(0u64, 4, 1u64), (u64::MAX - 3, u64::MAX, 1), (4, 0, 1), (0, 0, 1 << 63)]
        {
            let header =
                format!(r#"{{"w":{{"dtype":"F32","shape":[{elements}],"data_offsets":[{begin},{end}]}}}}"#);
            let file = open_header(header.as_bytes(), header.len() as u64).unwrap();
            assert!(file.locate("w", &tensor(vec![elements]), elements).is_err(), "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(header in proptest::collection::vec(any::<u8>(), 0..200), claimed in 0u64..210) {
            if let Ok(file) = open_header(&header, claimed) {
                let _ = file.locate("w", &tensor(vec![3]), 3);
            }
        }

        #[test]
        fn no_entry_panics(begin: u64, end: u64, size: u64, other: u64) {
            let header =
                format!(r#"{{"w":{{"dtype":"F32","shape":[{size},{other}],"data_offsets":[{begin},{end}]}}}}"#);
            let file = open_header(header.as_bytes(), header.len() as u64).unwrap();
            prop_assert!(file.locate("w", &tensor(vec![size, other]), size).is_err() || begin == end);
        }
    }
}
