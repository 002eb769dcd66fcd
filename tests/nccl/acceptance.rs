//! `ci/gpu-acceptance` where there is no GPU: it says so; with an nvidia-smi that pretends, it prints what it would do, and
//! goes its whole way over the double.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lockstep_record::exit;
use serde_json::Value;

use super::double;
use crate::launch::{mpirun, take_turn};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn script() -> Command {
    let mut command = Command::new(repository().join("ci/gpu-acceptance"));
    // Where the programs that belong to these tests are: TARGET/debug.
    let target = Path::new(env!("CARGO_BIN_EXE_lockstep")).ancestors().nth(2).unwrap();
    command.env("CARGO_TARGET_DIR", target).env("LOCKSTEP_MPIRUN", mpirun());
    command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1");
    command
}

/// On a machine whose nvidia-smi lists so many GPUs.
fn script_with_gpus(folder: &Path, gpus: usize) -> Command {
    let smi = folder.join("nvidia-smi");
    let listed: String =
        (0..gpus).map(|gpu| format!("echo 'GPU {gpu}: NVIDIA Pretended (UUID: GPU-{gpu})'\n")).collect();
    let rows: String =
        (0..gpus).map(|gpu| format!("echo 'NVIDIA Pretended, GPU-{gpu}, 580.65.06, 81559 MiB'\n")).collect();
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --list-gpus ]; then\n{listed}else\necho 'name, uuid, driver_version, \
         memory.total [MiB]'\n{rows}fi\n"
    );
    std::fs::write(&smi, text).unwrap();
    std::fs::set_permissions(&smi, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = script();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", folder.display()));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn it_says_when_there_are_no_gpus() {
    let listed = Command::new("nvidia-smi").arg("--list-gpus").output();
    if listed.is_ok_and(|output| output.stdout.starts_with(b"GPU ")) {
        eprintln!("skipped: there are GPUs here");
        return;
    }
    let Output { status, stderr, .. } = script().output().unwrap();
    assert_eq!(status.code(), Some(exit::NOTHING_TO_DO), "{}", text(&stderr));
    assert!(text(&stderr).contains("lists no GPU here"), "{}", text(&stderr));
}

/// As many parts as there are GPUs for, each group of the plan in one of them, and nothing is written.
#[test]
fn the_dry_run_prints_what_as_many_gpus_can_show() {
    let plan = std::fs::read_to_string(repository().join("harness/plans/gpu.yaml")).unwrap();
    let groups: Vec<&str> =
        plan.split("name: gpus-").skip(1).map(|rest| rest.split([',', '\n']).next().unwrap()).collect();
    assert!(groups.contains(&"2-native") && groups.contains(&"1-fp16"), "{groups:?}");
    for (gpus, parts) in [(1, &["1"][..]), (3, &["1", "2"][..]), (8, &["1", "2", "4"][..])] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let Output { status, stdout, stderr } =
            script_with_gpus(folder.path(), gpus).arg("--dry-run").arg(&out).output().unwrap();
        let printed = text(&stdout);
        assert_eq!(status.code(), Some(exit::OK), "{printed}\n{}", text(&stderr));
        assert!(
            printed.contains(&format!("-np {gpus} ")) && printed.contains("--set run.device=cuda"),
            "{printed}"
        );
        for part in ["1", "2", "4"] {
            let command =
                format!("--only gpus-{part} --work-dir {}", out.join(format!("gpus-{part}")).display());
            assert_eq!(printed.contains(&command), parts.contains(&part), "{gpus}: {part}: {printed}");
            assert_eq!(
                printed.contains(&format!("--matrix gpus-{part}=0")),
                parts.contains(&part),
                "{printed}"
            );
        }
        if gpus >= 4 {
            let is_selected = |group: &&str| parts.iter().any(|part| group.starts_with(part));
            assert!(groups.iter().all(is_selected), "{groups:?}");
        }
        assert!(printed.contains("bench harness/plans/gpu-bench.yaml") && !out.exists(), "{printed}");
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = script_with_gpus(folder.path(), 1).arg("--dry").output().unwrap();
    assert_eq!(refused.status.code(), Some(exit::USAGE), "{}", text(&refused.stderr));
}

/// A plan like the one for GPUs, small, and over the double; the last group needs more than there are said to be.
fn rehearsal(folder: &Path) -> PathBuf {
    let config = repository().join("configs/tiny.yaml");
    let plan = format!(
        "title: rehearsal
groups:
  - name: gpus-1
    config: {config}
    set: [run.device=cpu]
    golden: {{ stages: [{{ ranks: 1, strategy: single }}] }}
    cases: [{{ name: again, stages: [{{ ranks: 1, strategy: single }}] }}]
  - name: gpus-2-bf16
    config: {config}
    set: [run.device=cpu, precision=bf16]
    golden: {{ stages: [{{ ranks: 1, strategy: single }}] }}
    cases: [{{ name: zero1-2, set: [parallel.backend=nccl], stages: [{{ ranks: 2, strategy: zero1 }}] }}]
  - name: gpus-4
    config: {config}
    golden: {{ stages: [{{ ranks: 1, strategy: single }}] }}
    cases: [{{ name: never, stages: [{{ ranks: 4, strategy: ddp }}] }}]
",
        config = config.display()
    );
    let path = folder.join("plan.yaml");
    std::fs::write(&path, plan).unwrap();
    path
}

/// The whole script, with real launches; and the control, in which the double spoils a bit.
#[test]
fn a_rehearsal_over_the_double_collects_evidence() {
    let harness = Path::new(env!("CARGO_BIN_EXE_lockstep")).with_file_name("lockstep-harness");
    if !harness.is_file() {
        eprintln!("skipped: {} is not built (cargo build --workspace)", harness.display());
        return;
    }
    let _turn = take_turn();
    let folder = tempfile::tempdir().unwrap();
    let rehearse = |name: &str, fault: Option<&str>| {
        let mut command = script_with_gpus(folder.path(), 2);
        command.env("LOCKSTEP_NCCL_LIBRARY", double()).env("NCCL_SOCKET_IFNAME", "lo");
        command.envs(fault.map(|fault| ("NCCL_DOUBLE_FAULT", fault)));
        let out = folder.path().join(name);
        let output = command.arg("--rehearse").arg(rehearsal(folder.path())).arg(&out).output().unwrap();
        let evidence = std::fs::read(out.join("evidence.json")).unwrap_or_default();
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (output.status.code(), serde_json::from_slice::<Value>(&evidence).unwrap_or_default(), said)
    };
    let (code, evidence, said) = rehearse("good", None);
    assert_eq!(code, Some(exit::OK), "{said}");
    assert_eq!(evidence["problems"], serde_json::json!([]), "{evidence:#}");
    assert_eq!((&evidence["is_rehearsal"], &evidence["gpu_count"]), (&true.into(), &2.into()));
    assert_eq!(evidence["gpus"][1]["uuid"], "GPU-1");
    assert!(evidence["nccl_test"]["output"].as_str().unwrap().contains("all-reduce bf16"), "{evidence:#}");
    let cases: Vec<&Value> = evidence["matrix"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|part| part["cases"].as_array().unwrap())
        .collect();
    let names: Vec<&str> = cases.iter().map(|case| case["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["gpus-1/golden", "gpus-1/again", "gpus-2-bf16/golden", "gpus-2-bf16/zero1-2"]);
    let last = cases[3];
    assert_eq!((&last["verdict"], &last["precision"]), (&"passed".into(), &"bf16".into()));
    assert_eq!(last["backends"], serde_json::json!(["nccl-double"]));
    assert_eq!(last["buckets"], serde_json::json!(["device"]));
    assert!(last["tokens_per_second_median"].as_f64().unwrap() > 0.0);
    assert!(last["resident_bytes_max"].as_u64().unwrap() > 1 << 20 && last["tensor_bytes_max"].is_null());
    assert!(said.contains("4 of 4 runs of the matrix good, 0 gaps"), "{said}");

    let (code, evidence, said) = rehearse("bad", Some("wrong@1:30"));
    assert_eq!(code, Some(exit::DIFFERENT), "{said}");
    assert_eq!(evidence["matrix"][1]["exit_code"], exit::DIFFERENT, "{evidence:#}");
    assert_eq!(evidence["matrix"][1]["cases"][1]["verdict"], "different", "{evidence:#}");
}

/// Evidence that leaves something out says so; and what is there is taken from where it stands.
#[test]
fn gaps_in_the_evidence_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("gpus-1/gpus-1-bf16/again/run");
    std::fs::create_dir_all(run.join("telemetry")).unwrap();
    let write = |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
    let cell = serde_json::json!({
        "group": "gpus-1-bf16", "name": "again", "ranks": "1", "strategy": "single", "seconds": 4.5,
        "outcome": { "verdict": "could_not_run", "reason": "exit code 1" }, "run_dir": run,
    });
    write("gpus-1/report.json", &serde_json::json!({ "cells": [cell] }).to_string());
    let run_path = "gpus-1/gpus-1-bf16/again/run";
    write(
        &format!("{run_path}/manifest.json"),
        r#"{"config":{"precision":"bf16"},"segments":[{"backend":"nccl"}]}"#,
    );
    let steps = "{\"step\":3,\"tokens_per_second\":1}\n{\"step\":4,\"tokens_per_second\":90,\"resident_bytes_max\":7}\n{\"st";
    write(&format!("{run_path}/metrics.jsonl"), steps);
    let looks = "{\"tensor_bytes_max\":5,\"utilisation_percent\":null}\n{\"tensor_bytes_max\":9,\"utilisation_percent\":40}\n";
    write(&format!("{run_path}/telemetry/rank-00000.jsonl"), looks);
    let mut command = Command::new("python3");
    command.arg(repository().join("ci/gpu_evidence.py")).arg(folder.path());
    command.args([
        "--commit",
        "abc",
        "--device",
        "cuda",
        "--gpus",
        "1",
        "--nccl-test",
        "70",
        "--bench",
        "101",
    ]);
    command.args(["--matrix", "gpus-1=101", "--matrix", "gpus-2=2"]);
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let evidence: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("evidence.json")).unwrap()).unwrap();
    let case = &evidence["matrix"][0]["cases"][0];
    assert_eq!((&case["verdict"], &case["reason"]), (&"could_not_run".into(), &"exit code 1".into()));
    assert_eq!((&case["tokens_per_second_median"], &case["resident_bytes_max"]), (&90.into(), &7.into()));
    assert_eq!((&case["tensor_bytes_max"], &case["utilisation_percent_max"]), (&9.into(), &40.into()));
    assert_eq!(case["gpu_memory_used_bytes_max"], Value::Null);
    assert_eq!((&evidence["is_rehearsal"], &evidence["bench"]["exit_code"]), (&false.into(), &101.into()));
    let problems = evidence["problems"].to_string();
    for gap in [
        "metrics.jsonl: line 3",
        "gpus-2/report.json",
        "gpus-2: no case",
        "bench/bench.json",
        "gpus.csv",
        "nccl.txt",
    ] {
        assert!(problems.contains(gap), "{gap}: {problems}");
    }
}
