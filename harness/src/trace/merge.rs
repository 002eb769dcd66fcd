//! One file with all ranks' events, replaced only when it is whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_record::RunDir;

use super::TraceError;
use crate::report::create_plain_file;

/// The joined trace while it is being written, beside its final place.
pub struct Merged {
    path: PathBuf,
    draft: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl Merged {
    /// Opens the draft of `path`, which must not be one of the traces of `ranks`.
    pub fn create(path: &Path, run: &RunDir, ranks: &[usize]) -> Result<Self, TraceError> {
        let place = |path: &Path| path.canonicalize().ok();
        if let Some(out) = place(path)
            && ranks.iter().any(|&rank| place(&run.rank_trace(rank)).as_ref() == Some(&out))
        {
            return Err(TraceError::OutIsInput(path.to_owned()));
        }
        let draft = path.with_extension("draft");
        let file = create_plain_file(&draft).map_err(TraceError::write(&draft))?;
        let mut merged =
            Self { path: path.to_owned(), draft, writer: Some(BufWriter::with_capacity(1 << 16, file)) };
        merged.write(&[b"[\n"])?;
        Ok(merged)
    }

    /// Adds one event, as its rank wrote it.
    pub fn add(&mut self, event: &[u8]) -> Result<(), TraceError> {
        self.write(&[event, b",\n"])
    }

    pub fn publish(mut self) -> Result<(), TraceError> {
        self.write(&[b"{}]\n"])?;
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let file = writer.into_inner().map_err(|error| TraceError::write(&self.draft)(error.into_error()))?;
        file.sync_all().map_err(TraceError::write(&self.draft))?;
        std::fs::rename(&self.draft, &self.path).map_err(TraceError::write(&self.path))
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<(), TraceError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        parts.iter().try_for_each(|part| writer.write_all(part)).map_err(TraceError::write(&self.draft))
    }
}

impl Drop for Merged {
    /// A draft that was not published is of no use to anyone.
    fn drop(&mut self) {
        if self.writer.is_some() {
            let _ = std::fs::remove_file(&self.draft);
        }
    }
}
