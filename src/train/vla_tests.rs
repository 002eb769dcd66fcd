//! A policy that is trained here does what it was shown.

use lockstep_record::RunDir;
use tch::{Device, Kind, Tensor};

use super::{Course, run};
use crate::comm::SoloComm;
use crate::config::Config;
use crate::data::Split;
use crate::launch::StopRequest;
use crate::model::{MicroBatch, Vla};
use crate::session::Session;

/// Steps of Euler's method from noise to actions.
const EULER_STEPS: usize = 10;

fn config() -> Config {
    let sets = [
        "model.dropout=0",
        "data.max_samples=null",
        "batch.micro_batches=2",
        "batch.micro_batch_size=16",
        "optim.lr=5e-3",
        "schedule.steps=300",
        "evaluate.every=0",
        "checkpoint.every=0",
        "record.digests_every=0",
    ]
    .map(String::from);
    crate::config::load(&["embedded:vla-tiny.yaml".into()], &sets, &|_| None).unwrap().config
}

/// Follows the learnt velocity from the batch's noise.
fn sample_actions(session: &Session, batch: &MicroBatch) -> Tensor {
    let vla = Vla::new(&session.config.model, session.corpus.info().vocabulary as usize);
    let chunks = batch.actions.as_ref().unwrap();
    let mut x = chunks.noise.copy();
    for step in 0..EULER_STEPS {
        let time = Tensor::full_like(&chunks.times, step as f64 / EULER_STEPS as f64);
        let predicted = tch::no_grad(|| vla.predict(&session.weights(), (&batch.inputs, &x, &time), None));
        x += predicted.unwrap().velocity / EULER_STEPS as f64;
    }
    x
}

/// Mean squared distance from the actions that were made, a element.
fn error(actions: &Tensor, batch: &MicroBatch) -> f64 {
    let chunks = batch.actions.as_ref().unwrap();
    let errors = ((actions - &chunks.actions) * &chunks.counted).square().sum(Kind::Double);
    errors.double_value(&[]) / chunks.counted.sum(Kind::Double).double_value(&[])
}

#[test]
fn the_learnt_flow_leads_to_the_actions_that_were_shown() {
    let (config, folder) = (config(), tempfile::tempdir().unwrap());
    tch::set_num_threads(1);
    let mut session = Session::build(&config, &SoloComm, false, tch::Device::Cpu).unwrap();
    session.initialise().unwrap();
    let ids: Vec<u64> = (0..64).collect();
    // Samples that were never trained on.
    let batch = session.micro_batch(Split::Validation, &ids, None).unwrap();
    let mean = |session: &Session| {
        let targets = session.corpus.targets(Split::Validation, &ids).unwrap();
        let losses = tch::no_grad(|| session.model.losses(&session.weights(), &batch, None)).unwrap();
        [0, 1].map(|term: usize| losses[term].double_value(&[]) / targets[term] as f64)
    };
    let noise = error(&batch.actions.as_ref().unwrap().noise, &batch);
    let still = error(&Tensor::zeros(1, (Kind::Float, Device::Cpu)), &batch);
    let (untrained, before) = (error(&sample_actions(&session, &batch), &batch), mean(&session));
    let course = Course::new(&config, 0, None, StopRequest::listen().unwrap()).unwrap();
    run(&mut session, &RunDir::new(folder.path()), None, &course).unwrap();
    let (trained, after) = (error(&sample_actions(&session, &batch), &batch), mean(&session));
    let report = format!(
        "error of noise {noise:.3}, of no action {still:.3}, untrained {untrained:.3}, trained {trained:.3}; losses \
         {before:.3?} and {after:.3?}"
    );
    assert!(trained < 0.1 * noise && trained < 0.1 * untrained && trained < still, "{report}");
    assert!(after[0] < 0.5 * before[0] && after[1] < 0.7 * before[1], "{report}");
}
