//! What checks of the whole run need of all its steps: a few numbers each.

use std::collections::HashMap;

use lockstep_record::{Digest, Phase};

use super::epochs::Epochs;
use super::facts::{Context, Disorder, File, StepFacts, Steps, state_digests};

/// A step in a few numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Brief {
    /// Of `metrics.jsonl`.
    pub line: u64,
    pub step: u64,
    pub gradient_norm: f64,
    pub learning_rate: f64,
    pub skipped: bool,
}

/// All steps together.
#[derive(Debug, Default)]
pub struct History {
    pub steps: Vec<Brief>,
    /// Steps of which one of `metrics.jsonl` and `samples.jsonl` has a line and the other has not: the file that has it, its
    /// line, and the step.
    pub alone: Vec<(File, u64, u64)>,
    pub disorder: Vec<Disorder>,
    pub truncated: Vec<(File, u64)>,
    pub epochs: Epochs,
    /// Steps whose digests of parameters and optimizer state are kept, for their checkpoints.
    kept: Vec<u64>,
    digests: HashMap<(u64, Phase, String), Digest>,
}

/// Checkpoints beyond the newest so many are compared with their own digests only.
const KEPT_STEPS_MAX: usize = 16;

impl History {
    /// `checkpoints` are the steps that have one, in order.
    pub fn new(context: &Context, checkpoints: &[u64]) -> Self {
        let kept = checkpoints.iter().rev().take(KEPT_STEPS_MAX).copied().collect();
        Self { epochs: Epochs::new(context), kept, ..Self::default() }
    }

    /// Adds a step; steps come in order.
    pub fn note(&mut self, context: &Context, step: &StepFacts) {
        if let Some(line) = &step.metrics {
            self.steps.push(Brief {
                line: line.line,
                step: step.step,
                gradient_norm: line.gradient_norm.0,
                learning_rate: line.learning_rate.0,
                skipped: line.skipped_for.is_some(),
            });
        }
        match (&step.metrics, &step.samples) {
            (Some(line), None) => self.alone.push((File::Metrics, line.line, step.step)),
            (None, Some(line)) => self.alone.push((File::Samples, line.line, step.step)),
            _ => {}
        }
        self.epochs.note(context, step);
        if self.kept.contains(&step.step) {
            for (phase, tensor, digest) in state_digests(step) {
                self.digests.entry((step.step, phase, tensor.to_owned())).or_insert(digest);
            }
        }
    }

    /// The record has been read to its end.
    pub fn close(&mut self, steps: Steps) {
        self.disorder = steps.disorder;
        self.truncated = steps.truncated;
        self.epochs.close();
    }

    /// What the record says a tensor of a checkpoint was (`model/NAME` or `optimizer/KIND/NAME`).
    pub fn digest(&self, step: u64, tensor: &str) -> Option<Digest> {
        let (kind, name) = tensor.split_once('/')?;
        let phase = if kind == "model" { Phase::Parameters } else { Phase::Optimizer };
        self.digests.get(&(step, phase, name.to_owned())).copied()
    }
}
