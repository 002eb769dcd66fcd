//! `lockstep-harness lint` on run directories in which one thing is spoiled: the check that is meant for it must find it, name
//! the place, and no check may find anything in a run that is right.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{MODEL, Run, STEPS, harness, read_manifest, segment, write_manifest};
use lockstep_harness::lint::{CATALOGUE, Finding, Report, lint};
use lockstep_record::{
    BLOCK_BYTES, Digest, DigestLine, Ended, LossTerm, Outcome, Phase, RankInfo, Real, RunDir, block_digests,
    tensor_digest,
};
use proptest::prelude::*;

/// Samples in an epoch: two steps.
const SAMPLES: u64 = 8;
/// Of one sample each.
const MICRO_BATCHES: u32 = 4;
const BETAS: [f64; 2] = [0.9, 0.95];
const CLIP_NORM: f64 = 0.5;
/// Of two losses, ar and fm.
const WEIGHTS: [f64; 2] = [0.5, 2.0];

/// A run in which everything fits, as the trainer would leave it.
fn clean(world: u32) -> Run {
    let mut run = Run::new(world);
    run.manifest.program.name = "lockstep".into();
    run.manifest.data.train_samples = SAMPLES;
    run.manifest.config = serde_json::json!({
        "run": {"name": "n", "seed": 1}, "data": {"kind": "text"},
        "model": {"context": 512, "ar_weight": WEIGHTS[0], "fm_weight": WEIGHTS[1]},
        "optim": {"kind": "adamw", "lr": 0.01, "betas": BETAS, "clip_norm": CLIP_NORM},
        "batch": {"micro_batches": MICRO_BATCHES, "micro_batch_size": 1},
        "schedule": {"kind": "linear", "warmup_steps": 2, "steps": STEPS, "final_fraction": 0.1},
    });
    run.manifest.segments =
        vec![finished(segment(0, world, if world == 1 { "single" } else { "ddp" }), STEPS)];
    run.digests = (0..=STEPS).flat_map(|step| digests(step, world)).collect();
    let mut moments = [[0.0; 2]; MODEL.len()];
    for index in 0..STEPS as usize {
        complete(&mut run, index, &mut moments);
    }
    for (name, values) in &run.tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let digest = tensor_digest(block_digests(&bytes, BLOCK_BYTES));
        let (kind, tensor) = name.split_once('/').unwrap();
        let phase = if kind == "model" { Phase::Parameters } else { Phase::Optimizer };
        let line = run
            .digests
            .iter_mut()
            .find(|line| (line.step, line.phase, line.tensor.as_str()) == (STEPS, phase, tensor));
        line.unwrap().digest = digest;
    }
    run
}

fn finished(mut segment: lockstep_record::Segment, step: u64) -> lockstep_record::Segment {
    segment.ended = Some(Ended { step, outcome: Outcome::Finished, unix_s: 1 });
    segment.ranks = (0..segment.world_size)
        .map(|rank| RankInfo { rank, host: "h".into(), optimizer_bytes: 0, master_bytes: 0, processor: None })
        .collect();
    segment
}

fn line(step: u64, phase: Phase, tensor: String, micro_batch: Option<u32>, world: u32) -> DigestLine {
    let text = format!("{step} {phase} {tensor} {micro_batch:?}");
    DigestLine {
        step,
        phase,
        digest: tensor_digest(block_digests(text.as_bytes(), 8)),
        // A length that no two of them share.
        norm: Real(0.5 + f64::from(text.bytes().map(u32::from).sum::<u32>() % 97) / 97.0),
        sketch: None,
        tensor,
        micro_batch,
        ranks: vec![match micro_batch {
            Some(micro_batch) => (micro_batch * world / MICRO_BATCHES, micro_batch * world / MICRO_BATCHES),
            None => (0, world - 1),
        }],
        sharded: false,
    }
}

fn digests(step: u64, world: u32) -> Vec<DigestLine> {
    let mut lines = Vec::new();
    let mut all = |phase: Phase, prefix: &str, micro_batch| {
        for (name, _) in MODEL {
            lines.push(line(step, phase, format!("{prefix}{name}"), micro_batch, world));
        }
    };
    if step > 0 {
        (0..MICRO_BATCHES).for_each(|micro_batch| all(Phase::LocalGradient, "", Some(micro_batch)));
        all(Phase::ReducedGradient, "", None);
        all(Phase::Optimizer, "exp_avg/", None);
        all(Phase::Optimizer, "exp_avg_sq/", None);
    }
    all(Phase::Parameters, "", None);
    lines
}

/// Makes the numbers of one step follow from one another. Gradients are taken as orthogonal to each other and to the state.
fn complete(run: &mut Run, index: usize, moments: &mut [[f64; 2]]) {
    let step = index as u64 + 1;
    let norm = |run: &Run, phase, tensor: &str| {
        let of = |line: &&DigestLine| line.step == step && line.phase == phase && line.tensor == tensor;
        run.digests.iter().filter(of).map(|line| line.norm.0 * line.norm.0).sum::<f64>().sqrt()
    };
    for (name, _) in MODEL {
        let reduced = norm(run, Phase::LocalGradient, name);
        run.digest(step, Phase::ReducedGradient, name).norm = Real(reduced);
    }
    let global =
        |run: &Run, phase| MODEL.iter().map(|(name, _)| norm(run, phase, name).powi(2)).sum::<f64>().sqrt();
    let (gradient, parameters) = (global(run, Phase::ReducedGradient), global(run, Phase::Parameters));
    let clip = (CLIP_NORM / (gradient + 1e-6)).min(1.0);
    for ((name, _), [first, second]) in MODEL.iter().zip(moments) {
        let g = clip * norm(run, Phase::ReducedGradient, name);
        *first = (BETAS[0] * *first).hypot((1.0 - BETAS[0]) * g);
        *second = BETAS[1] * *second + 0.5 * (1.0 - BETAS[1]) * g * g;
        run.digest(step, Phase::Optimizer, &format!("exp_avg/{name}")).norm = Real(*first);
        run.digest(step, Phase::Optimizer, &format!("exp_avg_sq/{name}")).norm = Real(*second);
    }
    let line = &mut run.metrics[index];
    line.micro_batch_losses =
        (0..MICRO_BATCHES).map(|j| Real(1.0 + 0.1 * f64::from(j) - 0.01 * step as f64)).collect();
    line.loss = Real(line.micro_batch_losses.iter().map(|loss| loss.0).sum());
    line.loss_terms = terms(line.loss.0);
    line.gradient_norm = Real(gradient);
    line.parameter_norm = Real(parameters);
    line.clip_coefficient = Real(f64::from(clip as f32));
    line.learning_rate = Real(rate(step));
    line.epoch = (step - 1) * 4 / SAMPLES;
    // Each epoch begins with another sample.
    let id = |j: u64| ((step - 1) % 2 * 4 + j + 3 * line.epoch) % SAMPLES;
    run.samples[index].micro_batches = (0..4).map(|j| vec![id(j)]).collect();
    run.samples[index].masks = (0..4).map(|j| Digest((u128::from(step) << 8) | j)).collect();
}

/// Two losses that add up to this one: three quarters of it come from the first.
fn terms(loss: f64) -> BTreeMap<String, LossTerm> {
    let term = |share: f64, weight: f64| LossTerm { loss: Real(share * loss / weight), targets: 96 };
    [("ar".into(), term(0.75, WEIGHTS[0])), ("fm".into(), term(0.25, WEIGHTS[1]))].into()
}

fn rate(step: u64) -> f64 {
    match step {
        0..=2 => 0.01 * step as f64 / 2.0,
        _ => 0.01 * (0.1 + 0.9 * (1.0 - (step - 2) as f64 / (STEPS - 2) as f64)),
    }
}

fn look_at(run: &Run, damage: impl FnOnce(&RunDir)) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let dir = run.write(&folder.path().join("run"));
    damage(&dir);
    lint(dir.path()).unwrap()
}

/// Checks that found something, in the order of the catalogue.
fn names(report: &Report) -> Vec<&'static str> {
    report.checks.iter().filter(|check| check.findings > 0).map(|check| check.name).collect()
}

/// Spoils a clean run of three ranks; exactly `checks` must find something. Returns the first finding of the first of them.
fn spoiled(checks: &[&str], spoil: impl FnOnce(&mut Run)) -> Finding {
    let mut run = clean(3);
    spoil(&mut run);
    let report = look_at(&run, |_| {});
    assert_eq!(names(&report), checks, "{:#?}", report.findings);
    report.of(checks[0]).next().unwrap().clone()
}

/// The control: a change that no check may find.
fn spoiled_nothing(spoil: impl FnOnce(&mut Run)) {
    let mut run = clean(3);
    spoil(&mut run);
    let report = look_at(&run, |_| {});
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

fn says(finding: &Finding, text: &str) {
    assert!(finding.to_string().contains(text), "`{finding}` does not contain `{text}`");
    assert!(!finding.remedy.is_empty());
}

#[test]
fn a_clean_run_has_no_finding_and_nothing_that_was_not_looked_at() {
    for world in [1, 2, 3] {
        let report = look_at(&clean(world), |_| {});
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        let idle: Vec<_> =
            report.checks.iter().filter(|check| check.facts == 0).map(|check| check.name).collect();
        // One rank has no replicas, and only resumed runs have the others.
        let expected = ["replicas", "norm-scale", "schedule"];
        assert_eq!(idle, expected[usize::from(world > 1)..]);
    }
}

#[test]
fn a_resumed_run_with_other_ranks_is_clean() {
    let mut run = clean(3);
    run.manifest.segments = vec![finished(segment(0, 2, "ddp"), 2), finished(segment(2, 3, "zero1"), STEPS)];
    for line in run.digests.iter_mut().filter(|line| line.step <= 2 && line.micro_batch.is_none()) {
        line.ranks = vec![(0, 1)];
    }
    let report = look_at(&run, |_| {});
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let looked = |name: &str| report.checks.iter().any(|check| check.name == name && check.facts > 0);
    assert!(looked("norm-scale"));
}

#[test]
fn replicas_that_part_are_named_by_rank() {
    let part = |phase: Phase, tensor: &'static str| {
        move |run: &mut Run| {
            let line = run.digest(3, phase, tensor);
            line.ranks = vec![(0, 0), (2, 2)];
            let parted = DigestLine { ranks: vec![(1, 1)], digest: Digest(7), ..line.clone() };
            let at = run.digests.iter().position(|line| line.step == 4).unwrap();
            run.digests.insert(at, parted);
        }
    };
    let finding = spoiled(&["replicas"], part(Phase::Parameters, "wte.weight"));
    says(&finding, "error replicas: digests.jsonl:");
    says(&finding, "step 3, wte.weight, rank 1: parameters: not the bits that rank 0,2 holds (line ");
    let finding = spoiled(&["replicas"], part(Phase::ReducedGradient, "wte.bias"));
    says(&finding, "step 3, wte.bias, rank 1: reduced gradient: not the bits");
}

#[test]
fn a_rank_that_recorded_nothing_is_missed() {
    let finding =
        spoiled(&["ranks"], |run| run.digest(2, Phase::Parameters, "wte.bias").ranks = vec![(0, 0), (2, 2)]);
    says(&finding, "step 2, wte.bias: parameters: 3 ranks were at work, but rank 0,2 recorded it");
    spoiled(&["ranks"], |run| {
        run.digest(2, Phase::Optimizer, "exp_avg/wte.bias").ranks = vec![(0, u32::MAX)]
    });
    spoiled(&["ranks"], |run| run.digest(2, Phase::Parameters, "wte.bias").ranks = vec![]);
}

#[test]
fn a_tensor_that_is_missing_or_strange_is_named() {
    let finding = spoiled(&["tensors", "parameter-norm"], |run| {
        run.digests.retain(|line| {
            (line.step, line.phase, line.tensor.as_str()) != (2, Phase::Parameters, "wte.bias")
        });
    });
    says(&finding, "step 2, wte.bias: 1 of the model's tensors have no digest in this phase (parameters)");
    let report = {
        let mut run = clean(1);
        run.digest(2, Phase::Parameters, "wte.bias").tensor = "module.wte.bias".into();
        look_at(&run, |_| {})
    };
    says(
        report.of("tensors").next().unwrap(),
        "step 2, module.wte.bias: the model has no tensor of this name",
    );
    spoiled(&["tensors"], |run| {
        let at =
            run.digests.iter().position(|line| line.step == 2 && line.phase == Phase::Parameters).unwrap();
        run.digests.swap(at, at + 1);
    });
}

#[test]
fn a_sample_that_two_ranks_have_is_named_with_both() {
    let finding = spoiled(&["samples", "epochs"], |run| {
        run.samples[2].micro_batches[3][0] = run.samples[2].micro_batches[0][0]
    });
    says(&finding, "error samples: samples.jsonl:3: step 3, micro-batch 3, rank 2: sample ");
    says(&finding, "is in micro-batch 0 of rank 0, too");
    let finding = spoiled(&["samples"], |run| run.samples[2].micro_batches[0][0] = SAMPLES);
    says(&finding, "does not exist: there are 8");
}

#[test]
fn a_sample_that_comes_twice_in_an_epoch_is_found_across_steps() {
    let finding =
        spoiled(&["epochs"], |run| run.samples[3].micro_batches[1][0] = run.samples[2].micro_batches[1][0]);
    says(&finding, "step 4, micro-batch 1, rank 0: sample ");
    says(&finding, "comes a second time in epoch 1");
}

#[test]
fn an_epoch_in_the_order_of_the_one_before_is_found() {
    let finding = spoiled(&["sample-order"], |run| {
        run.samples[2].micro_batches = run.samples[0].micro_batches.clone();
        run.samples[3].micro_batches = run.samples[1].micro_batches.clone();
    });
    says(&finding, "warning sample-order: samples.jsonl:");
    says(&finding, "epoch 1 has its 8 samples in the order of the one before");
}

#[test]
fn another_trainers_epochs_count_where_it_counts_them() {
    let foreign = |epochs: bool, repeated: usize| {
        let mut run = clean(3);
        run.manifest.program.name = "pytorch".into();
        run.manifest.config = serde_json::json!({});
        for (line, metrics) in run.samples.iter_mut().zip(&mut run.metrics) {
            metrics.epoch = if epochs { metrics.epoch } else { 0 };
            line.masks = Vec::new();
        }
        let first = run.samples[0].micro_batches.clone();
        for (again, first) in run.samples[1].micro_batches.iter_mut().zip(first).take(repeated) {
            again[0] = first[0];
        }
        names(&look_at(&run, |_| {}))
    };
    assert_eq!(foreign(true, 0), [""; 0]);
    // So many are what a sampler may repeat to give three ranks as many samples each.
    assert_eq!(foreign(true, 2), [""; 0]);
    assert_eq!(foreign(true, 3), ["epochs"]);
    // Without epochs, nothing is known about them.
    assert_eq!(foreign(false, 3), [""; 0]);
}

#[test]
fn equal_dropout_masks_are_found_within_a_step_and_across_steps() {
    let finding = spoiled(&["dropout-masks"], |run| run.samples[1].masks[3] = run.samples[1].masks[0]);
    says(
        &finding,
        "samples.jsonl:2: step 2, micro-batch 3, rank 2: its dropout masks are those of micro-batch 0 of rank 0",
    );
    let finding = spoiled(&["dropout-masks"], |run| run.samples[1].masks[0] = run.samples[0].masks[0]);
    says(&finding, "those of micro-batch 0 of the step before");
    spoiled(&["dropout-masks"], |run| run.samples[1].masks.truncate(1));
}

#[test]
fn what_is_not_finite_is_named_wherever_it_is() {
    let finding = spoiled(&["finite"], |run| run.metrics[2].loss = Real(f64::NAN));
    says(&finding, "error finite: metrics.jsonl:3: step 3: loss is NaN");
    let finding = spoiled(&["finite"], |run| run.metrics[2].micro_batch_losses[1] = Real(f64::INFINITY));
    says(&finding, "step 3, micro-batch 1: the loss of a micro-batch is inf");
    let finding = spoiled(&["finite"], |run| {
        let term = LossTerm { loss: Real(f64::NAN), targets: 96 };
        run.metrics[2].loss_terms = [("fm".into(), term)].into();
    });
    says(&finding, "step 3: the loss fm is NaN");
    let finding =
        spoiled(&["finite"], |run| run.digest(3, Phase::Optimizer, "exp_avg/wte.bias").norm = Real(f64::NAN));
    says(&finding, "step 3, exp_avg/wte.bias, rank 0-2: optimizer: the norm is NaN");
}

#[test]
fn a_skipped_step_may_have_a_gradient_that_is_not_finite() {
    let report = {
        let mut run = clean(2);
        run.metrics[STEPS as usize - 1].skipped_for = Some("wte.weight".into());
        run.metrics[STEPS as usize - 1].gradient_norm = Real(f64::NAN);
        run.digest(STEPS, Phase::ReducedGradient, "wte.weight").norm = Real(f64::NAN);
        look_at(&run, |_| {})
    };
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn steps_that_repeat_fail_or_go_missing_are_found() {
    let finding = spoiled(&["steps"], |run| {
        run.metrics.remove(2);
        run.samples.remove(2);
    });
    says(&finding, "error steps: metrics.jsonl:3: step 4: step 3 should be next");
    let finding = spoiled(&["steps", "ended"], |run| drop(run.metrics.pop()));
    says(&finding, "samples.jsonl:5: step 5: metrics.jsonl has no line of this step");
    let finding = spoiled(&["steps"], |run| {
        let again = run.metrics[1].clone();
        run.metrics.insert(3, again);
    });
    says(&finding, "metrics.jsonl:4: step 2: step 2 after step 3");
}

#[test]
fn a_run_without_an_end_is_a_warning() {
    let finding = spoiled(&["ended"], |run| run.manifest.segments[0].ended = None);
    says(&finding, "warning ended: manifest.json: the last segment has no end");
    let report = look_at(&clean(1), |run| {
        let text = std::fs::read_to_string(run.metrics()).unwrap();
        std::fs::write(run.metrics(), &text[..text.len() - 9]).unwrap();
    });
    assert_eq!(names(&report), ["steps", "ended"]);
    says(report.of("ended").next().unwrap(), "metrics.jsonl:5: the last line is cut short");
}

#[test]
fn the_manifests_ranks_are_compared_with_its_world() {
    let finding = spoiled(&["world"], |run| drop(run.manifest.segments[0].ranks.remove(1)));
    says(&finding, "segment 0: 3 ranks were at work, but rank 0,2 are listed");
    spoiled(&["world"], |run| run.manifest.segments[0].strategy = "single".into());
}

#[test]
fn shapes_follow_the_configuration_and_each_other() {
    let finding = spoiled(&["batch"], |run| run.metrics[0].tokens = 1024);
    says(&finding, "metrics.jsonl:1: step 1: 1024 targets instead of 2048 in 4 samples");
    let finding = spoiled(&["batch"], |run| run.metrics[2].epoch = 0);
    says(&finding, "epoch 0 instead of 1");
    let finding = spoiled(&["batch"], |run| {
        let id = run.samples[4].micro_batches[3].pop();
        assert!(id.is_some());
    });
    says(&finding, "step 5, micro-batch 3: 0 samples instead of batch.micro_batch_size 1");
}

#[test]
fn the_loss_is_the_sum_of_its_shares() {
    let finding = spoiled(&["loss-sum", "loss-terms"], |run| run.metrics[1].loss.0 /= 2.0);
    says(&finding, "metrics.jsonl:2: step 2: the loss is ");
    says(&finding, "0.5000 times that");
}

#[test]
fn the_loss_is_the_weighted_sum_of_its_terms() {
    let term = |run: &mut Run| run.metrics[1].loss_terms.get_mut("fm").map(|term| term.loss.0 *= 1.0 + 1e-4);
    let finding = spoiled(&["loss-terms"], |run| assert!(term(run).is_some()));
    says(&finding, "error loss-terms: metrics.jsonl:2: step 2: the loss is ");
    says(&finding, ", but 0.5 × ar ");
    // A weight that was not the configuration's shows in every step.
    let finding = spoiled(&["loss-terms"], |run| run.manifest.config["model"]["ar_weight"] = 0.25.into());
    says(&finding, "metrics.jsonl:1: step 1: the loss is ");
    let finding = spoiled(&["loss-terms"], |run| {
        let last = run.metrics.last_mut().unwrap();
        last.validation_loss = Some(Real(4.5));
        last.validation_loss_terms = terms(4.6);
    });
    says(&finding, "step 5: the validation loss is 4.5, but 0.5 × ar ");
    // Within the rounding of fp32 it is the sum, and of a loss whose weight is not known nothing is.
    spoiled_nothing(|run| run.metrics[1].loss_terms.values_mut().for_each(|term| term.loss.0 *= 1.0 + 1e-7));
    spoiled_nothing(|run| {
        assert!(term(run).is_some());
        run.manifest.config["model"] = serde_json::json!({"context": 512, "ar_weight": 0.5});
    });
}

#[test]
fn the_learning_rate_is_recomputed() {
    let finding = spoiled(&["learning-rate"], |run| run.metrics[3].learning_rate = Real(rate(3)));
    says(&finding, "step 4: the learning rate is ");
    says(&finding, "which is step 3's; the schedule's is ");
    spoiled(&["learning-rate"], |run| {
        run.manifest.config["schedule"] = serde_json::json!({});
        run.metrics[3].learning_rate = Real(-1e-3);
    });
}

/// Without a known schedule, a resume can show that it was not saved.
#[test]
fn a_schedule_that_begins_anew_after_a_resume_is_found() {
    let resumed = |rates: [f64; 6]| {
        let mut run = clean(2);
        run.manifest.config = serde_json::json!({});
        run.manifest.segments = vec![segment(0, 2, "ddp"), finished(segment(3, 2, "ddp"), 6)];
        let mut last = run.metrics[4].clone();
        last.step = 6;
        run.metrics.push(last);
        let mut last = run.samples[4].clone();
        (last.step, last.masks, last.micro_batches) = (6, vec![], vec![]);
        run.samples.push(last);
        for (line, rate) in run.metrics.iter_mut().zip(rates) {
            line.learning_rate = Real(rate);
        }
        let report = look_at(&run, |_| {});
        report.of("schedule").map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(resumed([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), [""; 0]);
    assert!(
        resumed([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])[0]
            .contains("step 4: the schedule begins anew after the resume")
    );
    assert!(resumed([0.1, 0.2, 0.3, 0.3, 0.4, 0.5])[0].contains("the rate of the last one before it"));
    assert_eq!(resumed([0.1; 6]), [""; 0]);
}

#[test]
fn norms_are_those_of_their_tensors() {
    let finding = spoiled(&["gradient-norm", "clip"], |run| run.metrics[1].gradient_norm.0 *= 2.0);
    says(&finding, "metrics.jsonl:2: step 2: gradient_norm is ");
    says(&finding, "2.000000 times that");
    let finding = spoiled(&["parameter-norm"], |run| run.metrics[1].parameter_norm.0 *= 1.0 + 1e-8);
    says(&finding, "1.000000 times that");
}

#[test]
fn clipping_is_recomputed() {
    let finding = spoiled(&["clip", "moments"], |run| run.metrics[1].clip_coefficient = Real(1.0));
    says(&finding, "step 2: the clip coefficient is 1; a gradient of norm ");
    says(&finding, "and optim.clip_norm 0.5 ask for 0.");
    spoiled(&["clip"], |run| run.metrics[1].clip_coefficient.0 *= 1.0 + 1e-3);
}

#[test]
fn a_gradient_that_is_longer_than_its_parts_is_found() {
    let finding = spoiled(&["reduction", "gradient-norm", "moments"], |run| {
        run.digest(3, Phase::ReducedGradient, "wte.bias").norm.0 *= 3.0;
    });
    says(&finding, "step 3, wte.bias: the reduced gradient has norm ");
    says(&finding, "the local gradients of 4 micro-batches can only add up to something from ");
}

#[test]
fn a_gradient_that_has_been_there_before_is_found() {
    let finding = spoiled(&["repeats"], |run| {
        let digest = run.digest(2, Phase::ReducedGradient, "wte.bias").digest;
        run.digest(3, Phase::ReducedGradient, "wte.bias").digest = digest;
    });
    says(&finding, "step 3, wte.bias: the reduced gradient has the bits of the step before");
    let finding = spoiled(&["repeats"], |run| {
        let is = |line: &&mut DigestLine| {
            line.step == 3 && line.phase == Phase::LocalGradient && line.tensor == "wte.bias"
        };
        for line in run.digests.iter_mut().filter(is) {
            line.digest = Digest(5);
        }
    });
    says(
        &finding,
        "step 3, micro-batch 1, wte.bias, rank 0: the local gradient has the bits of micro-batch 0's",
    );
}

#[test]
fn a_state_that_was_forgotten_is_found() {
    let finding = spoiled(&["moments"], |run| {
        // From step 4 on, as if all before had been lost.
        let g = run.digest(4, Phase::ReducedGradient, "wte.bias").norm.0 * run.metrics[3].clip_coefficient.0;
        run.digest(4, Phase::Optimizer, "exp_avg_sq/wte.bias").norm = Real(0.5 * (1.0 - BETAS[1]) * g * g);
        let g = run.digest(5, Phase::ReducedGradient, "wte.bias").norm.0 * run.metrics[4].clip_coefficient.0;
        let kept = BETAS[1] * run.digest(4, Phase::Optimizer, "exp_avg_sq/wte.bias").norm.0;
        run.digest(5, Phase::Optimizer, "exp_avg_sq/wte.bias").norm =
            Real(kept + 0.5 * (1.0 - BETAS[1]) * g * g);
    });
    says(&finding, "step 4, exp_avg_sq/wte.bias, rank 0-2: norm ");
    says(&finding, "does not follow from ");
}

#[test]
fn parameters_that_do_not_move_are_found() {
    let finding = spoiled(&["updates"], |run| {
        let digest = run.digest(2, Phase::Parameters, "wte.bias").digest;
        run.digest(3, Phase::Parameters, "wte.bias").digest = digest;
    });
    says(
        &finding,
        "step 3, wte.bias, rank 0-2: the parameters have the bits of the step before, though their gradient",
    );
}

#[test]
fn a_gradient_that_a_resume_scales_by_its_ranks_is_found() {
    let scaled = |factor: f64| {
        let mut run = clean(3);
        run.manifest.segments =
            vec![finished(segment(0, 1, "single"), 2), finished(segment(2, 3, "ddp"), STEPS)];
        run.digests.clear();
        for (index, line) in run.metrics.iter_mut().enumerate() {
            let scale = if index < 2 { 1.0 } else { factor };
            line.gradient_norm = Real((0.10 + 0.001 * index as f64) * scale);
            line.clip_coefficient = Real(1.0);
        }
        let report = look_at(&run, |_| {});
        report.of("norm-scale").map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(scaled(1.0), [""; 0]);
    assert_eq!(scaled(1.5), [""; 0]);
    assert!(scaled(3.0)[0].contains("warning norm-scale: metrics.jsonl:3: step 3: gradient norms are 3.0"));
    assert!(scaled(1.0 / 3.0)[0].contains("with 3 ranks instead of 1, about 0.33"));
}

#[test]
fn a_damaged_checkpoint_is_named_by_file_and_tensor() {
    let shard = |run: &RunDir| run.checkpoint(STEPS).join("shard-00001-of-00003.safetensors");
    let damaged = |damage: &dyn Fn(&RunDir)| {
        let report = look_at(&clean(3), damage);
        assert_eq!(names(&report), ["checkpoints"], "{:#?}", report.findings);
        report.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let text = damaged(&|run| {
        let mut bytes = std::fs::read(shard(run)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(shard(run), bytes).unwrap();
    });
    assert!(text.contains("error checkpoints: checkpoints/step-00000005/shard-0000"), "{text}");
    assert!(text.contains("its elements have the digest"), "{text}");
    let text = damaged(&|run| std::fs::write(shard(run), "short").unwrap());
    assert!(text.contains("shard-00001-of-00003.safetensors: step 5: has 5 bytes"), "{text}");
    let text = damaged(&|run| std::fs::write(run.checkpoint(STEPS).join("manifest.json"), "{").unwrap());
    assert!(text.contains("step-00000005/manifest.json: step 5: "), "{text}");
    let edit = |change: fn(&mut lockstep_record::CheckpointManifest)| {
        damaged(&|run| {
            let mut manifest = read_manifest(&run.checkpoint(STEPS));
            change(&mut manifest);
            write_manifest(&run.checkpoint(STEPS), &manifest);
        })
    };
    assert!(edit(|m| m.state.step = 4).contains("step is 4, but the run's is 5"));
    assert!(edit(|m| m.state.samples_seen = 4).contains("samples_seen is 4, but the run's is 20"));
    assert!(edit(|m| m.files[0].blake3 = "0".repeat(64)).contains("its content has the BLAKE3"));
    assert!(edit(|m| m.files[0].name = "../x".into()).contains("is not a plain file name"));
    assert!(
        edit(|m| m.tensors.retain(|t| t.name != "model/wte.bias"))
            .contains("wte.bias: this parameter is not in the checkpoint")
    );
}

#[test]
fn a_checkpoint_of_other_values_than_the_record_is_found() {
    let finding = spoiled(&["checkpoints"], |run| run.tensor("model/wte.bias")[0] += 1.0);
    says(&finding, "step 5, model/wte.bias: saved with the digest ");
    says(&finding, "digests.jsonl has ");
}

#[test]
fn the_program_exits_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    clean(2).write(Path::new(&path("clean")));
    let (code, out, _) = harness(&["lint", &path("clean")]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("clean: no finding in "), "{out}");
    let mut run = clean(2);
    run.manifest.segments[0].ended = None;
    run.write(Path::new(&path("warning")));
    assert_eq!(harness(&["lint", &path("warning")]).0, 0);
    assert_eq!(harness(&["lint", &path("warning"), "--strict"]).0, 100);
    run.metrics[1].loss = Real(f64::NAN);
    run.write(Path::new(&path("error")));
    let (code, out, _) = harness(&["lint", &path("error")]);
    assert_eq!(code, 100);
    assert!(out.contains("remedy: look at the first finding"), "{out}");
    assert!(
        out.ends_with("error: 1 error and 1 warning in ") || out.contains("1 error and 1 warning in "),
        "{out}"
    );
    let (code, out, _) = harness(&["lint", &path("error"), "--json"]);
    assert_eq!(code, 100);
    let tree: serde_json::Value = serde_json::from_str(&out).unwrap();
    let finding =
        tree["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "finite").unwrap();
    assert_eq!(
        (&finding["file"], &finding["line"], &finding["step"]),
        (&"metrics.jsonl".into(), &2.into(), &2.into())
    );
    assert_eq!(tree["checks"].as_array().unwrap().len(), CATALOGUE.len());
    assert_eq!(harness(&["lint", &path("nowhere")]).0, 2);
    run.metrics.clear();
    run.samples.clear();
    run.digests.clear();
    run.write(Path::new(&path("empty")));
    let (code, _, errors) = harness(&["lint", &path("empty")]);
    assert_eq!(code, 101);
    assert!(errors.contains("no step was recorded"), "{errors}");
    std::fs::write(RunDir::new(path("clean")).metrics(), "{}\n").unwrap();
    let (code, _, errors) = harness(&["lint", &path("clean")]);
    assert_eq!(code, 101);
    assert!(errors.contains("metrics.jsonl:1: missing field"), "{errors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a line says, lint ends with a verdict or an error.
    #[test]
    fn no_record_panics(line in 0usize..40, key in 0usize..12, value in prop_oneof![
        Just(serde_json::json!(-1)), Just(serde_json::json!(u64::MAX)), Just(serde_json::json!("0x7ff8000000000000")),
        Just(serde_json::json!(null)), Just(serde_json::json!([])), Just(serde_json::json!([[4_000_000_000u32, 0]])), Just(serde_json::json!(1e300)),
    ], file in 0usize..4) {
        let folder = tempfile::tempdir().unwrap();
        let run = clean(2).write(&folder.path().join("run"));
        let path = [run.metrics(), run.samples(), run.digests(), run.manifest()][file].clone();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = if file == 3 { vec![text] } else { text.lines().map(str::to_owned).collect() };
        let at = line % lines.len();
        let mut tree: serde_json::Value = serde_json::from_str(&lines[at]).unwrap();
        let map = tree.as_object_mut().unwrap();
        let name = map.keys().nth(key % map.len()).unwrap().clone();
        map.insert(name, value);
        lines[at] = tree.to_string();
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let _ = lint(run.path());
    }
}
