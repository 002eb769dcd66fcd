use super::*;
use crate::model::{ActionChunks, Initial};

const VOCABULARY: i64 = 42;
const TURNS: i64 = 2;
const CHUNK: i64 = 3;

fn model(sets: &[&str]) -> Vla {
    let base = [
        "model.kind=vla",
        "model.layers=2",
        "model.heads=2",
        "model.width=16",
        "model.turns=2",
        "model.chunk=3",
    ];
    let sets: Vec<String> = base.iter().chain(sets).map(|&set| set.into()).collect();
    let config = crate::config::load(&[], &sets, &|_| None).unwrap().config;
    Vla::new(&config.model, VOCABULARY as usize)
}

/// Numbers in (−1, 1) without a pattern, the same at each call: libtorch's generator is shared by all tests that run.
fn numbers(shape: &[i64], salt: i64) -> Tensor {
    let place =
        Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) + salt as f64 * 1e3;
    ((place * 12.9898).sin() * 43758.5453).frac().to_kind(Kind::Float).view(shape)
}

fn filled(vla: &Vla) -> Vec<Tensor> {
    let tensor = |(salt, (spec, _)): (usize, &(crate::grad::layout::ParameterSpec, Initial))| {
        numbers(&spec.shape, salt as i64) * 0.35
    };
    vla.parameters().iter().enumerate().map(tensor).collect()
}

/// Of one sample of random tokens, all targets and all actions counted.
fn batch(samples: i64) -> MicroBatch {
    let tokens = |salt: i64| {
        let drawn = numbers(&[samples, TURNS, TURN_TOKENS as i64], salt);
        ((drawn + 1.0) * (VOCABULARY as f64 / 2.0)).to_kind(Kind::Int64).clamp(0, VOCABULARY - 1)
    };
    let shape = [samples, TURNS, CHUNK, JOINTS as i64];
    let chunks = ActionChunks {
        actions: numbers(&shape, 101),
        counted: Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu)),
        noise: numbers(&shape, 102) * 1.7,
        times: (numbers(&shape[..2], 103) + 1.0) / 2.0,
    };
    MicroBatch { inputs: tokens(104), targets: tokens(105), actions: Some(chunks) }
}

fn chunks(batch: &MicroBatch) -> &ActionChunks {
    batch.actions.as_ref().unwrap()
}

fn losses(vla: &Vla, parameters: &Vec<Tensor>, batch: &MicroBatch) -> [f64; 2] {
    let losses = vla.losses(parameters, batch, None).unwrap();
    [0, 1].map(|term: usize| losses[term].double_value(&[]))
}

fn predict(vla: &Vla, parameters: &Vec<Tensor>, batch: &MicroBatch) -> (Tensor, Tensor) {
    let chunks = chunks(batch);
    let noisy = chunks.at_their_times().unwrap();
    let predicted = vla.predict(parameters, (&batch.inputs, &noisy, &chunks.times), None).unwrap();
    (predicted.logits.view([-1, TURNS, TURN_TOKENS as i64, VOCABULARY]), predicted.velocity)
}

#[test]
fn a_model_that_knows_nothing_pays_for_all_that_counts() {
    let vla = model(&[]);
    let zeros: Vec<Tensor> = filled(&vla).iter().map(Tensor::zeros_like).collect();
    let batch = batch(2);
    let _ = batch.targets.narrow(2, 0, 5).fill_(IGNORED);
    let _ = chunks(&batch).counted.narrow(2, 1, 2).fill_(0.0);
    let [ar, fm] = losses(&vla, &zeros, &batch);
    approx::assert_relative_eq!(ar, 2.0 * 2.0 * 7.0 * (VOCABULARY as f64).ln(), max_relative = 1e-5);
    let velocity = chunks(&batch).velocity().unwrap().narrow(2, 0, 1);
    approx::assert_relative_eq!(
        fm,
        velocity.square().sum(Kind::Double).double_value(&[]),
        max_relative = 1e-5
    );
}

/// Which inputs an output depends on, by the rule in the module's documentation.
#[test]
fn tokens_see_what_came_before_and_chunks_see_themselves() {
    let vla = model(&[]);
    let parameters = filled(&vla);
    let of = |change: &dyn Fn(&MicroBatch)| {
        let batch = batch(1);
        change(&batch);
        predict(&vla, &parameters, &batch)
    };
    let (logits, velocity) = of(&|_| {});
    let differs = |one: &Tensor, other: &Tensor| one != other;
    let token = |turn: i64, position: i64| {
        move |batch: &MicroBatch| {
            let token = batch.inputs.get(0).get(turn).get(position);
            let other = (token.int64_value(&[]) + 1) % VOCABULARY;
            let _ = batch.inputs.get(0).get(turn).get(position).fill_(other);
        }
    };
    // A token of turn 0: nothing before it, everything after it.
    let (changed, moved) = of(&token(0, 6));
    assert!(!differs(&changed.narrow(1, 0, 1).narrow(2, 0, 6), &logits.narrow(1, 0, 1).narrow(2, 0, 6)));
    for position in 6..TURN_TOKENS as i64 {
        assert!(differs(&changed.get(0).get(0).get(position), &logits.get(0).get(0).get(position)));
    }
    assert!(differs(&changed.narrow(1, 1, 1), &logits.narrow(1, 1, 1)));
    assert!((0..TURNS).all(|turn| differs(&moved.get(0).get(turn), &velocity.get(0).get(turn))));
    // A token of turn 1: nothing of turn 0, its actions included.
    let (changed, moved) = of(&token(1, 0));
    assert!(!differs(&changed.narrow(1, 0, 1), &logits.narrow(1, 0, 1)));
    assert!(!differs(&moved.get(0).get(0), &velocity.get(0).get(0)));
    assert!(differs(&moved.get(0).get(1), &velocity.get(0).get(1)));
    // The last noisy action of turn 0: all actions of its chunk, and nothing else.
    let (changed, moved) = of(&|batch| {
        let _ = chunks(batch).noise.get(0).get(0).get(CHUNK - 1).fill_(0.25);
    });
    assert!(!differs(&changed, &logits));
    assert!(
        (0..CHUNK)
            .all(|action| differs(&moved.get(0).get(0).get(action), &velocity.get(0).get(0).get(action)))
    );
    assert!(!differs(&moved.get(0).get(1), &velocity.get(0).get(1)));
    // The time of turn 1 likewise.
    let (changed, moved) = of(&|batch| {
        let _ = chunks(batch).times.get(0).get(1).fill_(0.125);
    });
    assert!(!differs(&changed, &logits) && !differs(&moved.get(0).get(0), &velocity.get(0).get(0)));
    assert!(differs(&moved.get(0).get(1), &velocity.get(0).get(1)));
}

/// Samples of a micro-batch do not meet: its losses are the sums of theirs.
#[test]
fn samples_do_not_see_each_other() {
    let vla = model(&[]);
    let (parameters, all) = (filled(&vla), batch(3));
    let part = |index: i64| {
        let of = |tensor: &Tensor| tensor.narrow(0, index, 1);
        let ActionChunks { actions, counted, noise, times } = chunks(&all);
        let chunks =
            ActionChunks { actions: of(actions), counted: of(counted), noise: of(noise), times: of(times) };
        let alone = MicroBatch { inputs: of(&all.inputs), targets: of(&all.targets), actions: Some(chunks) };
        losses(&vla, &parameters, &alone)
    };
    let alone = (0..3).map(part).fold([0.0; 2], |[ar, fm], [one, two]| [ar + one, fm + two]);
    for (together, alone) in losses(&vla, &parameters, &all).into_iter().zip(alone) {
        approx::assert_relative_eq!(together, alone, max_relative = 1e-5);
    }
}

/// Each loss alone reaches what it can, and together every parameter gets a gradient.
#[test]
fn the_losses_share_the_trunk() {
    let vla = model(&[]);
    let gradients = |terms: &[usize]| -> Vec<(String, bool)> {
        let parameters: Vec<Tensor> =
            filled(&vla).into_iter().map(|tensor| tensor.set_requires_grad(true)).collect();
        let losses = vla.losses(&parameters, &batch(2), None).unwrap();
        let chosen: Vec<&Tensor> = terms.iter().map(|&term| &losses[term]).collect();
        Tensor::stack(&chosen, 0).sum(Kind::Float).backward();
        let has = |tensor: &Tensor| {
            let gradient = tensor.grad();
            gradient.defined() && gradient.abs().sum(Kind::Float).double_value(&[]) > 0.0
        };
        let names = vla.parameters().into_iter().map(|(spec, _)| spec.name);
        names.zip(parameters.iter().map(has)).collect()
    };
    assert!(gradients(&[0, 1]).iter().all(|(name, has)| *has || panic!("{name} has no gradient")));
    assert!(gradients(&[1]).iter().all(|(name, has)| *has || panic!("{name} has no gradient")));
    for (name, has) in gradients(&[0]) {
        assert_eq!(has, !name.starts_with("action_") && !name.starts_with("time_"), "{name}");
    }
}

#[test]
fn names_and_shapes() {
    let parameters = model(&[]).parameters();
    let names: Vec<&str> = parameters.iter().map(|(spec, _)| spec.name.as_str()).collect();
    assert_eq!(names[..4], ["wte.weight", "wpe.weight", "action_in.weight", "action_in.bias"]);
    assert_eq!(names.len(), 2 + 4 + 2 * transformer::BLOCK_PARAMETERS + 2 + 2);
    let shape = |name: &str| &parameters[names.iter().position(|&known| known == name).unwrap()].0.shape;
    assert_eq!(shape("wpe.weight"), &[2 * (12 + 3), 16]);
    assert_eq!(shape("time_in.weight"), &[16, 16]);
    assert_eq!(shape("action_out.weight"), &[16, 2]);
}

#[test]
fn weights_are_the_configurations_and_a_batch_without_actions_is_refused() {
    let vla = model(&["model.ar_weight=0.5", "model.fm_weight=3"]);
    let terms = vla.terms();
    assert_eq!(
        terms.iter().map(|term| (term.name, term.weight)).collect::<Vec<_>>(),
        [("ar", 0.5), ("fm", 3.0)]
    );
    let batch = batch(1);
    let without = MicroBatch::new(batch.inputs, batch.targets);
    assert!(vla.losses(&filled(&vla), &without, None).is_err());
}
