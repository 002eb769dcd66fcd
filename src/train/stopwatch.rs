//! Where the time of a step goes.

use std::time::Instant;

use lockstep_record::Seconds;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Data,
    Forward,
    Backward,
    Communication,
    Optimizer,
    Record,
}

/// Splits a step into parts: each lap belongs to one.
pub struct Stopwatch {
    started: Instant,
    lap: Instant,
    seconds: Seconds,
}

impl Stopwatch {
    pub fn start() -> Self {
        let now = Instant::now();
        Self { started: now, lap: now, seconds: Seconds::default() }
    }

    /// Ends a lap.
    pub fn lap(&mut self, part: Part) {
        let now = Instant::now();
        let seconds = now.duration_since(self.lap).as_secs_f64();
        self.lap = now;
        *match part {
            Part::Data => &mut self.seconds.data,
            Part::Forward => &mut self.seconds.forward,
            Part::Backward => &mut self.seconds.backward,
            Part::Communication => &mut self.seconds.communication,
            Part::Optimizer => &mut self.seconds.optimizer,
            Part::Record => &mut self.seconds.record,
        } += seconds;
    }

    /// What has been measured so far.
    pub fn seconds(&self) -> Seconds {
        Seconds { total: self.started.elapsed().as_secs_f64(), ..self.seconds }
    }
}
