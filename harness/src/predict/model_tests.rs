use super::*;
use crate::predict::measurement::Strategy;
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

pub fn constants() -> impl Generator<Value = Terms> {
    (1e-3..1e-1, 1.2..3.0, 1e-3..5e-2, 1e-3..2e-2, 1e-5..3e-4, 2e-10..2e-8).prop_map(
        |(forward, ratio, optimizer, fixed, latency, per_byte): (f64, f64, f64, f64, f64, f64)| {
            [forward, forward * ratio, optimizer, fixed, latency, per_byte]
        },
    )
}

fn setting() -> impl Generator<Value = Setting> {
    let strategies = prop_oneof![Just(Strategy::Ddp), Just(Strategy::Zero1)];
    let reductions = prop_oneof![Just(Reduction::Ordered), Just(Reduction::Native)];
    (1u32..70, 1u32..9, strategies, reductions, any::<bool>(), 1u32..40).prop_map(
        |(ranks, each, strategy, reduction, overlap, buckets)| Setting {
            ranks,
            micro_batches: ranks * each - each / 2 % ranks,
            strategy,
            reduction,
            overlap,
            gradient_bytes: 40_000_000,
            buckets,
        },
    )
}

/// The pipeline, bucket by bucket: each is ready in its turn and travels when the one before it has arrived.
fn pipeline_end(buckets: u32, each: f64, behind: f64) -> f64 {
    let mut free: f64 = 0.0;
    for bucket in 1..=buckets {
        free = free.max(behind * f64::from(bucket) / f64::from(buckets)) + each;
    }
    free - behind
}

proptest! {
    #[test]
    fn what_is_exposed_is_the_end_of_the_pipeline(setting in setting(), constants in constants()) {
        let setting = Setting { strategy: Strategy::Ddp, overlap: true, ..setting };
        let each = dot(&setting.communication(), &constants) / f64::from(setting.buckets);
        let expected = pipeline_end(setting.buckets, each, constants[BACKWARD]);
        let found = setting.exposed().at(&constants);
        if setting.ranks > 1 {
            prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected), "{} {}", found, expected);
        } else {
            prop_assert_eq!(found, 0.0);
        }
    }

    #[test]
    fn exposed_is_part_of_communication_and_overlap_never_costs(setting in setting(), constants in constants()) {
        let exposed = setting.exposed().at(&constants);
        let communication = dot(&setting.communication(), &constants);
        prop_assert!((0.0..=communication * (1.0 + 1e-12)).contains(&exposed));
        let alone = Setting { overlap: false, ..setting };
        prop_assert!(setting.step().at(&constants) <= alone.step().at(&constants) * (1.0 + 1e-12));
    }

    #[test]
    fn a_faster_link_is_never_slower(setting in setting(), constants in constants(), gain in 0.1f64..1.0) {
        for constant in [LATENCY, PER_BYTE] {
            let mut faster = constants;
            faster[constant] *= gain;
            prop_assert!(setting.step().at(&faster) <= setting.step().at(&constants) * (1.0 + 1e-12));
        }
    }

    #[test]
    fn the_linear_function_touches_the_cost_from_below(setting in setting(), here in constants(), there in constants()) {
        let cost = setting.step();
        let linear = cost.linear_at(&here);
        prop_assert!((dot(&linear, &here) - cost.at(&here)).abs() < 1e-12 * cost.at(&here));
        prop_assert!(dot(&linear, &there) <= cost.at(&there) * (1.0 + 1e-12));
    }
}

#[test]
fn the_ordered_sum_costs_more_where_shares_are_no_subtrees() {
    let setting = |ranks, reduction| Setting {
        ranks,
        micro_batches: 8,
        strategy: Strategy::Ddp,
        reduction,
        overlap: false,
        gradient_bytes: 1000,
        buckets: 1,
    };
    let bytes = |ranks, reduction| setting(ranks, reduction).communication()[PER_BYTE];
    assert_eq!(bytes(2, Reduction::Ordered), bytes(2, Reduction::Native));
    assert_eq!(bytes(3, Reduction::Ordered), 1.5 * bytes(3, Reduction::Native));
    assert_eq!(bytes(1, Reduction::Ordered), 0.0);
}
