use proptest::prelude::*;

use super::*;
use crate::partition::share;

fn sampler(seed: u64, samples: u64, micro_batches: usize, micro_batch_size: usize) -> Sampler {
    Sampler::new(seed, samples, micro_batches, micro_batch_size).unwrap()
}

/// All ids of steps `1..=steps`, in order.
fn ids(sampler: &mut Sampler, steps: u64) -> Vec<u64> {
    (1..=steps).flat_map(|step| sampler.step(step).micro_batches.concat()).collect()
}

/// The order is part of the promise: with other values here, a checkpoint would resume on other samples and every
/// recorded run would stop being reproducible.
#[test]
fn the_order_is_pinned() {
    assert_eq!(permutation(1337, 0, 10), PINNED[0]);
    assert_eq!(permutation(1337, 1, 10), PINNED[1]);
    assert_eq!(permutation(7, 0, 10), PINNED[2]);
    let mut sampler = sampler(1337, 10, 2, 2);
    let third = StepSamples {
        epoch: 0,
        micro_batches: vec![
            vec![u64::from(PINNED[0][8]), u64::from(PINNED[0][9])],
            vec![u64::from(PINNED[1][0]), u64::from(PINNED[1][1])],
        ],
        epochs: vec![vec![0, 0], vec![1, 1]],
    };
    assert_eq!(sampler.step(3), third, "a step may straddle two epochs");
    assert_eq!(sampler.step(4).epoch, 1);
}

const PINNED: [[u32; 10]; 3] =
    [[4, 1, 7, 2, 0, 5, 9, 8, 3, 6], [8, 3, 7, 4, 2, 6, 0, 5, 9, 1], [6, 4, 1, 9, 7, 2, 8, 0, 5, 3]];

fn shapes() -> impl Strategy<Value = (u64, u64, usize, usize)> {
    (any::<u64>(), 1u64..60, 1usize..9, 1usize..6)
}

proptest! {
    #[test]
    fn every_epoch_visits_every_sample_once((seed, samples, micro_batches, size) in shapes()) {
        let steps = (3 * samples).div_ceil((micro_batches * size) as u64);
        let stream = ids(&mut sampler(seed, samples, micro_batches, size), steps);
        for epoch in stream.chunks_exact(samples as usize) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_micro_batches_do_not_matter_to_the_stream((seed, samples, micro_batches, size) in shapes()) {
        let one_by_one = ids(&mut sampler(seed, samples, 1, 1), (5 * micro_batches * size) as u64);
        prop_assert_eq!(ids(&mut sampler(seed, samples, micro_batches, size), 5), one_by_one);
    }

    #[test]
    fn a_fresh_sampler_at_any_step_equals_one_that_ran((seed, samples, m, b) in shapes(), step in 1u64..40) {
        let mut ran = sampler(seed, samples, m, b);
        ids(&mut ran, step + 3);
        prop_assert_eq!(ran.step(step), sampler(seed, samples, m, b).step(step), "going back");
        let mut ran = sampler(seed, samples, m, b);
        ids(&mut ran, step - 1);
        prop_assert_eq!(ran.step(step), sampler(seed, samples, m, b).step(step), "going on");
    }

    #[test]
    fn ranks_divide_a_step_whatever_their_number((seed, samples, m, b) in shapes(), step in 1u64..40) {
        let expected = sampler(seed, samples, m, b).step(step);
        for ranks in 1..=m {
            let mut union = Vec::new();
            for rank in 0..ranks {
                // Each rank has a sampler of its own: they agree without a word.
                let own = sampler(seed, samples, m, b).step(step).micro_batches[share(m, ranks, rank)].to_vec();
                prop_assert!(!own.is_empty(), "rank {} of {} would idle", rank, ranks);
                prop_assert!(own.iter().all(|micro_batch| micro_batch.len() == b));
                union.extend(own);
            }
            prop_assert_eq!(&union, &expected.micro_batches);
        }
    }

    #[test]
    fn within_an_epoch_no_two_ranks_share_a_sample(seed: u64, m in 1usize..9, b in 1usize..6) {
        let samples = (m * b * 4) as u64;
        for step in 1..=4 {
            let mut all = sampler(seed, samples, m, b).step(step).micro_batches.concat();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), m * b);
        }
    }

    #[test]
    fn draws_stay_below_their_bound(bound in 1u32.., seed: u64) {
        let mut draws = Draws { stream: Stream::sample_order(seed, 0), buffer: [0; 256], next: 0 };
        prop_assert!((0..20).all(|_| draws.below(bound) < bound));
    }
}

#[test]
fn every_epoch_and_seed_has_its_own_order() {
    let orders: std::collections::HashSet<_> =
        (0..50).map(|i| if i < 25 { permutation(1, i, 100) } else { permutation(i, 0, 100) }).collect();
    assert_eq!(orders.len(), 50);
}

/// Without the draws that are thrown away, some orders of three samples would be likelier than others; with a shuffle
/// that swaps with any place instead of the places left, clearly so (to 5/27 from 1/6).
#[test]
fn all_orders_are_equally_likely() {
    let mut counts = std::collections::BTreeMap::new();
    for epoch in 0..60_000 {
        *counts.entry(permutation(99, epoch, 3)).or_insert(0i32) += 1;
    }
    assert_eq!(counts.len(), 6);
    assert!(counts.values().all(|count| (count - 10_000).abs() < 400), "{counts:?}");
}

#[test]
fn extremes_work() {
    assert_eq!(
        sampler(1, 1, 2, 3).step(4),
        StepSamples {
            epoch: 18,
            micro_batches: vec![vec![0; 3]; 2],
            epochs: vec![vec![18, 19, 20], vec![21, 22, 23]],
        }
    );
    let mut few = sampler(1, 2, 4, 4).step(u64::MAX).micro_batches.concat();
    few.sort_unstable();
    assert_eq!(few, [vec![0; 8], vec![1; 8]].concat());
}

#[test]
fn what_cannot_be_sampled_is_an_error() {
    assert_eq!(Sampler::new(1, 0, 1, 1).unwrap_err(), SamplerError::NoSamples);
    assert_eq!(Sampler::new(1, 1 << 32, 1, 1).unwrap_err(), SamplerError::TooManySamples(1 << 32));
    for (micro_batches, micro_batch_size) in [(0, 4), (4, 0), (usize::MAX, 2), (1 << 31, 2)] {
        let error = Sampler::new(1, 10, micro_batches, micro_batch_size).unwrap_err();
        assert_eq!(error, SamplerError::BatchShape { micro_batches, micro_batch_size });
    }
}

#[test]
#[should_panic(expected = "counted from 1")]
fn step_0_trains_on_nothing() {
    sampler(1, 10, 1, 1).step(0);
}
