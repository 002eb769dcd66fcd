//! The cost model: the time of a step as a function of its setting and six constants.
//!
//! ```text
//! T(N)          = m·(forward + backward) + optimizer·o + fixed + exposed(N)
//! m             = ⌈M/N⌉ micro-batches a rank;  o = 1/N under ZeRO-1, else 1
//! scatter(N)    = (N−1)·(B·latency + k·G/N·per_byte)      all-to-all of k partial sums, or a ring's reduce-scatter
//! gather(N)     = (N−1)·(B·latency +   G/N·per_byte)      all-gather
//! exposed(N)    = scatter + gather                        without overlap
//!               = hide(scatter + gather, backward)        DDP
//!               = hide(scatter, backward) + hide(gather, forward)        ZeRO-1
//! hide(c, time) = max(c/B, c − time·(B−1)/B)
//! ```
//! with B buckets of equal size, a gradient of G bytes and k partial sums a rank ([`super::partials`]).
//! Messages of pairwise exchange and ring as in Thakur, Rabenseifner and Gropp, "Optimization of Collective
//! Communication Operations in MPICH" (2005). `hide` is the exact end of a pipeline: bucket b is ready when
//! b/B of the last micro-batch's backward is done, and buckets travel one after another; so the last one is
//! never hidden. For the gathering it runs the other way round: the next forward can begin with the first
//! bucket.

use super::measurement::{Measurement, Reduction, Strategy};
use super::partials::partial_sums_max;

/// Number of constants of one workload on one link.
pub const CONSTANTS: usize = 6;
/// Positions in [`Terms`].
pub const FORWARD: usize = 0;
pub const BACKWARD: usize = 1;
pub const OPTIMIZER: usize = 2;
pub const FIXED: usize = 3;
pub const LATENCY: usize = 4;
pub const PER_BYTE: usize = 5;

/// A linear function of the constants: one factor for each. As the constants themselves: seconds, and seconds
/// a byte.
pub type Terms = [f64; CONSTANTS];

/// What a step's time depends on, besides the constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    pub ranks: u32,
    pub micro_batches: u32,
    pub strategy: Strategy,
    pub reduction: Reduction,
    pub overlap: bool,
    pub gradient_bytes: u64,
    pub buckets: u32,
}

impl From<&Measurement> for Setting {
    fn from(measurement: &Measurement) -> Self {
        Self {
            ranks: measurement.ranks,
            micro_batches: measurement.micro_batches,
            strategy: measurement.strategy,
            reduction: measurement.reduction,
            overlap: measurement.overlap,
            gradient_bytes: measurement.gradient_bytes,
            buckets: measurement.buckets,
        }
    }
}

/// A time that is convex and piecewise linear in the constants: a sum plus, for each pair, the larger of the
/// two.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    pub base: Terms,
    pub larger_of: Vec<[Terms; 2]>,
}

impl Cost {
    /// Seconds.
    pub fn at(&self, constants: &Terms) -> f64 {
        let larger = |[a, b]: &[Terms; 2]| dot(a, constants).max(dot(b, constants));
        dot(&self.base, constants) + self.larger_of.iter().map(larger).sum::<f64>()
    }

    /// The linear function that equals this one around `constants`.
    pub fn linear_at(&self, constants: &Terms) -> Terms {
        let active = |pair: &[Terms; 2]| usize::from(dot(&pair[1], constants) > dot(&pair[0], constants));
        self.larger_of.iter().fold(self.base, |sum, pair| add(&sum, &pair[active(pair)], 1.0))
    }

    /// The linear function with the same member of every pair.
    pub fn linear_with(&self, member: usize) -> Terms {
        self.larger_of.iter().fold(self.base, |sum, pair| add(&sum, &pair[member.min(1)], 1.0))
    }

    fn linear(base: Terms) -> Self {
        Self { base, larger_of: Vec::new() }
    }

    /// What is left of `moved` when it hides behind the computing that `behind` names.
    fn hidden(moved: &Terms, behind: usize, buckets: f64) -> [Terms; 2] {
        let last = scale(moved, 1.0 / buckets);
        let mut rest = *moved;
        rest[behind] -= (buckets - 1.0) / buckets;
        [last, rest]
    }
}

fn dot(a: &Terms, b: &Terms) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &Terms, b: &Terms, factor: f64) -> Terms {
    std::array::from_fn(|index| a[index] + b[index] * factor)
}

fn scale(a: &Terms, factor: f64) -> Terms {
    a.map(|value| value * factor)
}

impl Setting {
    /// Time that the training thread computes.
    fn computing(&self) -> Terms {
        let micro_batches = f64::from(self.micro_batches.div_ceil(self.ranks));
        let share = self.optimizer_share();
        [micro_batches, micro_batches, share, 1.0, 0.0, 0.0]
    }

    /// The part of the optimizer's work that one rank does.
    pub fn optimizer_share(&self) -> f64 {
        if self.strategy == Strategy::Zero1 { 1.0 / f64::from(self.ranks) } else { 1.0 }
    }

    fn collective(&self, partial_sums: u32) -> Terms {
        let (ranks, bytes) = (f64::from(self.ranks), self.gradient_bytes as f64);
        let peers = ranks - 1.0;
        let mut terms = [0.0; CONSTANTS];
        terms[LATENCY] = peers * f64::from(self.buckets);
        terms[PER_BYTE] = peers * f64::from(partial_sums) * bytes / ranks;
        terms
    }

    fn scatter(&self) -> Terms {
        self.collective(match self.reduction {
            Reduction::Ordered => partial_sums_max(self.micro_batches, self.ranks),
            Reduction::Native => 1,
        })
    }

    fn gather(&self) -> Terms {
        self.collective(1)
    }

    /// Seconds during which a collective is under way.
    pub fn communication(&self) -> Terms {
        add(&self.scatter(), &self.gather(), 1.0)
    }

    /// Seconds of it that the training thread waits.
    pub fn exposed(&self) -> Cost {
        let buckets = f64::from(self.buckets);
        match (self.overlap && self.ranks > 1, self.strategy) {
            (false, _) => Cost::linear(self.communication()),
            (true, Strategy::Zero1) => Cost {
                base: [0.0; CONSTANTS],
                larger_of: vec![
                    Cost::hidden(&self.scatter(), BACKWARD, buckets),
                    Cost::hidden(&self.gather(), FORWARD, buckets),
                ],
            },
            (true, _) => Cost {
                base: [0.0; CONSTANTS],
                larger_of: vec![Cost::hidden(&self.communication(), BACKWARD, buckets)],
            },
        }
    }

    /// Seconds of a step.
    pub fn step(&self) -> Cost {
        let exposed = self.exposed();
        Cost { base: add(&self.computing(), &exposed.base, 1.0), larger_of: exposed.larger_of }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
pub(super) mod tests;
