//! The whole verify matrix over the double: `harness/plans/nccl-double.yaml`.

use std::path::Path;

use clap::Parser;
use lockstep_harness::cli::Cli;
use lockstep_record::{Manifest, RunDir, exit, read_json};
use serde_json::Value;

use super::double;
use crate::launch::{mpirun, take_turn};

/// Runs the plan with variables for all ranks; exit code, table and report.
fn verify(work_dir: &Path, variables: &str, more: &[&str]) -> (i32, String, Value) {
    let _turn = take_turn();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // SAFETY: a plain question.
    let root_option = if unsafe { libc::geteuid() } == 0 { "--allow-run-as-root" } else { "" };
    let launcher = format!(
        "env LOCKSTEP_NCCL_LIBRARY={} NCCL_SOCKET_IFNAME=lo {variables} {} --oversubscribe --bind-to none {root_option} \
         -np {{ranks}}",
        double(),
        mpirun().display()
    );
    let plan = root.join("harness/plans/nccl-double.yaml").display().to_string();
    let folder = work_dir.display().to_string();
    let trainer = env!("CARGO_BIN_EXE_lockstep");
    let arguments = ["lockstep-harness", "verify", &plan, "--work-dir", &folder, "--trainer", trainer];
    let cli = Cli::try_parse_from(arguments.iter().chain(&["--launcher", &launcher]).chain(more)).unwrap();
    let (mut printed, mut errors) = (Vec::new(), Vec::new());
    let code = cli.run(&mut printed, &mut errors);
    let text = [printed, errors].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    let report = std::fs::read(work_dir.join("report.json")).unwrap_or_default();
    (code, text, serde_json::from_slice(&report).unwrap_or_default())
}

/// DDP and ZeRO-1 on 2 to 4 ranks, resumed, resized, handed over to MPI; fp32, bf16 and fp16.
#[test]
fn every_cell_has_the_bits_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text, report) = verify(folder.path(), "", &["--keep-checkpoints", "different"]);
    assert_eq!(code, exit::OK, "{text}\n{report}");
    // Each launch of each candidate really took NCCL's way, from buckets on the device, but for the one that says otherwise.
    let mut launches = 0;
    for group in std::fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for case in std::fs::read_dir(group.path()).unwrap().flatten() {
            let name = case.file_name().to_string_lossy().into_owned();
            let manifest = RunDir::new(case.path().join("run")).manifest();
            if name == "golden" || !manifest.is_file() {
                continue;
            }
            let manifest: Manifest = read_json(&manifest).unwrap();
            let backends: Vec<&str> =
                manifest.segments.iter().map(|segment| segment.backend.as_str()).collect();
            let homes: Vec<&str> =
                manifest.segments.iter().filter_map(|segment| segment.buckets.as_deref()).collect();
            launches += backends.len();
            match name.as_str() {
                "zero1-3-to-mpi" => {
                    assert_eq!((backends, homes), (vec!["nccl-double", "mpi"], vec!["device", "host"]));
                }
                _ => {
                    assert!(backends.iter().all(|backend| *backend == "nccl-double"), "{name}: {backends:?}");
                    assert_eq!(homes, vec!["device"; backends.len()], "{name}");
                }
            }
        }
    }
    assert_eq!(launches, 18, "{text}");
}

/// The control: one bit, received wrongly once, fails the cell.
#[test]
fn a_wrong_bit_fails_its_cell() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text, _) = verify(folder.path(), "NCCL_DOUBLE_FAULT=wrong@1:30", &["--only", "fp32/zero1-2"]);
    assert_eq!(code, exit::DIFFERENT, "{text}");
    assert!(text.contains("zero1-2"), "{text}");
}
