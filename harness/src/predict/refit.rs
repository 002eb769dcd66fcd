//! How far the measurements' own errors leave the constants open: a residual bootstrap (Efron, "Bootstrap
//! Methods", 1979).
//!
//! What 2 ranks cannot show, 1,024 can depend on: a latency that is lost in the noise of two ranks' steps is
//! multiplied by a thousand. So each refit gets measurements whose times are off by errors such as the first
//! fit left, and the spread of what the refits predict is shown beside each prediction.

use std::collections::BTreeMap;

use super::Checked;
use super::fit::{Constants, LinkCost, System};

/// Refits, all with errors dealt out differently. The same measurements always give the same refits.
const REFITS: u64 = 100;

/// Constants fitted to times of steps that were moved by the fit's relative errors, chosen at random.
pub fn refits(system: &System, constants: &Constants, fitted: &[Checked]) -> Vec<Constants> {
    let errors = errors(constants, fitted);
    let refit = |seed: u64| {
        let mut random = SplitMix(seed);
        system.scaled(|| 1.0 + random.choose(&errors)).solve().ok()
    };
    (0..REFITS).filter_map(refit).collect()
}

/// Relative errors of the fit, both ways, enlarged by what a fit of as many unknowns hides of them.
fn errors(constants: &Constants, fitted: &[Checked]) -> Vec<f64> {
    // A workload's other three constants have equations of their own in each measurement.
    let unknowns = constants.workloads.len() + 2 * constants.links.len();
    let hidden = (fitted.len() as f64 / fitted.len().saturating_sub(unknowns).max(1) as f64).sqrt();
    let errors = fitted.iter().map(|checked| checked.predicted_step_s / checked.measurement.step_s - 1.0);
    // Below −1 a time would become negative.
    errors.flat_map(|error| [error, -error]).map(|error| (error * hidden).clamp(-0.9, 0.9)).collect()
}

/// Smallest and largest constants of each link.
pub fn link_ranges(constants: &Constants, refits: &[Constants]) -> BTreeMap<String, (LinkCost, LinkCost)> {
    let pick = |low: &LinkCost, high: &LinkCost, choose: fn(f64, f64) -> f64| LinkCost {
        latency_s: choose(low.latency_s, high.latency_s),
        seconds_per_byte: choose(low.seconds_per_byte, high.seconds_per_byte),
    };
    let range = |(name, cost): (&String, &LinkCost)| {
        let costs = refits.iter().filter_map(|refit| refit.links.get(name));
        let range = costs.fold((*cost, *cost), |(low, high), cost| {
            (pick(&low, cost, f64::min), pick(&high, cost, f64::max))
        });
        (name.clone(), range)
    };
    constants.links.iter().map(range).collect()
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn choose(&mut self, values: &[f64]) -> f64 {
        match values.len() as u64 {
            0 => 0.0,
            length => values[(self.next() % length) as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::check;
    use crate::predict::fit::tests::measured;
    use crate::predict::measurement::Measurement;
    use crate::predict::model::tests::constants;
    use proptest::prelude::*;

    fn ranges(truth: &[f64; 6], noise: &[f64]) -> (LinkCost, LinkCost) {
        let measurements = measured(truth, "eth", noise);
        let measurements: Vec<&Measurement> = measurements.iter().collect();
        let system = System::of(&measurements);
        let constants = system.solve().unwrap();
        let checked: Vec<Checked> =
            measurements.iter().map(|measurement| check(&constants, measurement).unwrap()).collect();
        link_ranges(&constants, &refits(&system, &constants, &checked))["eth"]
    }

    /// A latency far below the noise: the fit alone might say 0, and must not be believed.
    #[test]
    fn the_range_holds_what_the_noise_hides() {
        let truth = [0.02, 0.04, 0.008, 0.003, 2e-5, 8e-9];
        for seed in 0..10 {
            let mut random = SplitMix(seed);
            let noise: Vec<f64> =
                (0..14).map(|_| (random.next() % 1000) as f64 / 1000.0 * 0.06 - 0.03).collect();
            let (low, high) = ranges(&truth, &noise);
            assert!(low.latency_s <= truth[4] && truth[4] <= high.latency_s, "{seed}: {low:?} {high:?}");
            assert!(
                low.seconds_per_byte <= truth[5] && truth[5] <= high.seconds_per_byte,
                "{seed}: {low:?} {high:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn without_errors_nothing_is_open(truth in constants()) {
            let (low, high) = ranges(&truth, &[0.0]);
            prop_assert!(high.latency_s - low.latency_s < 1e-3 * high.latency_s);
            prop_assert!(high.seconds_per_byte - low.seconds_per_byte < 1e-3 * high.seconds_per_byte);
        }
    }
}
