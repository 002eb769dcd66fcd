//! One rank alone does what many do together: its messages are their own sums.

use super::*;
use crate::comm::SoloComm;
use crate::config::schema::Reduction;
use crate::grad::layout::{Capacity, ParameterSpec};
use proptest::{prop_assert, proptest};

/// Never asked: the bucket under test has matrices.
struct Nobody;

impl Strategy for Nobody {
    fn reduce(&mut self, _: &dyn Comm, _: usize, _: &mut PartialSums) -> Result<(), CommError> {
        unreachable!("the bucket has matrices")
    }
}

fn layout(shapes: &[&[i64]]) -> Layout {
    let spec =
        |(index, shape): (usize, &&[i64])| ParameterSpec { name: index.to_string(), shape: shape.to_vec() };
    let specs = shapes.iter().enumerate().map(spec).collect();
    let ready: Vec<usize> = (0..shapes.len()).collect();
    let capacity = Capacity { bucket: 1 << 30, edge: 1 << 30 };
    Layout::plan(specs, &vec![false; shapes.len()], &ready, capacity)
}

fn strategy(layout: &Layout, rank: usize) -> PowerSgd {
    let setting = Setting {
        layout,
        micro_batches: 1,
        reduction: Reduction::Ordered,
        format: None,
        rank: 0,
        world_size: 1,
        shared: None,
    };
    PowerSgd::new(Box::new(Nobody), rank, 7, &setting)
}

/// What the step's gradient is made of this rank's.
fn reduce(strategy: &mut PowerSgd, gradient: &[f32]) -> Vec<f32> {
    let mut flat = Flat::zeros(Home::Host, gradient.len());
    flat.as_mut_slice().copy_from_slice(gradient);
    let mut sums = PartialSums::whole(flat);
    strategy.reduce(&SoloComm, 0, &mut sums).unwrap();
    sums.gradient().as_slice().to_vec()
}

fn random(seed: u64, layout: &Layout) -> Vec<f32> {
    let mut values = vec![0.0; layout.buckets[0].elements];
    for (index, slot) in layout.slots.iter().enumerate() {
        Stream::power_sgd(seed, index as u32, 99).fill_normal(0.0, 1.0, &mut values[slot.range()]);
    }
    values
}

#[test]
fn small_matrices_and_vectors_travel_whole() {
    let layout = layout(&[&[40, 3, 10], &[4, 4], &[40, 4], &[0, 5]]);
    let bucket = Bucket::plan(&layout, 0, 4);
    let (slots, matrix) = (&layout.slots, &bucket.matrices[0]);
    assert_eq!((bucket.matrices.len(), matrix.columns, matrix.elements.clone()), (1, 30, slots[0].range()));
    assert_eq!(bucket.others, [slots[1].range(), slots[2].range(), slots[3].range()]);
    let gradient = random(3, &layout);
    let reduced = reduce(&mut strategy(&layout, 4), &gradient);
    let others = slots[1].range().start..;
    assert_eq!(reduced[others.clone()], gradient[others]);
}

#[test]
fn a_gradient_of_zeros_is_no_end() {
    let layout = layout(&[&[30, 20]]);
    let mut strategy = strategy(&layout, 2);
    assert!(reduce(&mut strategy, &vec![0.0; layout.buckets[0].elements]).iter().all(|&value| value == 0.0));
    // The directions died with it; new ones are drawn.
    assert!(reduce(&mut strategy, &random(1, &layout)).iter().any(|&value| value != 0.0));
}

#[test]
fn what_is_not_finite_shows_and_does_not_stay() {
    let layout = layout(&[&[30, 20]]);
    let mut strategy = strategy(&layout, 2);
    let good = random(1, &layout);
    let mut bad = good.clone();
    bad[17] = f32::INFINITY;
    assert!(reduce(&mut strategy, &bad).iter().any(|value| value.is_nan()));
    assert!(reduce(&mut strategy, &good).iter().all(|value| value.is_finite()));
}

/// The warm start: of the same gradient every step finds more, though each sends as little.
#[test]
fn directions_improve_from_step_to_step() {
    let layout = layout(&[&[60, 50]]);
    let gradient = random(5, &layout);
    let error = |steps: usize| {
        let mut strategy = strategy(&layout, 4);
        let mut reduced = Vec::new();
        for _ in 0..steps {
            strategy.buckets[0].residual.fill(0.0);
            reduced = reduce(&mut strategy, &gradient);
        }
        let squares =
            reduced.iter().zip(&gradient).map(|(reduced, wanted)| f64::from(reduced - wanted).powi(2));
        squares.sum::<f64>()
    };
    assert!(error(10) < 0.97 * error(1), "{} after {}", error(10), error(1));
}

proptest! {
    /// Error feedback: what was sent and what is still to be sent are what was wanted.
    #[test]
    fn nothing_is_lost(seed: u64, rows in 10..40i64, columns in 10..40i64, rank in 1..4usize, steps in 1..5u64) {
        let layout = layout(&[&[rows, columns]]);
        let mut strategy = strategy(&layout, rank);
        let (mut wanted, mut sent) = (vec![0.0; layout.buckets[0].elements], vec![0.0; layout.buckets[0].elements]);
        for step in 0..steps {
            let gradient = random(seed ^ step, &layout);
            add(&mut wanted, &gradient);
            add(&mut sent, &reduce(&mut strategy, &gradient));
        }
        add(&mut sent, &strategy.buckets[0].residual);
        for (sent, wanted) in sent.iter().zip(wanted) {
            prop_assert!((sent - wanted).abs() < 1e-4, "{} of {}", sent, wanted);
        }
    }
}
