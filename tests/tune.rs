//! `lockstep tune`: a sweep of the real trainer.

use std::process::Command;

use clap::Parser;
use lockstep_harness::cli::Cli;
use lockstep_record::exit;

#[test]
fn a_tiny_sweep_writes_a_configuration_that_trains() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (out, work, trainer) = (path("tuned.yaml"), path("work"), env!("CARGO_BIN_EXE_lockstep"));
    let arguments = [
        "lockstep-harness",
        "tune",
        "--config",
        "tiny.yaml",
        "--ranks",
        "2",
        "--steps",
        "2",
        "--buckets",
        "0.01",
        "--overlap",
        "on",
        "--out",
        &out,
        "--work-dir",
        &work,
        "--trainer",
        trainer,
    ];
    let (mut printed, mut errors) = (Vec::new(), Vec::new());
    let code = Cli::try_parse_from(arguments).unwrap().run(&mut printed, &mut errors);
    assert_eq!(code, exit::OK, "{}", String::from_utf8_lossy(&errors));
    let config = std::fs::read_to_string(&out).unwrap();
    assert!(config.contains("extends: [\"tiny.yaml\"]"), "{config}");
    let checked = Command::new(trainer).args(["config", "check", "--ranks", "2", "--config", &out]).output();
    assert!(checked.as_ref().is_ok_and(|checked| checked.status.success()), "{checked:?}");
}

/// The trainer hands over to the harness beside it, and tells it who it is.
#[test]
fn the_trainers_command_is_the_harnesss() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (trainer, harness) = (folder.path().join("lockstep"), folder.path().join("lockstep-harness"));
    std::fs::copy(env!("CARGO_BIN_EXE_lockstep"), &trainer).unwrap();
    let tune = || {
        let mut command = Command::new(&trainer);
        command
            .args(["tune", "--ranks", "2", "--help"])
            .env_remove("LOCKSTEP_TRAINER")
            .env("PATH", "/nonexistent");
        command.output().unwrap()
    };
    let ended = tune();
    assert_eq!(ended.status.code(), Some(exit::USAGE));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cannot start lockstep-harness"));
    std::fs::write(&harness, "#!/bin/sh\necho \"$* $LOCKSTEP_TRAINER\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&harness, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ended = tune();
    assert_eq!(ended.status.code(), Some(7));
    let expected = format!("tune --ranks 2 --help {}\n", trainer.display());
    assert_eq!(String::from_utf8_lossy(&ended.stdout), expected);
}
