//! Gradients that are missing, unwanted or not finite: no policy depends on the number of processes.

use std::path::Path;

use lockstep_record::{CheckpointManifest, DigestLine, Phase, RunDir, StepLine, exit, read_json, read_lines};

use crate::launch::{Launch, assert_equal, exactly};

/// Two blocks, of which micro-batches skip some; two micro-batches, so that whole steps leave parameters unused.
fn dropping(ranks: usize, policy: &str) -> Launch {
    let sets =
        ["model.layers=2", "model.layer_drop=0.5", "batch.micro_batches=3", "record.local_gradients=true"];
    let launch = sets.iter().fold(Launch::ranks(ranks), |launch, set| launch.set(set));
    launch.set(&format!("parallel.unused_parameters={policy}"))
}

fn steps(run: &Path) -> Vec<StepLine> {
    read_lines::<StepLine>(&RunDir::new(run).metrics()).unwrap().map(Result::unwrap).collect()
}

#[test]
fn layers_that_are_dropped_do_not_depend_on_the_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    for policy in ["detect", "allow"] {
        dropping(1, policy).run(&run(policy)).ok();
        dropping(2, policy).run(&run(&format!("{policy}-2"))).ok();
        assert_equal(&run(policy), &run(&format!("{policy}-2")));
        dropping(3, policy).zero1().stop_after(5).run(&run(&format!("{policy}-3"))).ok();
        dropping(2, policy).resume().run(&run(&format!("{policy}-3"))).ok();
        assert_equal(&run(policy), &run(&format!("{policy}-3")));
    }
    let unused: Vec<u64> = steps(&run("detect")).iter().map(|line| line.unused_parameters).collect();
    assert!(unused.iter().any(|&count| count > 0 && count.is_multiple_of(12)), "{unused:?}");
    assert!(steps(&run("allow")).iter().all(|line| line.unused_parameters == 0));
    // The two policies part where a whole step leaves a block unused: the controls of each other.
    assert!(!exactly(&run("detect"), &run("allow")).passed());
}

#[test]
fn detect_leaves_an_unused_block_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    dropping(2, "detect").run(folder.path()).ok();
    let lines = steps(folder.path());
    let step = lines.iter().find(|line| line.step > 1 && line.unused_parameters > 0).unwrap().step;
    let digests: Vec<DigestLine> =
        read_lines(&RunDir::new(folder.path()).digests()).unwrap().map(Result::unwrap).collect();
    let of = |step: u64, phase: Phase| -> Vec<(String, String)> {
        let lines = digests.iter().filter(|line| (line.step, line.phase) == (step, phase));
        lines.map(|line| (line.tensor.clone(), line.digest.to_string())).collect()
    };
    for phase in [Phase::Parameters, Phase::Optimizer] {
        let (before, after) = (of(step - 1, phase), of(step, phase));
        let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
        let kinds = if phase == Phase::Optimizer { 2 } else { 1 };
        assert_eq!(same as u64, kinds * lines[step as usize - 1].unused_parameters, "{phase}");
    }
    // Each parameter is named once in the log, however often it is unused.
    let log = std::fs::read_to_string(folder.path().join("logs/rank-00000.jsonl")).unwrap();
    for name in ["h.0.ln_1.weight", "h.1.mlp.c_fc.bias"] {
        assert!(log.matches(name).count() <= 1, "{log}");
    }
    assert!(log.contains("no micro-batch used these parameters"), "{log}");
}

#[test]
fn an_unused_parameter_is_an_error_that_names_it() {
    for ranks in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let ended = dropping(ranks, "error").run(folder.path()).code(exit::INTERNAL);
        let ended = ended.says("step 1: the loss of some micro-batch does not depend on h.");
        ended.says("more, so there is no gradient").says("set parallel.unused_parameters to detect");
    }
}

#[test]
fn frozen_parameters_do_not_move_and_hold_no_state() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    // Buckets of one block, so that most ranks have an empty shard of each.
    let frozen = |ranks: usize| {
        let launch =
            Launch::ranks(ranks).set("model.freeze=[wte, \"*.ln_1.*\"]").set("checkpoint.at_start=true");
        launch.set("parallel.bucket_mb=0.004").set("record.local_gradients=true")
    };
    frozen(1).run(&run("golden")).ok();
    frozen(8).run(&run("ddp")).ok();
    frozen(3).zero1().stop_after(5).run(&run("zero1")).ok();
    frozen(8).zero1().resume().run(&run("zero1")).ok();
    for name in ["ddp", "zero1"] {
        assert_equal(&run("golden"), &run(name));
    }
    let checkpoint = |step: u64| -> CheckpointManifest {
        read_json(&RunDir::new(run("ddp")).checkpoint(step).join("manifest.json")).unwrap()
    };
    let (first, last) = (checkpoint(0), checkpoint(10));
    let digest = |checkpoint: &CheckpointManifest, name: &str| {
        checkpoint.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.digest)
    };
    for (name, moves) in [("wte.weight", false), ("h.0.ln_1.bias", false), ("h.0.ln_2.bias", true)] {
        let model = format!("model/{name}");
        assert_eq!(digest(&first, &model) != digest(&last, &model), moves, "{name}");
        assert_eq!(digest(&last, &format!("optimizer/exp_avg/{name}")).is_some(), moves, "{name}");
    }
    let unfrozen = Launch::ranks(1).argument("--resume").argument(run("ddp")).run(&run("new"));
    unfrozen.code(exit::USAGE).says("it has no optimizer state of wte.weight, which was frozen");
}

#[test]
fn what_cannot_be_frozen_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |set: &str| Launch::ranks(2).set(set).run(folder.path()).code(exit::USAGE);
    refused("model.freeze=[h.0.atn]").says("`h.0.atn` matches no parameter; the nearest are h.0.attn");
    refused("model.freeze=[\"*\"]").says("a model without parameters to train");
    refused("model.freeze=wte").says("give a list of texts");
}

#[cfg(feature = "mutations")]
mod not_finite {
    use super::*;

    fn skipping(ranks: usize) -> Launch {
        Launch::ranks(ranks).mutate("nan-gradient").set("optim.non_finite=skip")
    }

    #[test]
    fn a_step_is_skipped_on_all_ranks_and_training_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        skipping(1).run(&run("golden")).ok();
        skipping(3).run(&run("ddp")).ok();
        // Stopped between the two steps, and resumed.
        skipping(2).zero1().stop_after(3).run(&run("zero1")).ok();
        skipping(2).zero1().resume().run(&run("zero1")).ok();
        for name in ["ddp", "zero1"] {
            assert_equal(&run("golden"), &run(name));
        }
        let lines = steps(&run("golden"));
        let skipped: Vec<u64> =
            lines.iter().filter(|line| line.skipped_for.is_some()).map(|line| line.step).collect();
        assert_eq!(skipped, [3, 4]);
        assert_eq!(lines[2].skipped_for.as_deref(), Some("wte.weight"));
        assert_eq!(lines[3].parameter_norm.0, lines[1].parameter_norm.0);
        assert_ne!(lines[4].parameter_norm.0, lines[3].parameter_norm.0);
        assert!(lines.iter().all(|line| line.loss.0.is_finite()));
    }

    #[test]
    fn it_ends_where_asked_to_and_after_ten_in_a_row() {
        for ranks in [1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let run = |name: &str| folder.path().join(name);
            let stop = Launch::ranks(ranks).mutate("nan-gradient").run(&run("stop")).code(exit::INTERNAL);
            stop.says("step 3: the gradient of wte.weight is not finite");
            let skip = Launch::ranks(ranks).mutate("nan-gradients").set("optim.non_finite=skip");
            let skip = skip.set("schedule.steps=30").run(&run("skip")).code(exit::INTERNAL);
            skip.says("step 12: ").says("in 10 steps in a row");
            assert_eq!(steps(&run("skip")).len(), 11);
        }
    }
}
