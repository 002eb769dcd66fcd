//! `--capture` and `lockstep-harness bisect` on real runs: captures do not depend on the number of ranks, and a planted
//! bug is found where it was planted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_harness::bisect::{Bisection, Evidence, Finding, Options, Phase, bisect};
use lockstep_record::{CaptureGroup, CaptureManifest, CapturedMicroBatch, Digest, RunDir, exit, read_json};

use crate::launch::{Launch, take_turn};

const LIMIT: Duration = Duration::from_secs(300);

/// A training of six steps.
fn launch(ranks: usize) -> Launch {
    Launch::ranks(ranks).set("schedule.steps=6").set("checkpoint.every=0").set("evaluate.every=0")
}

fn capture(run: &Path, step: u64) -> CaptureManifest {
    read_json(&RunDir::new(run).capture(step).join("manifest.json")).expect("a capture")
}

type Contents = BTreeMap<(CaptureGroup, Option<u32>, String), Digest>;

/// All that must not depend on who computed it; every rank must hold one value.
fn contents(capture: &CaptureManifest) -> (Vec<CapturedMicroBatch>, Contents, String) {
    let anybody = |batch: &CapturedMicroBatch| CapturedMicroBatch { rank: 0, ..batch.clone() };
    let mut tensors = Contents::new();
    for tensor in &capture.tensors {
        let key = (tensor.group, tensor.micro_batch, tensor.tensor.name.clone());
        assert_eq!(tensors.insert(key, tensor.tensor.digest), None, "two values of {}", tensor.tensor.name);
    }
    let numbers = format!("{:?}", (capture.gradient_norm, capture.clip_coefficient, capture.learning_rate));
    (capture.micro_batches.iter().map(anybody).collect(), tensors, numbers)
}

fn bisection(golden: &Path, candidate: &Path, work: PathBuf) -> Bisection {
    // What it launches must not run beside another test's ranks.
    let _turn = take_turn();
    let options = Options {
        golden: golden.into(),
        candidate: candidate.into(),
        replay: true,
        trainer: Some(env!("CARGO_BIN_EXE_lockstep").into()),
        launcher: None,
        work_dir: Some(work),
        timeout: LIMIT,
    };
    bisect(&options).expect("a bisection")
}

#[test]
fn a_capture_is_the_same_for_any_number_of_ranks_and_as_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    let captured = |launch: Launch| launch.argument("--capture").argument("step=3,step=5");
    captured(launch(1)).run(&run("single")).ok();
    captured(launch(3)).run(&run("ddp")).ok();
    captured(launch(2).zero1()).run(&run("zero1")).ok();
    // One step of it once more, from the checkpoint before.
    launch(2).stop_after(2).run(&run("begun")).ok();
    let replay =
        launch(2).argument("--resume").argument(run("begun")).argument("--capture").argument("step=3");
    replay.stop_after(3).run(&run("replay")).ok();
    let expected = contents(&capture(&run("single"), 3));
    assert!(expected.1.len() > 50, "{}", expected.1.len());
    for name in ["ddp", "zero1", "replay"] {
        assert_eq!(contents(&capture(&run(name), 3)), expected, "{name}");
    }
    // The control: another step has other contents.
    let other = contents(&capture(&run("ddp"), 5));
    assert_ne!(other, expected);
    assert_eq!(other, contents(&capture(&run("single"), 5)));
    // Shards were joined for these digests.
    let sharded = capture(&run("zero1"), 3).tensors.iter().filter(|tensor| tensor.sharded).count();
    assert!(sharded > 0);
}

#[test]
fn a_step_that_the_run_does_not_come_to_cannot_be_captured() {
    let folder = tempfile::tempdir().unwrap();
    let ended = launch(1).argument("--capture").argument("step=7").run(&folder.path().join("a"));
    ended.code(exit::USAGE).says("--capture step=7: this run does steps 1 to 6");
    let ended = launch(1).argument("--capture").argument("3").run(&folder.path().join("b"));
    ended.code(exit::USAGE).says("give a step that is to be captured, such as step=3");
}

/// The negative control: whatever shares the work, and whoever goes on, nothing is found.
#[test]
fn equal_runs_do_not_part() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    launch(1).run(&run("golden")).ok();
    launch(3).zero1().stop_after(3).run(&run("candidate")).ok();
    launch(2).resume().run(&run("candidate")).ok();
    let bisection = bisection(&run("golden"), &run("candidate"), run("work"));
    assert_eq!(bisection.finding, None);
    assert!(!run("work").exists(), "nothing is trained again without a reason");
}

/// Each run is trained again with its own settings, and the sentence names the one that differs.
#[test]
fn another_setting_is_found_in_what_it_moves_first() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    launch(1).run(&run("golden")).ok();
    launch(2).set("optim.betas=[0.9,0.96]").run(&run("candidate")).ok();
    let finding = bisection(&run("golden"), &run("candidate"), run("work")).finding.expect("a finding");
    assert_eq!(
        (finding.step, finding.phase, finding.evidence),
        (Some(1), Phase::Optimizer, Evidence::Capture),
        "{finding}"
    );
    assert!(finding.tensor.as_deref().unwrap().starts_with("exp_avg_sq/"), "{finding}");
    assert!(finding.sentence.contains("optim.betas is [0.9,0.95] in the golden run"), "{finding}");
}

#[cfg(feature = "mutations")]
mod planted {
    use super::*;

    /// Plants a bug in a run of so many ranks, and returns what is found with full tensors.
    fn found(mutation: &str, candidate: Launch) -> Finding {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        launch(1).run(&run("golden")).ok();
        candidate.mutate(mutation).run(&run("candidate")).ok();
        let bisection = bisection(&run("golden"), &run("candidate"), run("work"));
        bisection.finding.unwrap_or_else(|| panic!("{mutation} was not found: {:?}", bisection.notes))
    }

    #[test]
    fn the_order_of_additions_is_found_in_the_reduction() {
        let finding = found("rank-order", launch(3));
        assert_eq!(
            (finding.step, finding.phase, finding.evidence),
            (Some(1), Phase::ReducedGradient, Evidence::Capture)
        );
        for says in
            ["by rounding only", "partial sums added in the order of the ranks instead of along the tree"]
        {
            assert!(finding.sentence.contains(says), "`{says}` is not in {finding}");
        }
        assert!(finding.sentence.contains("samples, losses and local gradients agree"), "{finding}");
        assert!(
            finding.elements.is_some() && finding.bucket.is_some() && finding.ulps.is_some(),
            "{finding:?}"
        );
    }

    #[test]
    fn dropout_by_rank_is_found_in_the_forward_pass() {
        let finding = found("dropout-by-rank", launch(2));
        // Rank 0's first micro-batch has the masks that it should have, the other seven have not.
        let place = (finding.step, finding.phase, finding.micro_batch, finding.count);
        assert_eq!(place, (Some(1), Phase::Forward, Some(1), 7), "{finding}");
        let cause = "(epoch 0) differs on rank 0 (golden ";
        for says in [
            "of ranks 0-1",
            "the parameters and the inputs are the same",
            "the dropout mask of samples ",
            cause,
        ] {
            assert!(finding.sentence.contains(says), "`{says}` is not in {finding}");
        }
        let masks = finding.masks.as_ref().expect("masks that differ");
        assert_eq!((masks.rank, masks.count, masks.samples.len()), (Some(0), 7, 2), "{finding}");
    }

    #[test]
    fn a_wrong_sample_is_found_in_the_data() {
        let finding = found("one-sample-id", launch(2));
        let place = (finding.step, finding.phase, finding.micro_batch, finding.rank);
        assert_eq!(place, (Some(1), Phase::Data, Some(7), Some(1)), "{finding}");
    }

    #[test]
    fn a_norm_in_single_precision_is_found_in_the_norm() {
        let finding = found("norm-by-shard", launch(2));
        assert_eq!((finding.step, finding.phase), (Some(1), Phase::Norm), "{finding}");
        assert!(
            finding.sentence.contains("the norm of the candidate's own reduced gradient would be"),
            "{finding}"
        );
    }

    #[test]
    fn a_forgotten_optimizer_is_found_after_the_resume() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        launch(1).run(&run("golden")).ok();
        launch(2).stop_after(3).mutate("forget-optimizer").run(&run("candidate")).ok();
        launch(2).resume().mutate("forget-optimizer").run(&run("candidate")).ok();
        let finding = bisection(&run("golden"), &run("candidate"), run("work")).finding.unwrap();
        assert_eq!((finding.step, finding.phase), (Some(4), Phase::Optimizer), "{finding}");
        for says in ["it differs before the step begins", "all zero", "resumed from step 3"] {
            assert!(finding.sentence.contains(says), "`{says}` is not in {finding}");
        }
    }

    #[test]
    fn one_bit_of_one_ranks_copy_is_found() {
        let finding = found("one-ranks-parameter", launch(3));
        assert_eq!(
            (finding.step, finding.phase, finding.rank),
            (Some(2), Phase::Parameters, Some(2)),
            "{finding}"
        );
        assert_eq!((finding.elements, finding.ulps), (Some((0, 0)), Some(1)), "{finding}");
        assert!(finding.sentence.contains("on rank 2 only, element 0"), "{finding}");
    }

    /// The run ended for it; trained again without that update, the step shows whose gradient it was.
    #[test]
    fn a_gradient_that_is_not_finite_is_traced_to_its_micro_batch() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        launch(1).run(&run("golden")).ok();
        launch(2).mutate("nan-gradient").run(&run("candidate")).code(exit::INTERNAL);
        let finding = bisection(&run("golden"), &run("candidate"), run("work")).finding.unwrap();
        let place = (finding.step, finding.phase, finding.micro_batch, finding.rank);
        assert_eq!(place, (Some(3), Phase::LocalGradient, Some(1), Some(0)), "{finding}");
        for says in ["NaN (0x", "not finite", "said last"] {
            assert!(finding.sentence.contains(says), "`{says}` is not in {finding}");
        }
    }

    /// Without digests the losses of the step after it are the first that show it.
    #[test]
    fn a_bug_that_later_steps_show_is_traced_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        let sparse = |launch: Launch| launch.set("record.digests_every=0");
        sparse(launch(1)).run(&run("golden")).ok();
        sparse(launch(2)).mutate("one-ranks-parameter").run(&run("candidate")).ok();
        let finding = bisection(&run("golden"), &run("candidate"), run("work")).finding.unwrap();
        assert_eq!(
            (finding.step, finding.phase, finding.rank),
            (Some(2), Phase::Parameters, Some(1)),
            "{finding}"
        );
    }
}
