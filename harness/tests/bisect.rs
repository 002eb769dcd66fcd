//! `lockstep-harness bisect` on run directories in which one thing is spoiled: it must name exactly that.

mod common;

use common::{Bench, Run, STEPS, harness};
use lockstep_harness::bisect::{Finding, Phase, bisect_records};
use lockstep_record::{
    BLOCK_BYTES, Digest, Ended, Outcome, Phase as Recorded, Real, block_digests, tensor_digest,
};

/// Runs whose digests are those of their checkpoints, as a trainer writes them.
fn bench() -> Bench {
    let mut bench = Bench::new();
    for run in [&mut bench.golden, &mut bench.candidate] {
        agree_with_checkpoint(run);
        let ended = Ended { step: STEPS, outcome: Outcome::Finished, unix_s: 2 };
        run.manifest.segments.last_mut().unwrap().ended = Some(ended);
    }
    bench
}

fn agree_with_checkpoint(run: &mut Run) {
    for (name, values) in run.tensors.clone() {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (phase, tensor) = match name.split_once('/').unwrap() {
            ("model", tensor) => (Recorded::Parameters, tensor.to_owned()),
            (_, tensor) => (Recorded::Optimizer, tensor.to_owned()),
        };
        run.digest(STEPS, phase, &tensor).digest = tensor_digest(block_digests(&bytes, BLOCK_BYTES));
    }
}

/// Spoils the candidate and returns what is found.
fn found(spoil: impl FnOnce(&mut Bench)) -> Option<Finding> {
    let mut bench = bench();
    spoil(&mut bench);
    bench.write();
    let [golden, candidate] = bench.paths();
    bisect_records(&golden, &candidate).unwrap()
}

fn assert_found(
    finding: &Option<Finding>,
    step: Option<u64>,
    phase: Phase,
    tensor: Option<&str>,
    says: &str,
) {
    let finding = finding.as_ref().expect("a finding");
    assert_eq!((finding.step, finding.phase, finding.tensor.as_deref()), (step, phase, tensor), "{finding}");
    assert!(finding.sentence.contains(says), "`{says}` is not in `{finding}`");
}

#[test]
fn equal_runs_have_no_difference() {
    assert_eq!(found(|_| {}), None);
    let bench = bench();
    bench.write();
    let [golden, candidate] = bench.paths().map(|path| path.to_str().unwrap().to_owned());
    let (code, out, errors) = harness(&["bisect", &golden, &candidate]);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("No difference"), "{out}");
}

#[test]
fn each_phase_is_named_with_what_agrees_before_it() {
    let ulp = |value: &mut Real| *value = Real(value.0.next_up());
    let finding = found(|bench| bench.candidate.samples[1].micro_batches[1][0] = 77);
    assert_found(
        &finding,
        Some(2),
        Phase::Data,
        Some("sample ids"),
        "sample ids of micro-batch 1 differ, computed by rank 1",
    );
    assert_eq!(finding.unwrap().rank, Some(1));
    let finding = found(|bench| bench.candidate.metrics[2].micro_batch_losses[1] = Real(0.5));
    assert_found(&finding, Some(3), Phase::Forward, Some("the loss"), "the loss of micro-batch 1 differs");
    let finding =
        found(|bench| bench.candidate.digest(3, Recorded::LocalGradient, "wte.weight").digest.0 ^= 1);
    assert_found(
        &finding,
        Some(3),
        Phase::LocalGradient,
        Some("wte.weight"),
        "samples and losses agree: look at the backward",
    );
    let finding =
        found(|bench| bench.candidate.digest(3, Recorded::ReducedGradient, "wte.bias").digest.0 ^= 1);
    assert_found(
        &finding,
        Some(3),
        Phase::ReducedGradient,
        Some("wte.bias"),
        "samples, losses and local gradients agree",
    );
    let finding = found(|bench| ulp(&mut bench.candidate.metrics[3].gradient_norm));
    assert_found(&finding, Some(4), Phase::Norm, Some("gradient_norm"), ", 1 ulp apart)");
    let finding =
        found(|bench| bench.candidate.digest(2, Recorded::Optimizer, "exp_avg/wte.bias").digest.0 ^= 1);
    assert_found(
        &finding,
        Some(2),
        Phase::Optimizer,
        Some("exp_avg/wte.bias"),
        "the update of wte.bias works on",
    );
    let finding = found(|bench| bench.candidate.metrics[4].validation_loss = Some(Real(9.0)));
    assert_found(&finding, Some(5), Phase::Forward, Some("validation_loss"), "2 times the golden one");
}

/// Gives the micro-batches of both runs the same dropout masks.
fn with_masks(bench: &mut Bench) {
    for line in bench.golden.samples.iter_mut().chain(&mut bench.candidate.samples) {
        let step = u128::from(line.step);
        line.masks = [0, 1].map(|index| Digest(16 * step + index)).to_vec();
    }
}

fn other_loss(bench: &mut Bench) {
    bench.candidate.metrics[2].micro_batch_losses[1] = Real(0.5);
}

fn other_mask(bench: &mut Bench) {
    bench.candidate.samples[2].masks[1] = Digest(7);
}

/// A loss whose dropout was another has that as its cause.
#[test]
fn dropout_masks_that_differ_are_named_as_the_cause() {
    let judged = |spoils: &[fn(&mut Bench)]| {
        found(|bench| {
            with_masks(bench);
            spoils.iter().for_each(|spoil| spoil(bench));
        })
    };
    let finding = judged(&[other_loss, other_mask]);
    for says in [
        "the dropout mask of samples 9 and 3 (epoch 0) differs on rank 1 (golden 0",
        "look at what dropout's random numbers follow from",
    ] {
        assert_found(&finding, Some(3), Phase::Forward, Some("the loss"), says);
    }
    let masks = finding.unwrap().masks.unwrap();
    assert_eq!((masks.samples, masks.rank, masks.count), (vec![9, 3], Some(1), 1));
    // The controls: equal masks, none recorded, those of another program, and masks that moved nothing.
    let none: fn(&mut Bench) = |bench| bench.candidate.samples.iter_mut().for_each(|line| line.masks.clear());
    let foreign: fn(&mut Bench) = |bench| bench.candidate.manifest.program.name = "pytorch".into();
    for spoils in
        [&[other_loss as fn(&mut Bench)][..], &[other_loss, none], &[other_loss, other_mask, foreign]]
    {
        let finding = judged(spoils).expect("a finding");
        assert_eq!((finding.phase, &finding.masks), (Phase::Forward, &None), "{finding}");
        assert!(!finding.sentence.contains("dropout mask"), "{finding}");
    }
    assert_eq!(judged(&[other_mask]), None);
}

#[test]
fn one_rank_that_parted_is_named() {
    let finding = found(|bench| {
        let line = bench.candidate.digest(4, Recorded::Parameters, "wte.weight");
        line.ranks = vec![(0, 1)];
        let mut parted = line.clone();
        (parted.ranks, parted.digest) = (vec![(2, 2)], Digest(12));
        let at = bench.candidate.digests.iter().position(|line| line.step == 5).unwrap();
        bench.candidate.digests.insert(at, parted);
    });
    assert_found(&finding, Some(4), Phase::Parameters, Some("wte.weight"), "differ on rank 2 only");
    assert_eq!(finding.unwrap().rank, Some(2));
}

#[test]
fn a_rate_or_samples_of_another_step_are_recognised() {
    let finding = found(|bench| {
        let rate = bench.golden.metrics[3].learning_rate;
        bench.candidate.metrics[2].learning_rate = rate;
    });
    assert_found(
        &finding,
        Some(3),
        Phase::Schedule,
        Some("learning_rate"),
        "it is the golden run's rate of step 4",
    );
    let finding = found(|bench| {
        bench.candidate.samples[3].micro_batches = bench.golden.samples[0].micro_batches.clone();
    });
    assert_found(
        &finding,
        Some(4),
        Phase::Data,
        Some("sample ids"),
        "they are the golden run's samples of step 1",
    );
}

#[test]
fn a_run_that_broke_is_judged_by_what_it_finished() {
    let mut bench = bench();
    bench.candidate.metrics.truncate(2);
    bench.candidate.samples.truncate(3);
    bench.candidate.manifest.segments[0].ended = None;
    let [golden, run] = bench.write();
    let mut text = std::fs::read_to_string(run.metrics()).unwrap();
    text.push_str("{\"step\":3,\"lo");
    std::fs::write(run.metrics(), text).unwrap();
    std::fs::create_dir_all(run.logs()).unwrap();
    let log = "{\"level\":\"ERROR\",\"fields\":{\"message\":\"the gradient of wte.bias is not finite\"}}\n";
    std::fs::write(run.rank_log(0), log).unwrap();
    let finding = bisect_records(golden.path(), run.path()).unwrap();
    assert_found(&finding, Some(3), Phase::Outcome, None, "it ends after step 2 and recorded no end");
    assert_found(
        &finding,
        Some(3),
        Phase::Outcome,
        None,
        "rank 0 said last: the gradient of wte.bias is not finite",
    );
}

#[test]
fn a_run_that_never_began_is_a_finding_and_no_run_is_an_error() {
    let bench = bench();
    let [golden, run] = bench.write();
    std::fs::remove_file(run.manifest()).unwrap();
    let finding = bisect_records(golden.path(), run.path()).unwrap();
    assert_found(&finding, None, Phase::Outcome, None, "ended before its first step");
    let (code, _, errors) = harness(&["bisect", golden.path().to_str().unwrap(), "/nonexistent"]);
    assert_eq!(code, 2, "{errors}");
}

#[test]
fn a_checkpoint_that_is_not_what_the_run_had_is_named_with_its_element() {
    let finding = found(|bench| {
        let value = &mut bench.candidate.tensor("model/wte.weight")[2345];
        *value = value.next_up();
    });
    let says = "the checkpoint's model/wte.weight differs on rank 2 only, element 2345 (golden ";
    assert_found(&finding, Some(5), Phase::Checkpoint, Some("model/wte.weight"), says);
    let finding = finding.unwrap();
    assert_eq!((finding.elements, finding.ulps), (Some((2345, 2345)), Some(1)));
    assert!(finding.sentence.contains("the candidate itself recorded"), "{finding}");
}

#[test]
fn a_checkpoint_whose_bytes_changed_is_named() {
    let bench = bench();
    let [golden, run] = bench.write();
    let path = run.checkpoint(STEPS).join("shard-00001-of-00003.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let finding = bisect_records(golden.path(), run.path()).unwrap().unwrap();
    assert_eq!((finding.step, finding.phase), (Some(STEPS), Phase::Checkpoint), "{finding}");
    assert!(finding.sentence.contains("its files do not hold what its manifest says"), "{finding}");
    std::fs::write(&path, b"short").unwrap();
    let finding = bisect_records(golden.path(), run.path()).unwrap().unwrap();
    assert_eq!(finding.phase, Phase::Checkpoint, "{finding}");
}

#[test]
fn another_configuration_is_named_beside_its_consequence() {
    let finding = found(|bench| bench.candidate.manifest.config["optim"]["lr"] = 0.5.into());
    assert_found(
        &finding,
        None,
        Phase::Outcome,
        None,
        "optim.lr is 0.001 in the golden run and 0.5 in the candidate",
    );
}

#[test]
fn records_without_digests_are_still_bisected() {
    let finding = found(|bench| {
        bench.candidate.digests.clear();
        bench.candidate.metrics[3].gradient_norm = Real(77.0);
    });
    assert_found(&finding, Some(4), Phase::Norm, Some("gradient_norm"), "golden ");
    assert_eq!(finding.unwrap().unknown, [Phase::LocalGradient, Phase::ReducedGradient]);
}

#[test]
fn the_program_tells_writes_json_and_says_why_it_trained_nothing() {
    let mut bench = bench();
    bench.candidate.digest(3, Recorded::ReducedGradient, "wte.bias").digest.0 ^= 1;
    bench.write();
    let [golden, candidate] = bench.paths().map(|path| path.to_str().unwrap().to_owned());
    let json = bench.folder.path().join("finding.json").to_str().unwrap().to_owned();
    let (code, out, errors) = harness(&["bisect", &golden, &candidate, "--no-replay", "--json", &json]);
    assert_eq!(code, 100, "{out}{errors}");
    assert!(out.contains("step 3: the reduced gradient of wte.bias differs"), "{out}");
    let tree: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let finding: Finding = serde_json::from_value(tree["finding"].clone()).unwrap();
    assert_eq!((finding.step, finding.phase), (Some(3), Phase::ReducedGradient));
    // These runs are of no program that could be started.
    let work = bench.folder.path().join("work").to_str().unwrap().to_owned();
    let (code, out, errors) =
        harness(&["bisect", &golden, &candidate, "--trainer", "/bin/true", "--work-dir", &work]);
    assert_eq!(code, 100, "{out}{errors}");
    assert!(out.contains("was trained by test, which this program cannot start"), "{out}");
}
