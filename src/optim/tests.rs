use super::*;
use crate::grad::flat;
use crate::grad::layout::ParameterSpec;
use crate::partition::share;
use lockstep_record::BLOCK_ELEMENTS;

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

/// Three updates by `ranks` owners of shards; returns parameters and the first kind of state.
fn train(kind: OptimKind, ranks: usize) -> (Vec<f32>, Vec<f32>) {
    let layout = layout();
    let elements = layout.buckets[0].elements;
    let (mut parameters, mut gradients) = (vec![Flat::zeros(elements)], vec![Flat::zeros(elements)]);
    parameters[0].as_mut_slice().iter_mut().enumerate().for_each(|(i, p)| *p = value(i + 7));
    let owners: Vec<Optimizer> = (0..ranks)
        .map(|rank| share(elements / BLOCK_ELEMENTS, ranks, rank))
        .map(|blocks| blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS)
        .map(|owned| Optimizer::new(&settings(kind), &layout, vec![owned]))
        .collect();
    for step in 1..=3 {
        gradients[0].as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = value(i * 3 + step));
        for owner in &owners {
            let update = owner.prepare(&layout, 0, &ParameterSet::default(), step as u64, 0.1);
            update.apply(&mut parameters[0], &gradients[0]).unwrap();
        }
    }
    let state = owners.iter().flat_map(|owner| owner.state(0)[0].as_slice().to_vec()).collect();
    (parameters[0].as_slice().to_vec(), state)
}

#[test]
fn shards_update_as_the_whole_does() {
    for kind in [OptimKind::Adamw, OptimKind::Sgd] {
        let whole = train(kind, 1);
        for ranks in 2..=5 {
            assert_eq!(train(kind, ranks), whole, "{kind:?} on {ranks} ranks");
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
    for kind in [OptimKind::Adamw, OptimKind::Sgd] {
        let run = |steps: &[(u64, bool)]| {
            let mut buffers = [flat::zeros(&layout), flat::zeros(&layout)];
            buffers[0][0].as_mut_slice().iter_mut().enumerate().for_each(|(i, p)| *p = value(i));
            let [parameters, gradients] = &mut buffers;
            let whole = 0..layout.buckets[0].elements;
            let mut optimizer = Optimizer::new(&settings(kind), &layout, vec![whole]);
            for (number, &(seed, used)) in steps.iter().enumerate() {
                let gradient = gradients[0].as_mut_slice();
                gradient.iter_mut().enumerate().for_each(|(i, g)| *g = value(i * 3 + seed as usize));
                let unused: ParameterSet = (!used).then_some(1).into_iter().collect();
                let update = optimizer.prepare(&layout, 0, &unused, number as u64 + 1, 0.1);
                update.apply(&mut parameters[0], &gradients[0]).unwrap();
                optimizer.leave_out(unused.iter());
            }
            let state = optimizer.state(0)[0].as_slice()[place.clone()].to_vec();
            (
                parameters[0].as_slice()[place.clone()].to_vec(),
                state,
                parameters[0].as_slice()[layout.slots[0].offset],
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
    let (parameters, exp_avg) = train(OptimKind::Adamw, 1);
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
    let (parameters, buffer) = train(OptimKind::Sgd, 1);
    let (mut p, mut m) = (f64::from(value(7)), 0.0);
    for step in 1..=3 {
        m = 0.9 * m + f64::from(value(step));
        p = p * (1.0 - 0.1 * 0.1) - 0.1 * m;
    }
    approx::assert_relative_eq!(f64::from(parameters[0]), p, max_relative = 1e-5);
    approx::assert_relative_eq!(f64::from(buffer[0]), m, max_relative = 1e-5);
}
