//! How far apart two values may be: as far everywhere, or by step and tensor as the golden run's envelope says.

use lockstep_record::{Phase, Real};

use super::values::{Mode, Tolerance};
use crate::tolerance::{Envelope, Measure};

/// Relative room for what is computed without tensors in double precision: the learning rate. Another library's cosine may
/// differ in the last bits.
const DOUBLE_RTOL: f64 = 4.0 * f64::EPSILON;

/// What a comparison judges by.
#[derive(Clone, Copy)]
pub enum Bars<'a> {
    Same(Mode),
    Envelope(&'a Envelope),
}

/// A tensor, or a column of the metrics.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub step: u64,
    /// None for the metrics.
    pub phase: Option<Phase>,
    pub micro_batch: Option<u32>,
    pub name: &'a str,
}

impl<'a> Subject<'a> {
    pub fn column(step: u64, name: &'a str) -> Self {
        Self { step, phase: None, micro_batch: None, name }
    }

    fn bound(&self, envelope: &Envelope, measure: Measure) -> Option<f64> {
        // What each rank makes of the norm is a column of the metrics, once more.
        let phase = self.phase.filter(|phase| *phase != Phase::Norm);
        envelope.bound(measure, self.step, (phase, self.micro_batch, self.name))
    }
}

fn within(atol: f64) -> Mode {
    Mode::Tolerance(Tolerance { rtol: 0.0, atol, parameter_norm_atol: None })
}

impl Bars<'_> {
    pub fn exact(&self) -> bool {
        matches!(self, Self::Same(Mode::Exact))
    }

    /// Whether tensors must have the same bits: within an envelope those that come before all arithmetic, of which it knows
    /// nothing.
    pub fn same_bits(&self, phase: Phase) -> bool {
        self.exact() || matches!(self, Self::Envelope(_)) && phase == Phase::Data
    }

    /// For two numbers. None if the envelope knows nothing of them: then they can only be equal, or not be compared.
    pub fn value(&self, subject: Subject, values: (Real, Real)) -> Option<Mode> {
        match self {
            Self::Same(Mode::Tolerance(Tolerance { parameter_norm_atol: Some(bar), .. }))
                if subject.phase.is_none() && subject.name == "parameter_norm" =>
            {
                // "Less than" is "at most the next smaller number".
                Some(within(bar.next_down()))
            }
            Self::Same(mode) => Some(*mode),
            Self::Envelope(_) if subject.name == "learning_rate" => {
                let tolerance = Tolerance { rtol: DOUBLE_RTOL, atol: 0.0, parameter_norm_atol: None };
                Some(Mode::Tolerance(tolerance))
            }
            Self::Envelope(envelope) => match subject.bound(envelope, Measure::Value) {
                Some(bound) => Some(within(bound)),
                // Nothing is near a NaN or an infinity but itself.
                None if !values.0.0.is_finite() || !values.1.0.is_finite() => Some(Mode::Exact),
                None => None,
            },
        }
    }

    /// For the Euclidean distance of two tensors.
    pub fn distance(&self, subject: Subject) -> Option<f64> {
        match self {
            Self::Same(_) => None,
            Self::Envelope(envelope) => subject.bound(envelope, Measure::Distance),
        }
    }
}

/// How many values were not compared because the envelope knows nothing of them, and the first of them.
#[derive(Debug, Default)]
pub struct Uncovered {
    count: u64,
    first: String,
}

impl Uncovered {
    pub fn note(&mut self, subject: Subject) {
        if self.count == 0 {
            self.first = format!("{} at step {}", subject.name, subject.step);
        }
        self.count += 1;
    }

    pub fn text(&self) -> Option<String> {
        (self.count > 0).then(|| format!("{} not in the envelope, first {}", self.count, self.first))
    }
}
