//! A run's record step by step: what three files say of one step, with one step in memory.

use std::iter::Peekable;
use std::path::{Path, PathBuf};

use lockstep_record::{DigestLine, Phase, RecordError, RunDir, SampleLine, StepLine, read_lines};
use serde::de::DeserializeOwned;

use crate::compare::{CompareError, Stepped, in_order};

/// What a run says of one step.
#[derive(Clone, Debug, Default)]
pub struct StepRecord {
    pub step: u64,
    pub samples: Option<SampleLine>,
    pub metrics: Option<StepLine>,
    pub digests: Vec<DigestLine>,
}

impl StepRecord {
    /// Whether it has digests of this phase.
    pub fn has(&self, phase: Phase) -> bool {
        self.digests.iter().any(|line| line.phase == phase)
    }
}

impl Stepped for StepRecord {
    const REPEATS: bool = false;
    fn step(&self) -> u64 {
        self.step
    }
}

type Stream<T> = Peekable<Box<dyn Iterator<Item = Result<T, CompareError>>>>;

/// The steps of a run, in order. A last line that was cut short counts as not written: a run that was killed, or that
/// goes on, is judged by what it finished.
pub struct Steps {
    samples: Stream<SampleLine>,
    metrics: Stream<StepLine>,
    digests: Stream<DigestLine>,
}

impl Steps {
    pub fn open(run: &RunDir) -> Result<Self, CompareError> {
        Ok(Self {
            samples: stream(run.samples())?,
            metrics: stream(run.metrics())?,
            digests: stream(run.digests())?,
        })
    }

    fn next_record(&mut self) -> Result<Option<StepRecord>, CompareError> {
        let steps = [peek(&mut self.samples)?, peek(&mut self.metrics)?, peek(&mut self.digests)?];
        let Some(step) = steps.into_iter().flatten().min() else { return Ok(None) };
        let mut record = StepRecord { step, ..StepRecord::default() };
        record.samples = take(&mut self.samples, step)?;
        record.metrics = take(&mut self.metrics, step)?;
        while let Some(line) = take(&mut self.digests, step)? {
            record.digests.push(line);
        }
        Ok(Some(record))
    }
}

impl Iterator for Steps {
    type Item = Result<StepRecord, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().transpose()
    }
}

/// The next line's step. An error is left for [`take`]: it has step 0, so it is taken first.
fn peek<T: Stepped>(stream: &mut Stream<T>) -> Result<Option<u64>, CompareError> {
    match stream.peek() {
        Some(Ok(line)) => Ok(Some(line.step())),
        Some(Err(_)) => match stream.next() {
            Some(Err(error)) => Err(error),
            _ => Ok(None),
        },
        None => Ok(None),
    }
}

/// The next line if it is of this step.
fn take<T: Stepped>(stream: &mut Stream<T>, step: u64) -> Result<Option<T>, CompareError> {
    match peek(stream)? {
        Some(next) if next == step => stream.next().transpose(),
        _ => Ok(None),
    }
}

/// The lines of a file; none if it is not there.
fn stream<T: DeserializeOwned + Stepped + 'static>(path: PathBuf) -> Result<Stream<T>, CompareError> {
    let lines: Box<dyn Iterator<Item = Result<T, CompareError>>> = match is_plain_file(&path)? {
        false => Box::new(std::iter::empty()),
        true => {
            let whole = |line: &Result<T, RecordError>| !matches!(line, Err(RecordError::Truncated { .. }));
            Box::new(in_order(path.clone(), read_lines::<T>(&path)?.take_while(whole)))
        }
    };
    Ok(lines.peekable())
}

/// False if nothing is there; an error if it is a pipe or a device, which could block for ever.
fn is_plain_file(path: &Path) -> Result<bool, CompareError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(CompareError::malformed(path, "not a plain file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CompareError::Record(RecordError::Io { path: path.to_owned(), source })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, samples: &str, metrics: &str) -> RunDir {
        let run = RunDir::new(folder);
        std::fs::write(run.samples(), samples).unwrap();
        std::fs::write(run.metrics(), metrics).unwrap();
        run
    }

    #[test]
    fn files_are_joined_by_step_and_a_cut_line_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64| format!("{{\"step\":{step},\"micro_batches\":[[1]]}}\n");
        let run = write(folder.path(), &(line(1) + &line(3) + "{\"step\":4"), "");
        let records: Vec<_> = Steps::open(&run).unwrap().map(Result::unwrap).collect();
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [1, 3]);
        assert!(
            records[0].samples.is_some() && records[0].metrics.is_none() && records[0].digests.is_empty()
        );
    }

    #[test]
    fn nonsense_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let run = write(folder.path(), "{\"step\":1,\"micro_batches\":[]}\nnonsense\n", "");
        let error = Steps::open(&run).unwrap().last().unwrap().unwrap_err().to_string();
        assert!(error.contains("samples.jsonl:2"), "{error}");
    }
}
