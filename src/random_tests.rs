use proptest::prelude::*;

use super::*;

const STREAM: Stream = Stream { seed: 1337, purpose: Purpose::Dropout, a: 3, b: 5, c: 7 };

fn words(stream: Stream, count: usize) -> Vec<u32> {
    let mut out = vec![0; count];
    stream.fill_u32(&mut out);
    out
}

/// Mean and variance.
fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance)
}

/// `kat_vectors` of Random123, the generator's reference implementation: `philox4x32 10`.
#[test]
fn the_reference_implementations_known_answers() {
    let known = [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, expected) in known {
        assert_eq!(philox(counter, key), expected);
    }
}

/// Vector instructions or not, a batch is the blocks one by one.
#[test]
fn batches_equal_single_blocks() {
    for first in [0, 1000, (1 << 32) - BATCH_BLOCKS as u64] {
        let (name, key) = STREAM.name();
        let (mut dispatched, mut portable) = ([0; BATCH_WORDS], [0; BATCH_WORDS]);
        STREAM.batch(first, &mut dispatched);
        philox_batch(first as u32, name, key, &mut portable);
        let one_by_one: Vec<u32> =
            (first..).take(BATCH_BLOCKS).flat_map(|block| STREAM.block(block)).collect();
        assert_eq!(dispatched[..], one_by_one);
        assert_eq!(portable[..], one_by_one);
    }
}

/// The layout of the counter is part of the promise: a checkpoint resumed by a later version must go on with the same
/// numbers. Changing these values changes every run.
#[test]
fn the_streams_are_pinned() {
    assert_eq!(
        STREAM.block(2),
        philox([2, 3 | 3 << 24, 5, 7], [1337, 0]),
        "block, site and purpose, micro-batch, step; the seed's low word first"
    );
    assert_eq!(Stream::sample_order(1 << 32, 1 << 32 | 9).name(), ([2 << 24, 1, 9], [0, 1]));
    assert_eq!(Stream::initial_weights(1, 8).name(), ([1 << 24 | 8, 0, 0], [1, 0]));
    assert_eq!(Stream::dropout(1337, 3, 5, 7), STREAM);
    let mut normals = [0.0; 3];
    STREAM.fill_normal(0.0, 1.0, &mut normals);
    assert_eq!(normals.map(f32::to_bits), PINNED_NORMALS);
}

const PINNED_NORMALS: [u32; 3] = [1045143116, 1021047078, 1038211467];

proptest! {
    #[test]
    fn any_part_equals_the_whole(offset in 0usize..300, length in 0usize..400) {
        let whole = words(STREAM, 700);
        let mut part = vec![0; length];
        STREAM.fill_u32_at(offset as u64, &mut part);
        prop_assert_eq!(&part[..], &whole[offset..offset + length]);
    }

    #[test]
    fn a_longer_request_only_appends(length in 0usize..300) {
        let (mut short, mut long) = (vec![0.0; length], vec![0.0; 300]);
        STREAM.fill_keep_mask(0.7, &mut short);
        STREAM.fill_keep_mask(0.7, &mut long);
        prop_assert_eq!(&short[..], &long[..length]);
        STREAM.fill_normal(0.0, 0.02, &mut short);
        STREAM.fill_normal(0.0, 0.02, &mut long);
        prop_assert_eq!(&short[..], &long[..length]);
    }

    #[test]
    fn every_field_matters(seed: u64, a in 0u32..1 << 24, b: u32, c: u32, bit in 0u32..24) {
        let stream = Stream { seed, a, b, c, ..STREAM };
        let flip = 1 << bit;
        let others = [
            Stream { seed: seed ^ flip as u64, ..stream },
            Stream { seed: seed ^ (flip as u64) << 32, ..stream },
            Stream { a: a ^ flip, ..stream },
            Stream { b: b ^ flip, ..stream },
            Stream { c: c ^ flip, ..stream },
            Stream { purpose: Purpose::InitialWeights, ..stream },
            Stream { purpose: Purpose::SampleOrder, ..stream },
        ];
        let drawn = words(stream, 64);
        for other in others {
            let same = words(other, 64).iter().zip(&drawn).filter(|(left, right)| left == right).count();
            prop_assert!(same <= 1, "{:?} repeats {} numbers", other, same);
        }
    }
}

#[test]
fn uniform_bits_are_balanced_and_uncorrelated() {
    let drawn = words(STREAM, 100_000);
    for bit in 0..32 {
        let ones = drawn.iter().filter(|&&word| word >> bit & 1 == 1).count();
        assert!((49_200..50_800).contains(&ones), "bit {bit}: {ones} ones of 100000");
        let changes = drawn.windows(2).filter(|pair| (pair[0] ^ pair[1]) >> bit & 1 == 1).count();
        assert!((49_200..50_800).contains(&changes), "bit {bit}: {changes} changes of 99999");
    }
}

#[test]
fn uniform_numbers_fill_the_unit_interval() {
    let mut bins = [0u32; 100];
    for index in 0..100_000 {
        bins[(STREAM.uniform_f64(index) * 100.0) as usize] += 1;
    }
    let chi_square: f64 = bins.iter().map(|&count| (f64::from(count) - 1000.0).powi(2) / 1000.0).sum();
    assert!((55.0..150.0).contains(&chi_square), "{chi_square} with 99 degrees of freedom");
    assert_eq!(unit(u32::MAX, u32::MAX), 1.0 - f64::EPSILON / 2.0);
}

#[test]
fn normal_numbers_have_the_moments_asked_for() {
    let mut values = vec![0.0; 200_000];
    STREAM.fill_normal(0.5, 0.02, &mut values);
    let (mean, variance) = moments(&values);
    assert!((mean - 0.5).abs() < 2e-4, "mean {mean}");
    assert!((variance.sqrt() - 0.02).abs() < 2e-4, "standard deviation {}", variance.sqrt());
    let share = |sigmas: f32| {
        values.iter().filter(|&&value| (value - 0.5).abs() > sigmas * 0.02).count() as f64
            / values.len() as f64
    };
    assert!((share(1.0) - 0.3173).abs() < 0.005 && (share(2.0) - 0.0455).abs() < 0.002, "tails");
    assert!(values.iter().all(|value| value.is_finite()));
}

#[test]
fn dropout_keeps_the_share_and_the_mean() {
    for keep in [0.9, 0.5, 0.1] {
        let mut mask = vec![f32::NAN; 200_000];
        STREAM.fill_keep_mask(keep, &mut mask);
        let factor = (1.0 / keep) as f32;
        assert!(mask.iter().all(|&element| element == 0.0 || element == factor));
        let (mean, _) = moments(&mask);
        assert!((mean - 1.0).abs() < 0.03, "keep {keep}: mean {mean}");
    }
    for (keep, expected) in [(1.0, 1.0), (0.0, 0.0)] {
        let mut mask = vec![f32::NAN; 1000];
        STREAM.fill_keep_mask(keep, &mut mask);
        assert!(mask.iter().all(|&element| element == expected));
    }
}

#[test]
#[should_panic(expected = "2^34 elements")]
fn a_stream_never_wraps() {
    STREAM.fill_u32_at((1 << 34) - 2, &mut [0; 4]);
}

#[test]
#[should_panic(expected = "below 2^24")]
fn a_site_never_spills_into_the_purpose() {
    STREAM.fill_u32_at(0, &mut [0; 4]);
    Stream { a: 1 << 24, ..STREAM }.fill_u32(&mut [0; 4]);
}

/// `cargo test --release -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement, not a test"]
fn speed() {
    fn nanoseconds_per_element(mut work: impl FnMut(), elements: usize) -> f64 {
        work();
        let start = std::time::Instant::now();
        (0..20).for_each(|_| work());
        start.elapsed().as_nanos() as f64 / (20 * elements) as f64
    }
    let (mut integers, mut floats) = (vec![0; 1 << 20], vec![0.0; 1 << 20]);
    println!("u32 {:.2} ns", nanoseconds_per_element(|| STREAM.fill_u32(&mut integers), 1 << 20));
    println!(
        "keep mask {:.2} ns",
        nanoseconds_per_element(|| STREAM.fill_keep_mask(0.9, &mut floats), 1 << 20)
    );
    println!(
        "normal {:.2} ns",
        nanoseconds_per_element(|| STREAM.fill_normal(0.0, 1.0, &mut floats), 1 << 20)
    );
}
