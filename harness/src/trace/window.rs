//! From a rank's spans, as they stream by, to what each of its steps was made of.
//!
//! A collective is under way from when its last rank has come. It is **exposed** while its rank's training thread waits, or
//! does the communication itself; the rest is hidden behind computing. What the training thread waits before the last
//! rank has come is that rank's lateness. All are measured as points of time, so that neither the number of spans
//! that a wait was written as nor collectives in flight side by side count twice.

use std::collections::BTreeMap;

use lockstep_record::{Category, Span, TRAINING_THREAD};

use super::intervals::{Interval, length, overlap, union};
use super::meetings::Meetings;

/// A file's steps may fall back by this much: see [`lockstep_record::SpanArgs::step`].
const LATE_STEPS: u64 = 1;
/// Spans of the few steps that are in memory at once, at most.
const SPANS_MAX: usize = 1 << 20;
/// Categories of the training thread that a step's table has a column for.
pub const PHASES: [Category; 6] = [
    Category::Data,
    Category::Forward,
    Category::Backward,
    Category::Optimizer,
    Category::Record,
    Category::Wait,
];

/// What one rank did in one step. All times in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    pub step: u64,
    /// From the training thread's first span of the step to the end of its last.
    pub step_us: f64,
    /// Of the training thread, in the order of [`PHASES`].
    pub phases_us: [f64; PHASES.len()],
    /// Time during which at least one collective of the step was under way.
    pub communication_us: f64,
    /// The part of `communication_us` during which the training thread waited.
    pub exposed_us: f64,
    /// What it waited in collectives to which other ranks had not come yet.
    pub late_us: f64,
    /// Communication and its exposed part, by bucket.
    pub buckets_us: BTreeMap<u32, (f64, f64)>,
}

/// The part of a [`Span`] that counts.
struct Piece {
    category: Category,
    training: bool,
    bucket: Option<u32>,
    interval: Interval,
    /// Of a collective: from when on it was under way.
    moving_from: f64,
}

impl Piece {
    fn under_way(&self) -> Interval {
        Interval { start: self.moving_from, ..self.interval }
    }
}

/// Holds the spans of the newest steps of one rank until no more can come.
pub struct Window<'m> {
    meetings: &'m Meetings,
    steps: BTreeMap<u64, Vec<Piece>>,
    newest: u64,
    spans: usize,
}

impl<'m> Window<'m> {
    pub fn new(meetings: &'m Meetings) -> Self {
        Self { meetings, steps: BTreeMap::new(), newest: 0, spans: 0 }
    }

    /// Takes the next span of the file and returns the steps that are whole now. Spans outside of steps count
    /// nowhere.
    pub fn push(&mut self, span: &Span) -> Result<Vec<StepTimes>, String> {
        let step = span.args.step;
        if step == 0 {
            return Ok(Vec::new());
        }
        if step + LATE_STEPS < self.newest {
            return Err(format!(
                "step {step} after step {}: a span is written at most {LATE_STEPS} step late; a run that goes on from \
                 a checkpoint begins a new trace",
                self.newest
            ));
        }
        if self.spans == SPANS_MAX {
            return Err(format!(
                "more than {SPANS_MAX} spans around step {step}: no step of a training has as many"
            ));
        }
        self.newest = self.newest.max(step);
        self.spans += 1;
        let start = span.start_us;
        self.steps.entry(step).or_default().push(Piece {
            category: span.category,
            training: span.thread == TRAINING_THREAD,
            bucket: span.args.bucket,
            interval: Interval { start, end: start + span.duration_us },
            moving_from: self.meetings.moving_from(span),
        });
        // A step's last gathering is waited for in the next one, whose spans may in turn be late.
        Ok(self.finish_before(self.newest.saturating_sub(2 * LATE_STEPS)))
    }

    /// Returns the steps that are left at the end of the file; of one that was cut short, those that are
    /// whole.
    pub fn finish(mut self, complete: bool) -> Vec<StepTimes> {
        let end = if complete { self.newest + 1 } else { self.newest.saturating_sub(LATE_STEPS) };
        self.finish_before(end)
    }

    fn finish_before(&mut self, end: u64) -> Vec<StepTimes> {
        let mut finished = Vec::new();
        while let Some((&step, _)) = self.steps.first_key_value().filter(|(step, _)| **step < end) {
            finished.push(self.times(step));
            self.spans -= self.steps.remove(&step).map_or(0, |pieces| pieces.len());
        }
        finished
    }

    fn times(&self, step: u64) -> StepTimes {
        let own = || self.steps.get(&step).into_iter().flatten();
        let nearby = self.steps.range(step..=step + LATE_STEPS).flat_map(|(_, pieces)| pieces);
        let waiting = |piece: &&Piece| matches!(piece.category, Category::Wait | Category::Communication);
        let idle = covered(nearby.filter(|piece| piece.training).filter(waiting));
        let moving = || own().filter(|piece| piece.category == Category::Communication);
        let measure = |communication: &[Interval]| (length(communication), overlap(communication, &idle));

        let (communication_us, exposed_us) = measure(&union(moving().map(Piece::under_way).collect()));
        let (_, waited_us) = measure(&covered(moving()));
        // One pass for all buckets: a hostile trace has as many as spans.
        let mut buckets: BTreeMap<u32, Vec<Interval>> = BTreeMap::new();
        for piece in moving() {
            if let Some(bucket) = piece.bucket {
                buckets.entry(bucket).or_default().push(piece.under_way());
            }
        }
        let training = || own().filter(|piece| piece.training);
        StepTimes {
            step,
            step_us: extent(training().map(|piece| piece.interval)),
            phases_us: PHASES
                .map(|phase| length(&covered(training().filter(|piece| piece.category == phase)))),
            communication_us,
            exposed_us,
            late_us: (waited_us - exposed_us).max(0.0),
            buckets_us: buckets.into_iter().map(|(bucket, times)| (bucket, measure(&union(times)))).collect(),
        }
    }
}

fn covered<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<Interval> {
    union(pieces.map(|piece| piece.interval).collect())
}

fn extent(intervals: impl Iterator<Item = Interval>) -> f64 {
    let (start, end) = intervals.fold((f64::INFINITY, f64::NEG_INFINITY), |(start, end), interval| {
        (start.min(interval.start), end.max(interval.end))
    });
    (end - start).max(0.0)
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
