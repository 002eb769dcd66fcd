//! Rank 0's pen: it alone writes the run directory's record.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use lockstep_record::{DigestLine, Ended, Manifest, RunDir, SampleLine, Segment, StepLine};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::csv;
use crate::files;
use crate::mutate::{Mutation, active};

/// Why the run directory cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("run directory {} is in use by another process; wait for it, or choose another with --run-dir", path.display())]
    InUse { path: PathBuf },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> RecorderError + '_ {
    |source| RecorderError::Io { path: path.to_owned(), source }
}

/// The open record of a run.
pub struct Recorder {
    run: RunDir,
    manifest: Manifest,
    metrics: BufWriter<File>,
    samples: BufWriter<File>,
    digests: BufWriter<File>,
    _lock: File,
}

impl Recorder {
    /// Locks the run directory, making it if need be. The lock lasts as long as the returned file.
    pub fn lock(run: &RunDir) -> Result<File, RecorderError> {
        std::fs::create_dir_all(run.path()).map_err(io_error(run.path()))?;
        let path = run.lock();
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(RecorderError::InUse { path: run.path().to_owned() }),
            Err(TryLockError::Error(source)) => Err(RecorderError::Io { path, source }),
        }
    }

    /// Opens the record after step `from_step`: what an earlier execution wrote about later steps is dropped, since
    /// those steps are done again.
    pub fn open(
        run: &RunDir,
        lock: File,
        mut manifest: Manifest,
        segment: Segment,
        config_yaml: &str,
    ) -> Result<Self, RecorderError> {
        let lost = active(Mutation::RecordLosesAStep) && segment.from_step > 0;
        let from_step = segment.from_step - u64::from(lost);
        keep_until::<StepLine>(&run.metrics(), |line| line.step <= from_step)?;
        keep_until::<SampleLine>(&run.samples(), |line| line.step <= from_step)?;
        keep_until::<DigestLine>(&run.digests(), |line| line.step <= from_step)?;
        manifest.segments.push(segment);
        let append = |path: PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io_error(&path))?;
            Ok(BufWriter::new(file))
        };
        let recorder = Self {
            metrics: append(run.metrics())?,
            samples: append(run.samples())?,
            digests: append(run.digests())?,
            run: run.clone(),
            manifest,
            _lock: lock,
        };
        files::replace(&run.config(), config_yaml.as_bytes()).map_err(io_error(&run.config()))?;
        recorder.write_manifest()?;
        Ok(recorder)
    }

    fn write_manifest(&self) -> Result<(), RecorderError> {
        let path = self.run.manifest();
        files::replace(&path, &files::pretty_json(&self.manifest)).map_err(io_error(&path))
    }

    pub fn digests(&mut self, lines: &[DigestLine]) -> Result<(), RecorderError> {
        lines
            .iter()
            .try_for_each(|line| write_line(&mut self.digests, line))
            .map_err(io_error(&self.run.digests()))
    }

    /// Writes a finished step and hands everything so far to the operating system, so that a crash keeps it.
    pub fn step(&mut self, line: &StepLine, samples: &SampleLine) -> Result<(), RecorderError> {
        let path = self.run.metrics();
        write_line(&mut self.samples, samples).map_err(io_error(&self.run.samples()))?;
        write_line(&mut self.metrics, line).map_err(io_error(&path))?;
        [&mut self.digests, &mut self.samples, &mut self.metrics]
            .into_iter()
            .try_for_each(Write::flush)
            .map_err(io_error(&path))
    }

    /// Closes the record of this execution.
    pub fn finish(mut self, ended: Ended) -> Result<(), RecorderError> {
        self.digests.flush().map_err(io_error(&self.run.digests()))?;
        if let Some(segment) = self.manifest.segments.last_mut() {
            segment.ended = Some(ended);
        }
        self.write_manifest()?;
        csv::derive(&self.run)
            .map_err(|reason| RecorderError::Content { path: self.run.metrics_csv(), reason })
    }
}

fn write_line(writer: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}

/// Drops the lines that `keep` refuses, and a last line that a crash cut short. A whole line that is not of this
/// record is an error: it is not ours to delete.
fn keep_until<T: DeserializeOwned>(path: &Path, keep: impl Fn(&T) -> bool) -> Result<(), RecorderError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(path)(error)),
    };
    let (mut kept, mut dropped) = (Vec::new(), false);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(io_error(path))? == 0 {
            break;
        }
        if line.last() != Some(&b'\n') {
            dropped = true;
            break;
        }
        let parsed: T = serde_json::from_slice(&line).map_err(|error| RecorderError::Content {
            path: path.to_owned(),
            reason: format!("line {number}: {error}; move the file away to resume"),
        })?;
        match keep(&parsed) {
            true => kept.extend_from_slice(&line),
            false => dropped = true,
        }
    }
    if dropped { files::replace(path, &kept).map_err(io_error(path)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64) -> String {
        serde_json::to_string(&SampleLine { step, micro_batches: vec![vec![step]], masks: vec![] }).unwrap()
            + "\n"
    }

    #[test]
    fn later_steps_and_a_cut_line_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        std::fs::write(&path, sample(1) + &sample(2) + &sample(3) + "{\"step\":4").unwrap();
        keep_until::<SampleLine>(&path, |line| line.step <= 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sample(1) + &sample(2));
    }

    #[test]
    fn a_foreign_line_is_an_error_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let text = sample(1) + "something else\n";
        std::fs::write(&path, &text).unwrap();
        let error = keep_until::<SampleLine>(&path, |_| true).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let lock = Recorder::lock(&run).unwrap();
        assert!(matches!(Recorder::lock(&run), Err(RecorderError::InUse { .. })));
        drop(lock);
        assert!(Recorder::lock(&run).is_ok());
    }
}
