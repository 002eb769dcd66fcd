//! Strong and weak scaling by the fitted model, with the range that the measurements' own errors leave open.

use serde::Serialize;

use super::fit::Constants;
use super::measurement::{Measurement, Reduction, Strategy};
use super::model::{Cost, Setting, Terms};

/// A way to train that was measured with several ranks: what a curve is drawn for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Series {
    pub workload: String,
    pub link: String,
    pub strategy: Strategy,
    pub reduction: Reduction,
    pub overlap: bool,
    pub buckets: u32,
    pub gradient_bytes: u64,
}

impl From<&Measurement> for Series {
    fn from(measurement: &Measurement) -> Self {
        Self {
            workload: measurement.workload.clone(),
            link: measurement.link.clone(),
            strategy: measurement.strategy,
            reduction: measurement.reduction,
            overlap: measurement.overlap,
            buckets: measurement.buckets,
            gradient_bytes: measurement.gradient_bytes,
        }
    }
}

impl std::fmt::Display for Series {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { workload, link, strategy, reduction, buckets, .. } = self;
        let overlap = if self.overlap { "overlapped" } else { "not overlapped" };
        write!(formatter, "{workload}, {link}, {strategy} {reduction} {overlap}, {buckets} bucket(s)")
    }
}

/// What scaling to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Scope {
    /// The largest number of ranks.
    pub to: u32,
    /// Strong scaling: micro-batches of a step, whatever the number of ranks.
    pub micro_batches: u32,
    /// Weak scaling: micro-batches of a step for each rank.
    pub micro_batches_a_rank: u32,
}

impl Scope {
    /// Powers of two, and the largest.
    pub fn ranks(&self) -> Vec<u32> {
        let powers = (0..u32::BITS).map(|power| 1u32 << power).take_while(|ranks| *ranks < self.to);
        powers.chain([self.to]).collect()
    }
}

/// The prediction for one number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    pub ranks: u32,
    pub strong: Predicted,
    pub weak: Predicted,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    pub step_s: f64,
    pub efficiency: f64,
    /// Smallest and largest efficiency over the fit and its refits: see [`super::refit`].
    pub efficiency_range: (f64, f64),
}

/// A curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    pub series: Series,
    pub points: Vec<Point>,
}

/// Predicts a curve; none if the series has no constants.
pub fn scaling(
    series: &Series,
    constants: &Constants,
    refits: &[Constants],
    scope: &Scope,
) -> Option<Scaling> {
    let terms = |constants: &Constants| constants.of(&series.workload, &series.link, 2);
    let best = terms(constants)?;
    let others: Vec<Terms> = refits.iter().filter_map(terms).collect();
    let predicted = |costs: Costs| {
        let efficiency = costs.efficiency(&best);
        let wider = |(low, high): (f64, f64), terms: &Terms| {
            let other = costs.efficiency(terms);
            (low.min(other), high.max(other))
        };
        let efficiency_range = others.iter().fold((efficiency, efficiency), wider);
        Predicted { step_s: costs.step.at(&best), efficiency, efficiency_range }
    };
    let point = |ranks| Point {
        ranks,
        strong: predicted(strong(series, scope.micro_batches, ranks)),
        weak: predicted(weak(series, scope.micro_batches_a_rank, ranks)),
    };
    Some(Scaling { series: series.clone(), points: scope.ranks().into_iter().map(point).collect() })
}

impl Series {
    fn step(&self, ranks: u32, micro_batches: u32) -> Cost {
        let setting = Setting {
            ranks,
            micro_batches,
            strategy: self.strategy,
            reduction: self.reduction,
            overlap: self.overlap,
            gradient_bytes: self.gradient_bytes,
            buckets: self.buckets,
        };
        setting.step()
    }
}

/// A step on N ranks beside the same on one.
struct Costs {
    step: Cost,
    alone: Cost,
    /// How much more one rank has to do than each of N.
    work: f64,
}

impl Costs {
    fn efficiency(&self, constants: &Terms) -> f64 {
        self.alone.at(constants) / (self.work * self.step.at(constants))
    }
}

/// E_s = T(1) ÷ (N·T(N)), at the same number of micro-batches.
fn strong(series: &Series, micro_batches: u32, ranks: u32) -> Costs {
    let (step, alone) = (series.step(ranks, micro_batches), series.step(1, micro_batches));
    Costs { step, alone, work: f64::from(ranks) }
}

/// E_w = T(1) ÷ T(N), at the same number of micro-batches a rank.
fn weak(series: &Series, micro_batches_a_rank: u32, ranks: u32) -> Costs {
    let (step, alone) =
        (series.step(ranks, micro_batches_a_rank * ranks), series.step(1, micro_batches_a_rank));
    Costs { step, alone, work: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::fit::{System, tests::measured};
    use crate::predict::measurement::Strategy;
    use crate::predict::model::{OPTIMIZER, tests::constants};
    use proptest::prelude::*;

    fn series(strategy: Strategy, overlap: bool) -> Series {
        let link = "eth".into();
        let (reduction, gradient_bytes) = (Reduction::Ordered, 40_000_000);
        Series { workload: "gpt".into(), link, strategy, reduction, overlap, buckets: 10, gradient_bytes }
    }

    proptest! {
        #[test]
        fn no_efficiency_exceeds_one(truth in constants(), ranks in 1u32..1500, each in 1u32..5, overlap: bool) {
            for strategy in [Strategy::Ddp, Strategy::Zero1] {
                let series = series(strategy, overlap);
                let efficiency = strong(&series, ranks * each, ranks).efficiency(&truth);
                prop_assert!((0.0..=1.0 + 1e-9).contains(&efficiency));
            }
            let efficiency = weak(&series(Strategy::Ddp, overlap), each, ranks).efficiency(&truth);
            prop_assert!((0.0..=1.0 + 1e-9).contains(&efficiency));
            // ZeRO-1 shares out the optimizer's work, so its weak scaling may gain as much.
            let zero1 = series(Strategy::Zero1, overlap);
            let alone = zero1.step(1, each).at(&truth);
            prop_assert!(weak(&zero1, each, ranks).efficiency(&truth) <= alone / (alone - truth[OPTIMIZER]) + 1e-9);
        }
    }

    #[test]
    fn a_curve_ends_where_it_was_asked_to() {
        let truth = [0.02, 0.04, 0.008, 0.003, 5e-5, 8e-9];
        let measurements = measured(&truth, "eth", &[0.0]);
        let constants = System::of(&measurements.iter().collect::<Vec<_>>()).solve().unwrap();
        let scope = Scope { to: 1000, micro_batches: 1000, micro_batches_a_rank: 1 };
        let scaling = scaling(&series(Strategy::Ddp, true), &constants, &[], &scope).unwrap();
        let last = scaling.points.last().unwrap();
        assert_eq!((scaling.points.len(), last.ranks), (11, 1000));
        assert!(
            (last.strong.step_s - last.weak.step_s).abs() < 1e-9,
            "both have one micro-batch a rank there"
        );
    }

    #[test]
    fn ranks_are_powers_of_two_and_the_largest() {
        let ranks = |to| Scope { to, micro_batches: to, micro_batches_a_rank: 1 }.ranks();
        assert_eq!(
            [ranks(1), ranks(2), ranks(6), ranks(8)],
            [vec![1], vec![1, 2], vec![1, 2, 4, 6], vec![1, 2, 4, 8]]
        );
    }
}
