//! `lockstep-harness lint` on what the trainer really leaves: nothing in a right run, whoever trained it, and in a run with a
//! planted bug the check that is meant for it, without any golden run.

use std::path::Path;

use lockstep_harness::lint::{Report, lint};

use crate::launch::Launch;

fn launch(ranks: usize, strategy: &str) -> Launch {
    let launch = Launch::ranks(ranks).set(&format!("parallel.strategy={strategy}"));
    launch.set("record.local_gradients=true").set("checkpoint.every=4")
}

/// Checks that found something, and what.
fn found(run: &Path) -> Vec<String> {
    report(run).findings.iter().map(ToString::to_string).collect()
}

fn report(run: &Path) -> Report {
    lint(run).expect("a run that can be read")
}

#[test]
fn right_runs_have_no_finding() {
    for (ranks, strategy) in [(1, "single"), (2, "ddp"), (3, "ddp"), (2, "zero1"), (3, "zero1")] {
        let folder = tempfile::tempdir().unwrap();
        launch(ranks, strategy).run(folder.path()).ok();
        let report = report(folder.path());
        assert!(report.findings.is_empty(), "{ranks} {strategy}: {:#?}", report.findings);
        let idle: Vec<_> =
            report.checks.iter().filter(|check| check.facts == 0).map(|check| check.name).collect();
        let mut expected = vec!["sample-order", "loss-terms", "replicas", "norm-scale", "schedule"];
        expected.retain(|name| ranks == 1 || *name != "replicas");
        assert_eq!(idle, expected, "{ranks} {strategy}");
    }
}

#[test]
fn right_resumes_have_no_finding() {
    for (first, then) in [((2, "ddp"), (2, "ddp")), ((1, "single"), (3, "zero1")), ((3, "zero1"), (2, "ddp"))]
    {
        let folder = tempfile::tempdir().unwrap();
        launch(first.0, first.1).stop_after(5).run(folder.path()).ok();
        launch(then.0, then.1).resume().run(folder.path()).ok();
        assert_eq!(found(folder.path()), [""; 0], "{first:?} {then:?}");
    }
}

/// Settings under which less is recorded, or other numbers.
#[test]
fn right_runs_of_other_settings_have_no_finding() {
    let folder = tempfile::tempdir().unwrap();
    Launch::of("configs/vla-tiny.yaml", 3).zero1().run(folder.path()).ok();
    assert_eq!(found(folder.path()), [""; 0], "vla");
    let looked =
        |name: &str| report(folder.path()).checks.iter().any(|check| check.name == name && check.facts > 0);
    assert!(looked("loss-terms"));
    let settings: [&[&str]; 9] = [
        &["optim.kind=sgd", "optim.lr=0.05"],
        &["model.dropout=0", "optim.clip_norm=null"],
        &["record.digests_every=3", "record.local_gradients=false"],
        &["model.freeze=[wte]"],
        &["model.layers=2", "model.layer_drop=0.5", "parallel.unused_parameters=detect"],
        &["parallel.compression=bf16"],
        &["precision=bf16", "reduce_dtype=bf16"],
        // Its first steps are left out.
        &["precision=fp16", "scaler.init_scale=2097152"],
        &["parallel.reduction=native"],
    ];
    for set in settings {
        let folder = tempfile::tempdir().unwrap();
        set.iter().fold(launch(2, "ddp"), |launch, setting| launch.set(setting)).run(folder.path()).ok();
        assert_eq!(found(folder.path()), [""; 0], "{set:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    Launch::of("configs/resnet-tiny.yaml", 2).run(folder.path()).ok();
    assert_eq!(found(folder.path()), [""; 0]);
}

#[cfg(feature = "mutations")]
mod planted {
    use super::*;

    /// Plants a bug; the first finding must be of this check, and say this.
    fn check(mutation: &str, strategy: &str, check: &str, text: &str) {
        let folder = tempfile::tempdir().unwrap();
        launch(2, strategy).mutate(mutation).run(folder.path()).ok();
        assert_found(folder.path(), check, text);
    }

    fn assert_found(run: &Path, check: &str, text: &str) {
        let report = report(run);
        let first = report.of(check).next();
        let said = first.map(ToString::to_string).unwrap_or_default();
        assert!(said.contains(text), "`{text}` is not in `{said}`: {:#?}", report.findings);
    }

    #[test]
    fn each_bug_is_found_by_its_check() {
        check(
            "dropout-by-rank",
            "ddp",
            "dropout-masks",
            "step 1, micro-batch 1, rank 0: its dropout masks are those of micro-batch 0",
        );
        check(
            "one-ranks-parameter",
            "ddp",
            "replicas",
            "step 2, wte.weight, rank 1: parameters: not the bits that rank 0 holds",
        );
        check("one-sample-id", "ddp", "epochs", ", rank ");
        check("norm-by-shard", "zero1", "gradient-norm", "metrics.jsonl:1: step 1: gradient_norm is ");
    }

    #[test]
    fn a_forgotten_optimizer_state_is_found() {
        let folder = tempfile::tempdir().unwrap();
        launch(2, "ddp").mutate("forget-optimizer").stop_after(5).run(folder.path()).ok();
        launch(2, "ddp").mutate("forget-optimizer").resume().run(folder.path()).ok();
        assert_found(folder.path(), "moments", "step 6, exp_avg");
    }
}
