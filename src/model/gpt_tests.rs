use super::super::transformer::BLOCK_PARAMETERS;
use super::*;
use crate::grad::layout::ParameterSpec;
use crate::model::Initial;

fn model(positions: Positions) -> Gpt {
    let sets = ["model.layers=2", "model.heads=2", "model.width=16", "model.context=8"].map(String::from);
    let config = crate::config::load(&[], &sets, &|_| None).unwrap().config;
    Gpt::new(&schema::Model { positions, ..config.model }, 32)
}

fn filled(gpt: &Gpt) -> Vec<Tensor> {
    tch::manual_seed(3);
    let tensor = |(spec, _): &(ParameterSpec, Initial)| {
        Tensor::randn(spec.shape.as_slice(), (Kind::Float, Device::Cpu)) * 0.1
    };
    gpt.parameters().iter().map(tensor).collect()
}

fn batch(tokens: &[i64]) -> MicroBatch {
    let shifted: Vec<i64> = tokens.iter().map(|token| (token + 1) % 32).collect();
    let tensor = |values: &[i64]| Tensor::from_slice(values).view([1, values.len() as i64]);
    MicroBatch::new(tensor(tokens), tensor(&shifted))
}

fn loss(gpt: &Gpt, parameters: &Vec<Tensor>, batch: &MicroBatch) -> Tensor {
    gpt.losses(parameters, batch, None).unwrap().remove(0)
}

#[test]
fn a_uniform_guess_costs_the_logarithm_of_the_vocabulary() {
    let gpt = model(Positions::Learned);
    let zeros: Vec<Tensor> = filled(&gpt).iter().map(Tensor::zeros_like).collect();
    let loss = loss(&gpt, &zeros, &batch(&[1, 2, 3, 4, 5, 6, 7, 8])).double_value(&[]);
    approx::assert_relative_eq!(loss, 8.0 * 32f64.ln(), max_relative = 1e-5);
}

#[test]
fn positions_matter_with_both_kinds() {
    for positions in [Positions::Learned, Positions::Rotary] {
        let gpt = model(positions);
        let parameters = filled(&gpt);
        let last_token_loss = |tokens: &[i64]| {
            let all = batch(tokens);
            // Only the last token's target counts: its context is permuted.
            let targets = Tensor::full([1, 8], -100, (Kind::Int64, Device::Cpu));
            targets.get(0).get(7).copy_(&Tensor::from(5i64));
            loss(&gpt, &parameters, &MicroBatch::new(all.inputs, targets)).double_value(&[])
        };
        let (one, other) = ([1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 3, 4, 5, 6, 7, 8]);
        assert_ne!(last_token_loss(&one), last_token_loss(&other), "{positions:?}");
    }
}

#[test]
fn the_future_is_hidden() {
    let gpt = model(Positions::Rotary);
    let parameters = filled(&gpt);
    let first_token_loss = |tokens: &[i64]| {
        let inputs = batch(tokens).inputs;
        let targets = Tensor::full([1, 8], -100, (Kind::Int64, Device::Cpu));
        targets.get(0).get(0).copy_(&Tensor::from(5i64));
        loss(&gpt, &parameters, &MicroBatch::new(inputs, targets)).double_value(&[])
    };
    assert_eq!(first_token_loss(&[1, 2, 3, 4, 5, 6, 7, 8]), first_token_loss(&[1, 9, 9, 9, 9, 9, 9, 9]));
}

/// LayerDrop: a skipped block is the identity, its parameters get no gradient, and evaluation has all blocks.
#[test]
fn skipped_blocks_are_as_if_they_were_not_there() {
    let mut gpt = model(Positions::Learned);
    gpt.blocks.layer_drop = 0.5;
    let key = |micro_batch| Dropout { probability: 0.0, seed: 1, step: 1, micro_batch, rank: 0 };
    let skips = |micro_batch, layer| key(micro_batch).skips_layer(layer, 0.5);
    let only_first = (0..).find(|&micro_batch| skips(micro_batch, 1) && !skips(micro_batch, 0)).unwrap();
    let parameters: Vec<Tensor> =
        filled(&gpt).into_iter().map(|tensor| tensor.set_requires_grad(true)).collect();
    let batch = batch(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let skipping = gpt.losses(&parameters, &batch, Some(&key(only_first))).unwrap().remove(0);
    skipping.backward();
    let has_gradient: Vec<bool> = parameters.iter().map(|tensor| tensor.grad().defined()).collect();
    let block = |layer: usize| 2 + layer * BLOCK_PARAMETERS..2 + (layer + 1) * BLOCK_PARAMETERS;
    assert!(has_gradient[block(0)].iter().all(|&has| has));
    assert!(has_gradient[block(1)].iter().all(|&has| !has));

    let mut shallow = model(Positions::Learned);
    shallow.blocks.layers = 1;
    let kept: Vec<Tensor> = parameters[..block(0).end]
        .iter()
        .chain(&parameters[block(1).end..])
        .map(Tensor::shallow_clone)
        .collect();
    let value = |loss: Tensor| loss.double_value(&[]);
    assert_eq!(value(skipping), value(loss(&shallow, &kept, &batch)));
    let all = model(Positions::Learned);
    assert_eq!(value(loss(&gpt, &parameters, &batch)), value(loss(&all, &parameters, &batch)));
}

#[test]
fn names_and_count_follow_gpt_2() {
    let parameters = model(Positions::Learned).parameters();
    assert_eq!(parameters.len(), 2 + 2 * 12 + 2);
    assert_eq!(parameters[0].0.name, "wte.weight");
    assert_eq!(parameters[12].0.name, "h.0.mlp.c_proj.weight");
    assert_eq!(parameters[12].0.shape, [64, 16]);
}
