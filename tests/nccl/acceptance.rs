//! `ci/gpu-acceptance` where there is no GPU.

use std::path::Path;
use std::process::{Command, Output};

use lockstep_record::exit;

/// Where there is no GPU it says so, and that nothing was proved.
#[test]
fn the_acceptance_of_gpus_says_when_there_are_none() {
    let listed = std::process::Command::new("nvidia-smi").arg("--list-gpus").output();
    if listed.is_ok_and(|output| output.stdout.starts_with(b"GPU ")) {
        eprintln!("skipped: there are GPUs here");
        return;
    }
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/gpu-acceptance");
    let output = std::process::Command::new(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit::NOTHING_TO_DO), "{text}");
    assert!(text.contains("lists no GPU here"), "{text}");
}

