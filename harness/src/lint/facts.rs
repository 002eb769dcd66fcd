//! The record of a run step by step, with the lines that it was read from.

use std::iter::Peekable;
use std::path::Path;

use lockstep_record::{
    Digest, DigestLine, Lines, Manifest, Phase, RecordError, RunDir, SampleLine, Segment, StepLine,
    read_lines,
};
use serde_json::Value as Json;

use crate::compare::{CompareError, Stepped};

/// A line of a file, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered<T> {
    pub line: u64,
    pub value: T,
}

impl<T> std::ops::Deref for Numbered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Files whose lines belong to steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    Metrics,
    Samples,
    Digests,
}

impl File {
    /// As it is called in the run directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics.jsonl",
            Self::Samples => "samples.jsonl",
            Self::Digests => "digests.jsonl",
        }
    }
}

/// A line whose step does not rise, and that no other check sees therefore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disorder {
    pub file: File,
    pub line: u64,
    pub step: u64,
    /// The step of the line before it.
    pub after: u64,
}

/// All that was recorded of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepFacts {
    pub step: u64,
    pub metrics: Option<Numbered<StepLine>>,
    pub samples: Option<Numbered<SampleLine>>,
    pub digests: Vec<Numbered<DigestLine>>,
}

impl StepFacts {
    /// The lines of a phase, one a tensor: where replicas have parted, the first, which is rank 0's.
    pub fn tensors(&self, phase: Phase) -> Vec<&Numbered<DigestLine>> {
        let mut seen = std::collections::HashSet::new();
        let lines = self.digests.iter().filter(|line| line.phase == phase);
        lines.filter(|line| seen.insert((line.tensor.as_str(), line.micro_batch))).collect()
    }

    /// The norm of one tensor.
    pub fn norm(&self, phase: Phase, tensor: &str) -> Option<f64> {
        let line = self.digests.iter().find(|line| line.phase == phase && line.tensor == tensor)?;
        Some(line.norm.0)
    }

    /// Whether the step's update was left out, because its gradient was not finite.
    pub fn is_skipped(&self) -> bool {
        self.metrics.as_ref().is_some_and(|line| line.skipped_for.is_some())
    }

    /// Micro-batches, as the metrics know them.
    pub fn micro_batches(&self) -> usize {
        self.metrics.as_ref().map_or(0, |line| line.micro_batch_losses.len())
    }
}

/// What holds for the whole run.
pub struct Context<'a> {
    pub manifest: &'a Manifest,
}

impl<'a> Context<'a> {
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest }
    }

    /// Whether the trainer is `lockstep`, whose sampler and configuration are known.
    pub fn is_ours(&self) -> bool {
        self.manifest.program.name == "lockstep"
    }

    /// The segment in which a step was made; step 0 belongs to the first.
    pub fn segment(&self, step: u64) -> Option<&'a Segment> {
        let segments = &self.manifest.segments;
        segments.iter().rev().find(|segment| segment.from_step < step).or(segments.first())
    }

    /// Ranks that were at work in a step; 1 where the manifest does not say.
    pub fn world(&self, step: u64) -> u32 {
        self.segment(step).map_or(1, |segment| segment.world_size.max(1))
    }

    /// The configuration's value under a dotted key.
    pub fn config(&self, key: &str) -> Option<&'a Json> {
        key.split('.')
            .try_fold(&self.manifest.config, |tree, name| tree.get(name))
            .filter(|value| !value.is_null())
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.config(key)?.as_f64()
    }

    pub fn count(&self, key: &str) -> Option<u64> {
        self.config(key)?.as_u64()
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.config(key)?.as_str()
    }

    /// The rank that computes a micro-batch of `count` in a step: ranks have contiguous shares.
    pub fn rank_of(&self, step: u64, micro_batch: usize, count: usize) -> u32 {
        let world = (self.world(step) as usize).min(count.max(1));
        let (size, larger) = (count / world, count % world);
        let boundary = larger * (size + 1);
        let rank = match micro_batch < boundary {
            true => micro_batch / (size + 1),
            false => larger + (micro_batch - boundary) / size.max(1),
        };
        u32::try_from(rank).unwrap_or(u32::MAX)
    }

    /// Samples in a step, as the configuration says.
    pub fn samples_per_step(&self) -> Option<u64> {
        self.count("batch.micro_batches")?.checked_mul(self.count("batch.micro_batch_size")?)
    }
}

/// One file's lines, in order.
struct Source<T: serde::de::DeserializeOwned> {
    file: File,
    lines: Peekable<std::iter::Enumerate<Lines<T>>>,
    last: Option<u64>,
}

/// Reads the three files side by side, one step in memory.
pub struct Steps {
    metrics: Source<StepLine>,
    samples: Source<SampleLine>,
    digests: Option<Source<DigestLine>>,
    pub disorder: Vec<Disorder>,
    /// Files whose last line is cut short, and that line.
    pub truncated: Vec<(File, u64)>,
}

/// Lines that are out of order are kept for one check; a file that has more is no record.
const DISORDER_MAX: usize = 1000;

impl Steps {
    pub fn open(run: &RunDir) -> Result<Self, CompareError> {
        let digests = run.digests();
        let digests = if digests.exists() { Some(Source::open(File::Digests, &digests)?) } else { None };
        Ok(Self {
            metrics: Source::open(File::Metrics, &run.metrics())?,
            samples: Source::open(File::Samples, &run.samples())?,
            digests,
            disorder: Vec::new(),
            truncated: Vec::new(),
        })
    }

    /// The next step of which any file has a line.
    pub fn advance(&mut self) -> Result<Option<StepFacts>, CompareError> {
        let Self { metrics, samples, digests, disorder, truncated } = self;
        let mut heads = [metrics.head(disorder, truncated)?, samples.head(disorder, truncated)?, None];
        if let Some(digests) = digests {
            heads[2] = digests.head(disorder, truncated)?;
        }
        let Some(step) = heads.into_iter().flatten().min() else { return Ok(None) };
        let mut facts = StepFacts { step, ..StepFacts::default() };
        if heads[0] == Some(step) {
            facts.metrics = metrics.take()?;
        }
        if heads[1] == Some(step) {
            facts.samples = samples.take()?;
        }
        if let Some(digests) = digests {
            while digests.head(disorder, truncated)? == Some(step) {
                facts.digests.extend(digests.take()?);
            }
        }
        Ok(Some(facts))
    }
}

impl<T: serde::de::DeserializeOwned + Stepped> Source<T> {
    fn open(file: File, path: &Path) -> Result<Self, CompareError> {
        Ok(Self { file, lines: read_lines(path)?.enumerate().peekable(), last: None })
    }

    /// The step of the next line in order; passes over those that are not.
    fn head(
        &mut self,
        disorder: &mut Vec<Disorder>,
        truncated: &mut Vec<(File, u64)>,
    ) -> Result<Option<u64>, CompareError> {
        loop {
            let step = match self.lines.peek() {
                None => return Ok(None),
                Some((_, Ok(line))) => line.step(),
                Some((_, Err(_))) => match self.lines.next() {
                    // A run that was killed, or is still being written, can be judged up to there.
                    Some((_, Err(RecordError::Truncated { line, .. }))) => {
                        truncated.push((self.file, line));
                        return Ok(None);
                    }
                    Some((_, Err(error))) => return Err(error.into()),
                    _ => return Ok(None),
                },
            };
            match self.last {
                Some(after) if step < after || step == after && !T::REPEATS => {
                    let line = self.lines.next().map_or(0, |(index, _)| index as u64 + 1);
                    if disorder.len() < DISORDER_MAX {
                        disorder.push(Disorder { file: self.file, line, step, after });
                    }
                }
                _ => return Ok(Some(step)),
            }
        }
    }

    fn take(&mut self) -> Result<Option<Numbered<T>>, CompareError> {
        let Some((index, line)) = self.lines.next() else { return Ok(None) };
        let value = line?;
        self.last = Some(value.step());
        Ok(Some(Numbered { line: index as u64 + 1, value }))
    }
}

/// Digests of the model's parameters and state in one step: `wte.weight`, `exp_avg/wte.weight`, ...
pub fn state_digests(step: &StepFacts) -> impl Iterator<Item = (Phase, &str, Digest)> {
    let lines = step.digests.iter().filter(|line| matches!(line.phase, Phase::Optimizer | Phase::Parameters));
    lines.map(|line| (line.phase, line.tensor.as_str(), line.digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(metrics: &[u8], samples: &[u8], digests: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        std::fs::write(run.metrics(), metrics).unwrap();
        std::fs::write(run.samples(), samples).unwrap();
        std::fs::write(run.digests(), digests).unwrap();
        folder
    }

    fn samples(steps: &[u64]) -> Vec<u8> {
        let line = |step: &u64| format!("{{\"step\":{step},\"micro_batches\":[[1]]}}\n");
        steps.iter().map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn lines_out_of_order_are_passed_over_and_noted() {
        let folder = files(b"", &samples(&[1, 2, 2, 1, 3]), b"");
        let mut steps = Steps::open(&RunDir::new(folder.path())).unwrap();
        let mut seen = Vec::new();
        while let Some(step) = steps.advance().unwrap() {
            seen.push((step.step, step.samples.unwrap().line));
        }
        assert_eq!(seen, [(1, 1), (2, 2), (3, 5)]);
        let disorder = |line, step| Disorder { file: File::Samples, line, step, after: 2 };
        assert_eq!(steps.disorder, [disorder(3, 2), disorder(4, 1)]);
    }

    #[test]
    fn a_cut_last_line_ends_its_file_alone() {
        let folder = files(b"", &[samples(&[1, 2]), b"{\"step\":3".to_vec()].concat(), b"");
        let mut steps = Steps::open(&RunDir::new(folder.path())).unwrap();
        while steps.advance().unwrap().is_some() {}
        assert_eq!(steps.truncated, [(File::Samples, 3)]);
    }

    #[test]
    fn shares_of_ranks_are_the_trainers() {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "record_version": 1, "program": {"name": "x", "version": "1", "git_commit": "0"}, "seed": 1, "config": {},
            "model": {"parameters": 0, "tensors": []},
            "data": {"digest": "", "tokenizer": "", "tokenizer_digest": "", "vocabulary": 0, "train_samples": 0, "validation_samples": 0},
            "segments": [{"from_step": 0, "started_unix_s": 0, "world_size": 3, "strategy": "ddp", "reduction": "ordered",
                "backend": "mpi", "threads_per_rank": 1, "cpu_capability": "AVX2", "versions": {}, "ranks": []}],
        }))
        .unwrap();
        let context = Context::new(&manifest);
        let ranks: Vec<u32> = (0..8).map(|micro_batch| context.rank_of(1, micro_batch, 8)).collect();
        assert_eq!(ranks, [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(context.rank_of(1, 1, 2), 1);
        assert_eq!(context.rank_of(1, 5, 0), 5);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(one: Vec<u8>, two: Vec<u8>, three: Vec<u8>) {
            let folder = files(&one, &two, &three);
            let mut steps = Steps::open(&RunDir::new(folder.path())).unwrap();
            while let Ok(Some(_)) = steps.advance() {}
        }

        #[test]
        fn every_line_is_seen_once_or_noted(order in proptest::collection::vec(1u64..9, 0..12)) {
            let folder = files(b"", &samples(&order), b"");
            let mut steps = Steps::open(&RunDir::new(folder.path())).unwrap();
            let mut seen = 0;
            while steps.advance().unwrap().is_some() {
                seen += 1;
            }
            prop_assert_eq!(seen + steps.disorder.len(), order.len());
        }
    }
}
