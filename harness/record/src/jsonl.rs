//! Reading the record's JSON files: line by line, in constant memory, with the file and the line in each error.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::open_plain_file;

/// The longest line that is read: a record with a longer one is refused, whatever else it says.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// The largest `manifest.json` that is read.
const DOCUMENT_BYTES_MAX: u64 = 256 << 20;

/// Why a file of a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {source}", path.display())]
    Line { path: PathBuf, line: u64, source: serde_json::Error },
    #[error("{}: {source}", path.display())]
    Document { path: PathBuf, source: serde_json::Error },
    #[error("{}:{line}: the last line is cut short: the run was killed, or is still being written", path.display())]
    Truncated { path: PathBuf, line: u64 },
    #[error("{}:{line}: longer than {LINE_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf, line: u64 },
    #[error("{}:{line}: {problem}", path.display())]
    Trace { path: PathBuf, line: u64, problem: String },
    #[error("{}: larger than {DOCUMENT_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: a symbolic link, which is refused: a record is read from its own folder alone", path.display())]
    Link { path: PathBuf },
    #[error("{}: not a plain file", path.display())]
    NotPlain { path: PathBuf },
    #[error(
        "{}: record version {found} is newer than {supported}, the newest that this program reads: update it",
        path.display()
    )]
    Version { path: PathBuf, found: u64, supported: u32 },
}

/// Reads a whole JSON document (a manifest) and checks its `record_version` before its other fields.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let (file, length) = open_plain_file(path)?;
    // Whatever the length says: a file that is being written grows.
    let mut bytes = Vec::with_capacity(length.min(DOCUMENT_BYTES_MAX) as usize);
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(RecordError::TooLarge { path: path.to_owned() });
    }
    let document = |source| RecordError::Document { path: path.to_owned(), source };
    let Version { record_version: found } = serde_json::from_slice(&bytes).map_err(document)?;
    if found > u64::from(crate::RECORD_VERSION) {
        return Err(RecordError::Version { path: path.to_owned(), found, supported: crate::RECORD_VERSION });
    }
    serde_json::from_slice(&bytes).map_err(document)
}

/// The only field of a document that every version of the format has.
#[derive(Deserialize)]
struct Version {
    record_version: u64,
}

/// Opens a JSONL file of the record.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>, RecordError> {
    Ok(Lines { raw: RawLines::open(path)?, failed: false, item: PhantomData })
}

/// Opens a JSONL file that a person named: it may be a link or a pipe, which in a record are refused.
pub fn read_named_lines<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>, RecordError> {
    let file = File::open(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    Ok(Lines { raw: RawLines::of(path, file), failed: false, item: PhantomData })
}

/// Lines of a text file as bytes: numbered from 1, and of bounded length.
pub(crate) struct RawLines {
    pub path: PathBuf,
    reader: BufReader<File>,
    /// Of the line in `buffer`.
    pub line: u64,
    pub buffer: Vec<u8>,
}

impl RawLines {
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        Ok(Self::of(path, open_plain_file(path)?.0))
    }

    fn of(path: &Path, file: File) -> Self {
        let reader = BufReader::with_capacity(1 << 16, file);
        Self { path: path.to_owned(), reader, line: 0, buffer: Vec::new() }
    }

    /// Reads the next line, its newline included, into `buffer`; false at the end of the file.
    pub fn advance(&mut self) -> Result<bool, RecordError> {
        self.buffer.clear();
        self.line += 1;
        let read = (&mut self.reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|source| RecordError::Io { path: self.path.clone(), source })?;
        if read as u64 == LINE_BYTES_MAX && !self.is_whole() {
            return Err(RecordError::TooLong { path: self.path.clone(), line: self.line });
        }
        Ok(read > 0)
    }

    /// Whether the line in `buffer` has its newline.
    pub fn is_whole(&self) -> bool {
        self.buffer.last() == Some(&b'\n')
    }
}

/// The lines of a JSONL file. It ends after the first error.
pub struct Lines<T> {
    raw: RawLines,
    failed: bool,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn next_line(&mut self) -> Result<Option<T>, RecordError> {
        if !self.raw.advance()? {
            return Ok(None);
        }
        let (path, line) = (&self.raw.path, self.raw.line);
        if !self.raw.is_whole() {
            return Err(RecordError::Truncated { path: path.clone(), line });
        }
        serde_json::from_slice(&self.raw.buffer).map(Some).map_err(|source| RecordError::Line {
            path: path.clone(),
            line,
            source,
        })
    }
}

impl<T: DeserializeOwned> Iterator for Lines<T> {
    type Item = Result<T, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.next_line().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SampleLine;
    use proptest::prelude::*;

    fn lines_of(bytes: &[u8]) -> Vec<Result<SampleLine, RecordError>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        std::fs::write(&path, bytes).unwrap();
        read_lines(&path).unwrap().collect()
    }

    #[test]
    fn a_cut_last_line_is_named() {
        let lines = lines_of(b"{\"step\":1,\"micro_batches\":[[3]]}\n{\"step\":2,\"mic");
        assert!(lines[0].is_ok());
        assert!(lines[1].as_ref().unwrap_err().to_string().contains("samples.jsonl:2: the last line is cut"));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_newer_record_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        std::fs::write(&path, "{\"record_version\": 99}").unwrap();
        let error = read_json::<crate::Manifest>(&path).unwrap_err();
        assert!(error.to_string().contains("record version 99 is newer"), "{error}");
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = lines_of(&bytes);
        }
    }
}
