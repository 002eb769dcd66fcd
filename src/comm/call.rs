//! One collective, described: what the watchdog, the flight recorder and the check of collectives know of it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use lockstep_record::Channel;

/// A collective that this rank is about to take part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Such as `reduce-scatter`.
    pub operation: &'static str,
    /// That this rank sends.
    pub elements: usize,
    /// That this rank sends.
    pub bytes: usize,
    /// Element type, such as `f32`.
    pub dtype: &'static str,
    /// The gradient bucket that it is about.
    pub bucket: Option<usize>,
    pub channel: Channel,
}

/// What a collective and the step it belongs to are called in messages: `reduce-scatter of bucket 3, step 12`.
pub struct Title<'a> {
    pub operation: &'a str,
    pub bucket: Option<u64>,
    pub step: u64,
}

impl fmt::Display for Title<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.operation)?;
        if let Some(bucket) = self.bucket {
            write!(formatter, " of bucket {bucket}")?;
        }
        match self.step {
            0 => formatter.write_str(" before the first step"),
            step => write!(formatter, ", step {step}"),
        }
    }
}

/// Where the training is, for messages and the flight recorder: nothing else depends on it.
#[derive(Debug)]
pub struct Position {
    step: AtomicU64,
    bucket: AtomicU64,
}

const NO_BUCKET: u64 = u64::MAX;

impl Default for Position {
    fn default() -> Self {
        Self { step: AtomicU64::new(0), bucket: AtomicU64::new(NO_BUCKET) }
    }
}

impl Position {
    /// The training loop begins a step.
    pub fn at_step(&self, step: u64) {
        self.step.store(step, Relaxed);
    }

    pub fn step(&self) -> u64 {
        self.step.load(Relaxed)
    }

    /// The collectives of the data channel are about this bucket from now on.
    pub fn at_bucket(&self, bucket: usize) {
        self.bucket.store(bucket as u64, Relaxed);
    }

    pub fn bucket(&self) -> Option<usize> {
        Some(self.bucket.load(Relaxed)).filter(|&bucket| bucket != NO_BUCKET).map(|bucket| bucket as usize)
    }
}
