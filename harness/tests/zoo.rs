//! `lockstep-harness zoo` with a shell script in the trainer's place. The real trainer's bugs are in `tests/zoo.rs` of the
//! root package, and in `make zoo`.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::harness;
use lockstep_record::exit;

const PLAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plans/zoo.yaml");

/// A trainer with this script.
fn trainer(folder: &std::path::Path, script: &str) -> String {
    let path = folder.join("lockstep");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_trainer_without_planted_bugs_is_refused_and_told_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let trainer = trainer(folder.path(), "echo '--run-dir <DIR>'");
    let out = folder.path().join("out").display().to_string();
    let (code, _, errors) = harness(&["zoo", PLAN, "--trainer", &trainer, "--out", &out]);
    assert_eq!(code, exit::CASE_FAILED, "{errors}");
    assert!(errors.contains("cargo build --workspace --features lockstep/mutations"), "{errors}");
}

/// A golden run that fails is no bug that was caught.
#[test]
fn without_a_golden_run_nothing_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let trainer =
        trainer(folder.path(), "echo --mutate; echo out of luck >&2; [ \"$2\" = --help ] || exit 70");
    let out = folder.path().join("out");
    let arguments = [
        "zoo",
        PLAN,
        "--trainer",
        &trainer,
        "--out",
        out.to_str().unwrap(),
        "--only",
        "loss/ignored-targets",
    ];
    let (code, text, errors) = harness(&arguments);
    assert_eq!(code, exit::CASE_FAILED, "{text}{errors}");
    assert!(text.contains("ignored-targets: COULD NOT RUN: its golden run: exit code 70"), "{text}");
    assert!(out.join("zoo.json").is_file());
}

#[test]
fn clean_runs_that_fail_prove_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let trainer = trainer(folder.path(), "exit 3");
    let out = folder.path().join("out").display().to_string();
    let (code, text, _) = harness(&["zoo", PLAN, "--trainer", &trainer, "--out", &out, "--clean", "2"]);
    assert_eq!(code, exit::CASE_FAILED, "{text}");
    assert!(
        text.contains("2 clean runs of 1 trainings (seed 1): 0 false alarms, 2 could not run."),
        "{text}"
    );
}

#[test]
fn a_broken_catalogue_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("zoo.yaml");
    std::fs::write(&plan, "title: t\ntrainings: {}\nlaunches: {}\nbugs:\n  - { nme: x }\n").unwrap();
    let trainer = trainer(folder.path(), "echo --mutate");
    let out = folder.path().join("out").display().to_string();
    let (code, _, errors) = harness(&["zoo", plan.to_str().unwrap(), "--trainer", &trainer, "--out", &out]);
    assert_eq!(code, exit::USAGE);
    assert!(errors.contains("zoo.yaml") && errors.contains("nme") && errors.contains("line 5"), "{errors}");
}
