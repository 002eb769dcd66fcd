//! From how far perturbed runs went to how far a candidate may go.
//!
//! Each perturbed run is judged by the others as a candidate will be judged by all: the largest of its distances, over all
//! steps and tensors, each ÷ the spread of the other runs there. A candidate without a fault draws one more number of the
//! same kind. The factor is the limit that such a draw exceeds with the given probability, by the logarithms' mean and
//! standard deviation and Student's distribution. Taking the largest of all distances first, there is no need to assume
//! anything about how steps and tensors hang together.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Ratios below this are as good as none: nothing moved.
const RATIO_MIN: f64 = 0.1;

/// The spread of some distances with a floor: the root of their mean square and the floor's square.
pub fn spread(distances: &[f64], floor: f64) -> f64 {
    let squares: f64 = distances.iter().map(|distance| distance * distance).sum();
    (squares / distances.len().max(1) as f64 + floor * floor).sqrt()
}

/// Each distance ÷ the spread of the others. Zero where nothing moved.
pub fn ratios(distances: &[f64], floor: f64) -> impl Iterator<Item = f64> {
    let squares: f64 = distances.iter().map(|distance| distance * distance).sum();
    let others = distances.len().saturating_sub(1).max(1) as f64;
    distances.iter().map(move |distance| {
        let rest = (squares - distance * distance).max(0.0) / others + floor * floor;
        if *distance == 0.0 { 0.0 } else { distance / rest.sqrt() }
    })
}

/// What one more draw exceeds with probability `false_alarms` (a one-sided prediction limit), and no less than the largest seen.
pub fn prediction_limit(largest: &[f64], false_alarms: f64) -> f64 {
    let logs: Vec<f64> = largest.iter().map(|ratio| ratio.clamp(RATIO_MIN, f64::MAX).ln()).collect();
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let student =
        StudentsT::new(0.0, 1.0, count - 1.0).map(|student| student.inverse_cdf(1.0 - false_alarms));
    let limit = student.map_or(f64::INFINITY, |t| (mean + t * (variance * (1.0 + 1.0 / count)).sqrt()).exp());
    largest.iter().copied().fold(limit, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_follows_students_table() {
        // ln of these: mean 1, standard deviation 0.5.
        let largest = [0.5f64, 1.5, 1.0, 1.0, 1.5, 0.5].map(f64::exp);
        let deviation = (0.25 * 4.0 / 5.0f64).sqrt();
        // t of 5 degrees of freedom at 0.999 is 5.893.
        let expected = (1.0 + 5.893 * deviation * (7.0f64 / 6.0).sqrt()).exp();
        let limit = prediction_limit(&largest, 1e-3);
        assert!((limit / expected - 1.0).abs() < 1e-3, "{limit} {expected}");
    }

    /// Draws of a heavy-tailed kind, judged as candidates will be: how many exceed the limit. With normal logarithms it is
    /// the probability asked for; these are the largest of 1,000 ratios to spreads of 15 others.
    #[test]
    fn one_more_draw_seldom_exceeds_the_limit() {
        let mut state = 1u64;
        let mut normal = || {
            let mut sum = 0.0;
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 11) as f64 / (1u64 << 53) as f64;
            }
            sum - 6.0
        };
        let mut alarms = 0;
        for _ in 0..200 {
            let (runs, series) = (16, 300);
            let table: Vec<Vec<f64>> =
                (0..series).map(|_| (0..=runs).map(|_| normal().abs()).collect()).collect();
            let mut largest = vec![0f64; runs];
            let mut candidate = 0f64;
            for row in &table {
                let (runs, last) = row.split_at(runs);
                for (largest, ratio) in largest.iter_mut().zip(ratios(runs, 0.0)) {
                    *largest = largest.max(ratio);
                }
                candidate = candidate.max(last[0] / spread(runs, 0.0));
            }
            alarms += u32::from(candidate > prediction_limit(&largest, 1e-3));
        }
        assert!(alarms <= 2, "{alarms} of 200");
    }

    proptest! {
        #[test]
        fn no_run_is_beyond_its_own_limit(largest in prop::collection::vec(0.0f64..1e3, 6..30)) {
            let limit = prediction_limit(&largest, 1e-3);
            prop_assert!(limit.is_finite() && largest.iter().all(|&ratio| ratio <= limit));
        }

        #[test]
        fn ratios_do_not_depend_on_the_unit(distances in prop::collection::vec(0.0f64..1e3, 6..30), unit in 1e-9f64..1e9) {
            let scaled: Vec<f64> = distances.iter().map(|distance| distance * unit).collect();
            for (one, other) in ratios(&distances, 0.5).zip(ratios(&scaled, 0.5 * unit)) {
                prop_assert!((one - other).abs() <= 1e-9 * one.max(1.0));
            }
        }
    }
}
