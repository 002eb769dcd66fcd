//! `lockstep-harness compare` on run directories in which one thing is spoiled: it must name exactly that.

mod common;

use common::{Bench, MODEL, STEPS, segment};
use lockstep_record::{Digest, LossTerm, Phase, Real};

/// Spoils the candidate, compares exactly, and returns what follows "First difference:".
fn first_difference(spoil: impl FnOnce(&mut Bench)) -> String {
    let mut bench = Bench::new();
    spoil(&mut bench);
    bench.write();
    let (code, out, errors) = bench.compare(&["--exact"]);
    assert_eq!(code, 100, "{out}{errors}");
    let (_, rest) = out.split_once("First difference:\n  ").unwrap();
    rest.trim().to_owned()
}

fn assert_starts(text: &str, start: &str) {
    assert!(text.starts_with(start), "`{text}` does not start with `{start}`");
}

#[test]
fn the_same_result_on_other_ranks_and_shards_is_equal() {
    let bench = Bench::new();
    bench.write();
    let (code, out, errors) = bench.compare(&[]);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("The runs are bit-identical in all that was compared, over 5 steps."), "{out}");
    assert!(!out.contains("not compared") || out.contains("replicas of the golden run"), "{out}");
    let elements = MODEL.iter().map(|(_, shape)| shape.iter().product::<u64>()).sum::<u64>();
    let row = out.lines().find(|line| line.starts_with("checkpoint parameters")).unwrap();
    assert!(row.contains(&format!(" {elements} ")), "{row}");
}

#[test]
fn each_column_of_the_metrics_is_named_with_its_distance() {
    let ulp = |value: &mut Real| *value = Real(value.0.next_up());
    assert_starts(
        &first_difference(|b| ulp(&mut b.candidate.metrics[2].loss)),
        "step 3, forward, loss: golden 4.7 (0x",
    );
    assert!(first_difference(|b| ulp(&mut b.candidate.metrics[2].loss)).ends_with(", 1 ulp apart"));
    let changed = first_difference(|b| ulp(&mut b.candidate.metrics[1].gradient_norm));
    assert_starts(&changed, "step 2, norm, gradient_norm: ");
    let changed = first_difference(|b| ulp(&mut b.candidate.metrics[1].clip_coefficient));
    assert_starts(&changed, "step 2, norm, clip_coefficient: golden 0.75 (0x3fe8000000000000)");
    let changed = first_difference(|b| ulp(&mut b.candidate.metrics[0].learning_rate));
    assert_starts(&changed, "step 1, optimizer, learning_rate: ");
    let changed = first_difference(|b| ulp(&mut b.candidate.metrics[0].parameter_norm));
    assert_starts(&changed, "step 1, parameters, parameter_norm: ");
    let changed = first_difference(|b| b.candidate.metrics[4].validation_loss = Some(Real(4.6)));
    assert_starts(&changed, "step 5, validation, validation_loss: golden 4.5 ");
    let changed = first_difference(|b| b.candidate.metrics[4].epoch = 1);
    assert_starts(&changed, "step 5, data, epoch: golden 0, candidate 1");
}

#[test]
fn a_micro_batch_loss_is_measured_in_fp32() {
    let changed = first_difference(|bench| {
        let loss = &mut bench.candidate.metrics[3].micro_batch_losses[1];
        *loss = Real(f64::from((loss.0 as f32).next_up()));
    });
    assert_starts(&changed, "step 4, forward, micro-batch 1, micro_batch_losses: ");
    assert!(changed.ends_with(", 1 ulp apart"), "{changed}");
}

/// Gives both runs two losses in every step.
fn two_losses(bench: &mut Bench) {
    for line in bench.golden.metrics.iter_mut().chain(&mut bench.candidate.metrics) {
        for (name, targets) in [("ar", 40), ("fm", 96)] {
            let term = LossTerm { loss: Real(0.5 * line.loss.0), targets };
            line.loss_terms.insert(name.into(), term);
            line.validation_loss_terms.insert(name.into(), term);
        }
    }
}

fn term<'b>(bench: &'b mut Bench, index: usize, name: &str) -> &'b mut LossTerm {
    two_losses(bench);
    bench.candidate.metrics[index].loss_terms.get_mut(name).unwrap()
}

#[test]
fn each_of_several_losses_is_named() {
    let changed = first_difference(|bench| {
        let loss = &mut term(bench, 2, "fm").loss;
        *loss = Real(loss.0.next_up());
    });
    assert_starts(&changed, "step 3, forward, loss_terms.fm: golden 2.35 (0x");
    assert!(changed.ends_with(", 1 ulp apart"), "{changed}");
    let changed = first_difference(|bench| term(bench, 1, "ar").targets = 39);
    assert_starts(&changed, "step 2, data, targets of loss_terms.ar: golden 40, candidate 39");
    let changed = first_difference(|bench| {
        two_losses(bench);
        bench.candidate.metrics[3].loss_terms.remove("ar");
    });
    assert_starts(&changed, "step 4, forward, loss_terms.ar: golden recorded, candidate absent");
    let changed = first_difference(|bench| {
        two_losses(bench);
        bench.candidate.metrics[4].validation_loss_terms.get_mut("ar").unwrap().loss = Real(9.0);
    });
    assert_starts(&changed, "step 5, validation, validation_loss_terms.ar: ");
}

/// Another trainer's record need not tell them apart.
#[test]
fn losses_that_one_run_does_not_tell_apart_are_not_compared() {
    let mut bench = Bench::new();
    two_losses(&mut bench);
    bench.candidate.metrics.iter_mut().for_each(|line| line.loss_terms.clear());
    bench.write();
    let (code, out, errors) = bench.compare(&["--exact"]);
    assert_eq!(code, 0, "{out}{errors}");
}

#[test]
fn a_sample_id_is_named_with_its_micro_batch() {
    let changed = first_difference(|bench| bench.candidate.samples[1].micro_batches[0][1] = 77);
    assert_eq!(changed, "step 2, data, micro-batch 0, sample ids: golden [8, 9], candidate [8, 77]");
}

#[test]
fn a_digest_is_named_with_phase_tensor_and_ranks() {
    for (phase, tensor, expected) in [
        (Phase::LocalGradient, "wte.bias", "step 3, local gradient, micro-batch 1, wte.bias, rank 0: "),
        (Phase::ReducedGradient, "wte.weight", "step 3, reduced gradient, wte.weight, rank 0-2: "),
        (Phase::Optimizer, "exp_avg/wte.bias", "step 3, optimizer, exp_avg/wte.bias, rank 0-2: "),
        (Phase::Parameters, "wte.bias", "step 3, parameters, wte.bias, rank 0-2: "),
    ] {
        let changed = first_difference(|bench| bench.candidate.digest(3, phase, tensor).digest.0 ^= 1);
        assert_starts(&changed, expected);
    }
}

#[test]
fn the_cause_is_named_before_its_consequences() {
    let changed = first_difference(|bench| {
        bench.candidate.metrics[3].loss = Real(9.0);
        bench.candidate.digest(3, Phase::Parameters, "wte.bias").digest.0 ^= 1;
        bench.candidate.digest(3, Phase::ReducedGradient, "wte.bias").digest.0 ^= 1;
        bench.candidate.tensor("model/wte.bias")[0] += 1.0;
    });
    assert_starts(&changed, "step 3, reduced gradient, wte.bias");
}

#[test]
fn a_replica_that_parts_is_named_by_rank() {
    let changed = first_difference(|bench| {
        let line = bench.candidate.digest(4, Phase::Parameters, "wte.weight");
        line.ranks = vec![(0, 1)];
        let mut parted = line.clone();
        parted.ranks = vec![(2, 2)];
        parted.digest = Digest(12);
        let at = bench.candidate.digests.iter().position(|line| line.step == 5).unwrap();
        bench.candidate.digests.insert(at, parted);
    });
    assert_starts(&changed, "step 4, parameters, wte.weight, rank 2: ");
}

#[test]
fn an_element_of_a_checkpoint_is_named_with_bits_and_ulps() {
    let changed = first_difference(|bench| {
        let value = &mut bench.candidate.tensor("model/wte.weight")[2345];
        *value = value.next_up();
    });
    assert_starts(&changed, "step 5, checkpoint, model/wte.weight[2345]: golden ");
    assert!(changed.contains("(0x") && changed.ends_with(", 1 ulp apart"), "{changed}");
    let changed = first_difference(|bench| bench.candidate.tensor("optimizer/exp_avg/wte.bias")[3] = 9.0);
    assert_starts(&changed, "step 5, checkpoint, optimizer/exp_avg/wte.bias[3]: ");
}

#[test]
fn a_run_that_ends_early_or_late_differs() {
    let changed = first_difference(|bench| {
        bench.candidate.metrics.pop();
        bench.candidate.samples.pop();
        bench.candidate.checkpoint_step = STEPS - 1;
    });
    assert_eq!(changed, "step 5, end of run, sample ids: golden recorded, candidate absent");
    let changed = first_difference(|bench| bench.golden.metrics.truncate(2));
    assert_eq!(changed, "step 3, end of run, steps: golden absent, candidate recorded");
}

#[test]
fn another_model_data_or_configuration_differs_and_comes_first() {
    let changed = first_difference(|bench| bench.candidate.manifest.model.tensors[1].shape = vec![51]);
    assert_eq!(
        changed,
        "configuration, model tensor 1: golden wte.bias F32 [50], candidate wte.bias F32 [51]"
    );
    let changed = first_difference(|bench| bench.candidate.manifest.config["optim"]["lr"] = 0.5.into());
    assert_eq!(changed, "configuration, optim.lr: golden 0.001, candidate 0.5");
    let changed = first_difference(|bench| bench.candidate.manifest.data.digest = "e".into());
    assert_eq!(changed, "configuration, data digest: golden d, candidate e");
}

#[test]
fn another_machine_is_a_named_reason() {
    let mut bench = Bench::new();
    bench.candidate.manifest.segments[0].cpu_capability = "AVX512".into();
    bench.candidate.manifest.segments[0].threads_per_rank = 2;
    bench.write();
    let (code, out, _) = bench.compare(&[]);
    assert_eq!(code, 0);
    assert!(out.contains("threads_per_rank differs, which moves bits: golden 1, candidate 2"), "{out}");
    assert!(out.contains("cpu_capability differs, which moves bits: golden AVX2, candidate AVX512"), "{out}");
}

#[test]
fn a_nan_equals_the_same_nan_and_no_other() {
    let with = |bits: u64| {
        let mut bench = Bench::new();
        bench.golden.metrics[0].loss = Real(f64::NAN);
        bench.golden.tensor("model/wte.bias")[0] = f32::NAN;
        bench.candidate.metrics[0].loss = Real(f64::from_bits(bits));
        bench.candidate.tensor("model/wte.bias")[0] = f32::NAN;
        bench.write();
        [&["--exact"][..], &["--rtol", "1"]].map(|options| bench.compare(options).0)
    };
    assert_eq!(with(f64::NAN.to_bits()), [0, 0]);
    assert_eq!(with(f64::NAN.to_bits() ^ 1), [100, 100]);
}

#[test]
fn a_tolerance_compares_values_and_not_digests() {
    let mut bench = Bench::new();
    for line in &mut bench.candidate.digests {
        line.digest.0 ^= 1;
    }
    for line in &mut bench.candidate.metrics {
        line.loss = Real(line.loss.0 * (1.0 + 4e-6));
    }
    bench.candidate.tensor("model/wte.bias")[7] += 1e-7;
    bench.write();
    assert_eq!(bench.compare(&[]).0, 100);
    let (code, out, _) = bench.compare(&["--rtol", "1e-5", "--atol", "1e-6"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("The runs agree within rtol 1e-5 atol 1e-6, over 5 steps."), "{out}");
    let (code, out, _) = bench.compare(&["--rtol", "1e-6"]);
    assert_eq!(code, 100);
    assert!(out.contains("First difference:\n  step 1, forward, loss: "), "{out}");
}

#[test]
fn a_tolerance_still_sees_a_tensor_norm_and_an_element() {
    let compare = |spoil: fn(&mut Bench)| {
        let mut bench = Bench::new();
        spoil(&mut bench);
        bench.write();
        let (code, out, _) = bench.compare(&["--rtol", "1e-5", "--atol", "1e-6"]);
        assert_eq!(code, 100);
        out
    };
    let out = compare(|bench| bench.candidate.digest(2, Phase::ReducedGradient, "wte.bias").norm = Real(3.0));
    assert!(out.contains("step 2, reduced gradient, wte.bias, rank 0-2: golden "), "{out}");
    let out = compare(|bench| bench.candidate.tensor("model/wte.weight")[0] += 1e-3);
    assert!(out.contains("checkpoint, model/wte.weight[0]: "), "{out}");
}

#[test]
fn fewer_digests_on_one_side_are_no_difference() {
    let mut bench = Bench::new();
    bench.candidate.digests.retain(|line| line.step % 2 == 0 && line.phase != Phase::LocalGradient);
    bench.write();
    let (code, out, _) = bench.compare(&[]);
    assert_eq!(code, 0, "{out}");
    let row = out.lines().find(|line| line.starts_with("local gradients")).unwrap();
    assert!(row.contains("not compared"), "{row}");
}

#[test]
fn a_run_that_went_on_from_elsewhere_is_compared_from_there() {
    let mut bench = Bench::new();
    bench.candidate.manifest.segments = vec![segment(2, 3, "ddp")];
    bench.candidate.metrics.drain(..2);
    bench.candidate.samples.drain(..2);
    bench.write();
    let (code, out, _) = bench.compare(&[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("note: compared from step 3") && out.contains("over 3 steps"), "{out}");
}

#[test]
fn nothing_in_common_is_never_a_pass() {
    let mut bench = Bench::new();
    bench.candidate.metrics.clear();
    bench.candidate.samples.clear();
    bench.candidate.digests.clear();
    bench.write();
    let (code, _, errors) = bench.compare(&[]);
    assert_eq!(code, 101);
    assert!(errors.contains("have no step in common"), "{errors}");
}

#[test]
fn the_json_holds_the_verdict_and_the_first_difference() {
    let mut bench = Bench::new();
    bench.candidate.metrics[2].loss = Real(f64::INFINITY);
    bench.write();
    let (code, out, _) = bench.compare(&["--json"]);
    assert_eq!(code, 100);
    let tree: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(tree["passed"], false);
    assert_eq!(tree["first_difference"]["place"]["step"], 3);
    assert_eq!(tree["first_difference"]["golden"]["decimal"], "4.7");
    assert_eq!(tree["first_difference"]["candidate"]["bits"], "0x7ff0000000000000");
}
