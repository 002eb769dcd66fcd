//! Where the time of a step goes.

use std::time::Instant;

use lockstep_record::Seconds;

use crate::trace::{About, Category, Span, Trace};

/// Splits the training thread's step into parts, each a span of the trace.
pub struct Stopwatch {
    trace: Trace,
    started: Instant,
    current: Option<(Category, Instant, Span)>,
    seconds: Seconds,
}

impl Stopwatch {
    pub fn start(trace: &Trace, step: u64) -> Self {
        trace.at_step(step);
        let seconds = Seconds::default();
        Self { trace: trace.clone(), started: Instant::now(), current: None, seconds }
    }

    /// The part in progress ends, and another begins.
    pub fn enter(&mut self, part: Category, about: About) {
        self.stop();
        self.current = Some((part, Instant::now(), self.trace.training(part, about)));
    }

    /// The part in progress ends.
    pub fn stop(&mut self) {
        let Some((part, since, _span)) = self.current.take() else { return };
        *match part {
            Category::Data => &mut self.seconds.data,
            Category::Forward => &mut self.seconds.forward,
            Category::Backward => &mut self.seconds.backward,
            Category::Wait | Category::Communication => &mut self.seconds.communication,
            Category::Optimizer => &mut self.seconds.optimizer,
            Category::Record => &mut self.seconds.record,
        } += since.elapsed().as_secs_f64();
    }

    /// What has been measured so far. `communication_total` is measured elsewhere.
    pub fn seconds(&self, communication_total: f64) -> Seconds {
        Seconds { total: self.started.elapsed().as_secs_f64(), communication_total, ..self.seconds }
    }
}
