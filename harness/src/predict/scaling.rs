//! Strong and weak scaling by the fitted model, with the range that the measurements' own errors leave open.

use serde::Serialize;

use super::fit::Constants;
use super::measurement::{Measurement, Reduction, Strategy};
use super::model::{Setting, Terms};

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
    let predicted = |ranks: u32, kind: &dyn Fn(&Terms, u32) -> (f64, f64)| {
        let (step_s, efficiency) = kind(&best, ranks);
        let range = others
            .iter()
            .map(|terms| kind(terms, ranks).1)
            .fold((efficiency, efficiency), |range, value| (range.0.min(value), range.1.max(value)));
        Predicted { step_s, efficiency, efficiency_range: range }
    };
    let strong = |terms: &Terms, ranks: u32| strong(series, scope.micro_batches, terms, ranks);
    let weak = |terms: &Terms, ranks: u32| weak(series, scope.micro_batches_a_rank, terms, ranks);
    let point = |ranks| Point { ranks, strong: predicted(ranks, &strong), weak: predicted(ranks, &weak) };
    Some(Scaling { series: series.clone(), points: scope.ranks().into_iter().map(point).collect() })
}

impl Series {
    fn step_s(&self, ranks: u32, micro_batches: u32, constants: &Terms) -> f64 {
        let setting = Setting {
            ranks,
            micro_batches,
            strategy: self.strategy,
            reduction: self.reduction,
            overlap: self.overlap,
            gradient_bytes: self.gradient_bytes,
            buckets: self.buckets,
        };
        setting.step().at(constants)
    }
}

/// Seconds a step, and E_s = T(1) ÷ (N·T(N)), at the same number of micro-batches.
fn strong(series: &Series, micro_batches: u32, constants: &Terms, ranks: u32) -> (f64, f64) {
    let step_s = series.step_s(ranks, micro_batches, constants);
    (step_s, series.step_s(1, micro_batches, constants) / (f64::from(ranks) * step_s))
}

/// Seconds a step, and E_w = T(1) ÷ T(N), at the same number of micro-batches a rank.
fn weak(series: &Series, micro_batches_a_rank: u32, constants: &Terms, ranks: u32) -> (f64, f64) {
    let step_s = series.step_s(ranks, micro_batches_a_rank * ranks, constants);
    (step_s, series.step_s(1, micro_batches_a_rank, constants) / step_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::fit::{fit, tests::measured};
    use crate::predict::measurement::Strategy;
    use crate::predict::model::tests::constants;
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
                let (_, efficiency) = strong(&series, ranks * each, &truth, ranks);
                prop_assert!((0.0..=1.0 + 1e-9).contains(&efficiency));
            }
            let (_, efficiency) = weak(&series(Strategy::Ddp, overlap), each, &truth, ranks);
            prop_assert!((0.0..=1.0 + 1e-9).contains(&efficiency));
            // ZeRO-1 shares out the optimizer's work, so its weak scaling may gain as much.
            let zero1 = series(Strategy::Zero1, overlap);
            let gain = zero1.step_s(1, each, &truth) / (zero1.step_s(1, each, &truth) - truth[2]);
            prop_assert!(weak(&zero1, each, &truth, ranks).1 <= gain + 1e-9);
        }
    }

    #[test]
    fn a_curve_ends_where_it_was_asked_to() {
        let truth = [0.02, 0.04, 0.008, 0.003, 5e-5, 8e-9];
        let measurements = measured(&truth, "eth", &[0.0]);
        let constants = fit(&measurements.iter().collect::<Vec<_>>()).unwrap();
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
