use super::*;
use crate::grad::flat;
use crate::grad::layout::ParameterSpec;
use crate::partition::share;
use lockstep_record::BLOCK_ELEMENTS;
use tch::Device;

/// The second as a GPU's, over a double of NCCL.
const HOMES: [Home; 2] = [Home::Host, Home::Device(Device::Cpu)];

fn settings(kind: OptimKind) -> Optim {
    Optim {
        kind,
        lr: 0.1,
        betas: [0.9, 0.95],
        eps: 1e-8,
        momentum: 0.9,
        weight_decay: 0.1,
        clip_norm: None,
        non_finite: crate::config::schema::NonFinite::Stop,
    }
}

fn layout() -> Layout {
    Layout::simple(vec![ParameterSpec { name: "w".into(), shape: vec![100, 50] }], 1 << 20)
}

fn value(i: usize) -> f32 {
    ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
}

fn fill(flat: &mut Flat, value: impl Fn(usize) -> f32) {
    let set = |values: &mut [f32]| values.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
    flat.overwrite(0..flat.len(), set).unwrap();
}

fn values(flat: &Flat, range: Range<usize>) -> Vec<f32> {
    flat.read(range).unwrap().into_owned()
}

/// Three updates by `ranks` owners of shards; returns parameters and the first kind of state.
fn train(kind: OptimKind, ranks: usize, home: Home) -> (Vec<f32>, Vec<f32>) {
    let layout = layout();
    let elements = layout.buckets[0].elements;
    let [mut parameters, mut gradients] = [0, 1].map(|_| Flat::zeros(home, elements));
    fill(&mut parameters, |i| value(i + 7));
    let owners: Vec<Optimizer> = (0..ranks)
        .map(|rank| share(elements / BLOCK_ELEMENTS, ranks, rank))
        .map(|blocks| blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS)
        .map(|owned| Optimizer::new(&settings(kind), &layout, vec![owned], home))
        .collect();
    for step in 1..=3 {
        fill(&mut gradients, |i| value(i * 3 + step));
        for owner in &owners {
            let update = owner.prepare(&layout, 0, &ParameterSet::default(), step as u64, 0.1);
            update.apply(&mut parameters, &gradients).unwrap();
        }
    }
    let state = owners.iter().map(|owner| &owner.state(0)[0]);
    let state = state.flat_map(|flat| values(flat, 0..flat.len())).collect();
    (values(&parameters, 0..elements), state)
}

#[test]
fn shards_update_as_the_whole_does() {
    for kind in [OptimKind::Adamw, OptimKind::Sgd] {
        let whole = train(kind, 1, Home::Host);
        for (ranks, home) in (1..=5).flat_map(|ranks| HOMES.map(|home| (ranks, home))) {
            assert_eq!(train(kind, ranks, home), whole, "{kind:?} on {ranks} ranks, {home:?}");
        }
    }
}

/// As in PyTorch, where a parameter without a gradient is as if the step had not been: its bits, its state and the
/// bias corrections that follow.
#[test]
fn a_step_left_out_is_as_if_it_had_not_been() {
    let specs = ["a", "b"].map(|name| ParameterSpec { name: name.into(), shape: vec![100, 50] });
    let layout = Layout::simple(specs.to_vec(), 1 << 20);
    let place = layout.slots[1].range();
    for (kind, home) in [OptimKind::Adamw, OptimKind::Sgd].into_iter().zip(HOMES) {
        let run = |steps: &[(u64, bool)]| {
            let mut buffers = [0, 1].map(|_| flat::zeros(&layout, home));
            fill(&mut buffers[0][0], value);
            let [parameters, gradients] = &mut buffers;
            let whole = 0..layout.buckets[0].elements;
            let mut optimizer = Optimizer::new(&settings(kind), &layout, vec![whole], home);
            for (number, &(seed, used)) in steps.iter().enumerate() {
                fill(&mut gradients[0], |i| value(i * 3 + seed as usize));
                let unused: ParameterSet = (!used).then_some(1).into_iter().collect();
                let update = optimizer.prepare(&layout, 0, &unused, number as u64 + 1, 0.1);
                update.apply(&mut parameters[0], &gradients[0]).unwrap();
                optimizer.leave_out(unused.iter());
            }
            let first = layout.slots[0].offset;
            (
                values(&parameters[0], place.clone()),
                values(&optimizer.state(0)[0], place.clone()),
                values(&parameters[0], first..first + 1),
            )
        };
        let (with, without) = (run(&[(1, true), (9, false), (2, true)]), run(&[(1, true), (2, true)]));
        assert_eq!((&with.0, &with.1), (&without.0, &without.1), "{kind:?}");
        assert_ne!(with.2, without.2, "the other parameter was updated");
        let first = run(&[(9, false), (1, true)]);
        assert_eq!(first.0, run(&[(1, true)]).0, "{kind:?}: its first update comes later");
    }
}

#[test]
fn adamw_follows_its_formula() {
    let (parameters, exp_avg) = train(OptimKind::Adamw, 1, Home::Host);
    let (mut p, mut m, mut v) = (f64::from(value(7)), 0.0, 0.0);
    for step in 1..=3 {
        let g = f64::from(value(step));
        p *= 1.0 - 0.1 * 0.1;
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        let correction = |beta: f64| 1.0 - beta.powi(step as i32);
        p -= 0.1 * (m / correction(0.9)) / ((v / correction(0.95)).sqrt() + 1e-8);
    }
    approx::assert_relative_eq!(f64::from(parameters[0]), p, max_relative = 1e-5);
    approx::assert_relative_eq!(f64::from(exp_avg[0]), m, max_relative = 1e-5);
}

#[test]
fn sgd_follows_its_formula() {
    let (parameters, buffer) = train(OptimKind::Sgd, 1, Home::Host);
    let (mut p, mut m) = (f64::from(value(7)), 0.0);
    for step in 1..=3 {
        m = 0.9 * m + f64::from(value(step));
        p = p * (1.0 - 0.1 * 0.1) - 0.1 * m;
    }
    approx::assert_relative_eq!(f64::from(parameters[0]), p, max_relative = 1e-5);
    approx::assert_relative_eq!(f64::from(buffer[0]), m, max_relative = 1e-5);
}
