use super::*;
use crate::predict::measurement::{Reduction, Strategy};
use crate::predict::model::tests::constants;
use proptest::prelude::*;

/// Runs: one rank, and two to eight, with and without overlap, with few and many buckets.
pub fn measured(truth: &Terms, link: &str, noise: &[f64]) -> Vec<Measurement> {
    let mut measurements = Vec::new();
    for (ranks, strategy) in [
        (1, Strategy::Single),
        (2, Strategy::Ddp),
        (4, Strategy::Ddp),
        (8, Strategy::Ddp),
        (4, Strategy::Zero1),
    ] {
        for (overlap, buckets) in [(false, 2), (false, 40), (true, 10)] {
            if ranks > 1 || !overlap {
                measurements.push(Measurement {
                    workload: "gpt".into(),
                    link: link.into(),
                    ranks,
                    strategy,
                    reduction: Reduction::Ordered,
                    overlap,
                    micro_batches: 8,
                    gradient_bytes: 40_000_000,
                    buckets,
                    step_s: 0.0,
                    forward_s: truth[FORWARD],
                    backward_s: truth[BACKWARD],
                    optimizer_s: 0.0,
                    communication_s: None,
                    exposed_s: None,
                });
            }
        }
    }
    for (measurement, noise) in measurements.iter_mut().zip(noise.iter().cycle()) {
        let setting = Setting::from(&*measurement);
        measurement.optimizer_s = truth[OPTIMIZER] * setting.optimizer_share();
        measurement.step_s = setting.step().at(truth) * (1.0 + noise);
    }
    measurements
}

fn fitted(measurements: &[Measurement]) -> Result<Constants, FitError> {
    System::of(&measurements.iter().collect::<Vec<_>>()).solve()
}

proptest! {
    #[test]
    fn known_constants_are_found_again(truth in constants()) {
        let found = fitted(&measured(&truth, "eth", &[0.0])).unwrap().of("gpt", "eth", 2).unwrap();
        for (found, truth) in found.iter().zip(&truth) {
            prop_assert!((found / truth - 1.0).abs() < 1e-4, "{:?} {:?}", found, truth);
        }
    }

    /// Noise of 2 % in each step may move single constants further, but not what they predict for these
    /// steps.
    #[test]
    fn noise_is_not_amplified_in_what_was_measured(truth in constants(), noise in prop::collection::vec(-0.02f64..0.02, 14)) {
        let exact = measured(&truth, "eth", &[0.0]);
        let constants = fitted(&measured(&truth, "eth", &noise)).unwrap();
        for measurement in &exact {
            let error = constants.step_s(measurement).unwrap() / measurement.step_s - 1.0;
            prop_assert!(error.abs() < 0.04, "{}", error);
        }
    }

    #[test]
    fn each_link_has_its_own_constants(truth in constants()) {
        let mut slower = truth;
        slower[PER_BYTE] *= 5.0;
        let both = [measured(&truth, "fast", &[0.0]), measured(&slower, "slow", &[0.0])].concat();
        let links = fitted(&both).unwrap().links;
        let ratio = links["slow"].seconds_per_byte / links["fast"].seconds_per_byte;
        prop_assert!((ratio - 5.0).abs() < 1e-2, "{}", ratio);
    }
}

#[test]
fn what_the_measurements_leave_open_is_refused() {
    let truth = [0.02, 0.04, 0.008, 0.003, 5e-5, 8e-9];
    let all = measured(&truth, "eth", &[0.0]);
    let only = |keep: &dyn Fn(&Measurement) -> bool| {
        fitted(&all.iter().filter(|measurement| keep(measurement)).cloned().collect::<Vec<_>>())
    };
    // One number of ranks and of buckets: one equation for two constants.
    let error = only(&|measurement| measurement.ranks <= 2 && measurement.buckets == 2).unwrap_err();
    assert_eq!(error, FitError::Link("eth".into()));
    assert!(only(&|measurement| measurement.ranks <= 2).is_ok());
    assert!(only(&|measurement| measurement.ranks == 1).unwrap().links.is_empty());
}
