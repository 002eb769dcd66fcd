//! `lockstep-harness measure` and `predict` as programs.

mod common;

use std::path::Path;

use assert_cmd::Command;
use lockstep_record::{Seconds, exit};
use serde_json::{Value, json};

/// Milliseconds a micro-batch, a step and a megabyte: the world that the measurements are made of.
struct World {
    link: &'static str,
    message_s: f64,
    byte_s: f64,
}

const WORLD: World = World { link: "1gbit", message_s: 5e-5, byte_s: 8.5e-9 };

impl World {
    /// A step without overlap, written down again from docs/scaling.md.
    fn run(&self, ranks: u32, buckets: u32) -> Value {
        let (n, bytes) = (f64::from(ranks), 43_507_712.0);
        let communication = 2.0 * (n - 1.0) * (f64::from(buckets) * self.message_s + bytes / n * self.byte_s);
        json!({
            "workload": "gpt-10m", "link": self.link, "ranks": ranks, "reduction": "ordered", "overlap": false,
            "strategy": if ranks == 1 { "single" } else { "ddp" },
            "micro_batches": 8, "gradient_bytes": bytes as u64, "buckets": buckets,
            "step_s": 8.0 / n * 0.06 + 0.008 + 0.003 + communication,
            "forward_s": 0.02, "backward_s": 0.04, "optimizer_s": 0.008,
        })
    }

    fn runs(&self) -> Vec<Value> {
        [(1, 1), (2, 1), (2, 40), (4, 1), (4, 40), (8, 10)]
            .map(|(ranks, buckets)| self.run(ranks, buckets))
            .to_vec()
    }
}

fn write(folder: &Path, lines: &[Value]) -> String {
    let path = folder.join("measurements.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn harness(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("lockstep-harness")
        .unwrap()
        .args(arguments)
        .timeout(std::time::Duration::from_secs(60))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn held_out_runs_of_the_same_world_are_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &WORLD.runs());
    let (json, svg) = (folder.path().join("p.json"), folder.path().join("p.svg"));
    let (json, svg) = (json.to_str().unwrap(), svg.to_str().unwrap());
    let (code, out, errors) =
        harness(&["predict", &file, "--holdout", "ranks=8", "--json", json, "--svg", svg, "--to", "1024"]);
    assert_eq!((code, errors.as_str()), (exit::OK, ""), "{out}");
    assert!(out.starts_with("PREDICTION, not a measurement"), "{out}");
    assert!(out.contains("link 1gbit: 50.0 µs a message (50.0 to 50.0), 8.500 ns a byte"), "{out}");
    assert!(out.contains("that is 117.6 MB/s"), "{out}");
    assert!(out.contains("median 0.0 % over 1, limit 10 %: valid"), "{out}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let points = report["scaling"][0]["points"].as_array().unwrap();
    assert_eq!((points.len(), &points[10]["ranks"]), (11, &json!(1024)));
    // 1024 ranks, one bucket, one micro-batch each, by hand.
    let communication = 2.0 * 1023.0 * (5e-5 + 43_507_712.0 / 1024.0 * 8.5e-9);
    let expected = 0.06 + 0.011 + communication;
    let found = points[10]["weak"]["step_s"].as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
    assert!((points[0]["strong"]["efficiency"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(std::fs::read_to_string(svg).unwrap().contains("PREDICTED strong scaling"));
}

#[test]
fn a_model_that_mispredicts_is_not_valid() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = WORLD.runs();
    let slow = runs.last_mut().unwrap();
    slow["step_s"] = json!(slow["step_s"].as_f64().unwrap() * 1.5);
    let file = write(folder.path(), &runs);
    let (code, out, _) = harness(&["predict", &file, "--holdout", "ranks=8"]);
    assert_eq!(code, exit::DIFFERENT, "{out}");
    assert!(out.contains("limit 10 %: NOT VALID"), "{out}");
    assert_eq!(harness(&["predict", &file, "--holdout", "ranks=8", "--max-error", "40"]).0, exit::OK);
    let (_, out, _) = harness(&["predict", &file]);
    assert!(out.contains("Not validated: no measurement was held out"), "{out}");
}

/// Spoils the third line and expects the message.
fn refused(spoil: impl FnOnce(&mut Value), expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = WORLD.runs();
    spoil(&mut runs[2]);
    let (code, out, errors) = harness(&["predict", &write(folder.path(), &runs)]);
    assert_eq!(code, exit::USAGE, "{out}{errors}");
    assert!(errors.contains("measurements.jsonl:3: "), "{errors}");
    assert!(errors.contains(expected), "`{errors}` does not contain `{expected}`");
}

#[test]
fn measurements_that_cannot_be_are_refused_with_their_line() {
    for key in ["step_s", "forward_s", "backward_s", "optimizer_s"] {
        refused(|run| run[key] = json!(0.0), &format!("{key} is 0, but must be seconds above 0"));
        refused(|run| run[key] = json!(-1.0), &format!("{key} is -1"));
        refused(|run| run[key] = json!("NaN"), "invalid type: string \"NaN\"");
        refused(|run| drop(run.as_object_mut().unwrap().remove(key)), &format!("missing field `{key}`"));
    }
    refused(|run| run["colour"] = json!(1), "unknown field `colour`");
    refused(|run| run["ranks"] = json!(0), "ranks is 0");
    refused(|run| run["ranks"] = json!(9), "8 micro-batches cannot be shared by 9 ranks");
    refused(|run| run["buckets"] = json!(0), "buckets and gradient_bytes must be above 0");
    refused(|run| run["strategy"] = json!("single"), "strategy single has one rank, not 2");
    refused(|run| run["strategy"] = json!("zero3"), "unknown variant `zero3`");
    refused(|run| run["link"] = json!(""), "workload and link need a name");
    refused(|run| run["backward_s"] = json!(0.4), "of one micro-batch, not of a step");
    refused(|run| run["gradient_bytes"] = json!(17), "give another model another name");
    refused(|run| *run = WORLD.run(2, 1), "the same measurement as");
    let exposed = |run: &mut Value| {
        run["communication_s"] = json!(0.1);
        run["exposed_s"] = json!(0.2);
    };
    refused(exposed, "exposed_s 0.2 is more than communication_s 0.1");
}

#[test]
fn too_little_to_fit_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let predict = |runs: &[Value], options: &[&str]| {
        let file = write(folder.path(), runs);
        let (code, _, errors) = harness(&[&["predict", &file], options].concat());
        (code, errors)
    };
    let runs = WORLD.runs();
    let expect = |found: (i32, String), expected: &str| {
        assert_eq!(found.0, exit::USAGE, "{}", found.1);
        assert!(found.1.contains(expected), "`{}` does not contain `{expected}`", found.1);
    };
    expect(predict(&[], &[]), "0 measurement(s): at least two");
    expect(predict(&runs[..1], &[]), "1 measurement(s): at least two");
    expect(predict(&runs[..2], &[]), "latency and bandwidth cannot be told apart");
    expect(predict(&runs, &["--holdout", "ranks=16"]), "selects no measurement");
    expect(predict(&runs, &["--holdout", "workload=gpt-10m"]), "leaves 0 measurement(s) to fit");
    expect(predict(&runs, &["--holdout", "rank=2"]), "`rank` is none of workload, link");
    expect(predict(&runs, &["--only", "ranks=1"]), "no curve to predict");
    expect(predict(&runs, &["--micro-batches", "64"]), "64 micro-batches cannot be shared by 1024 ranks");
    let other = World { link: "other", ..WORLD };
    let both = [runs, other.runs()].concat();
    expect(predict(&both, &["--holdout", "link=other"]), "a model knows only what it was fitted to");
    let (code, _, errors) = harness(&["predict", "/no/such/file"]);
    expect((code, errors), "cannot read /no/such/file");
}

#[test]
fn a_run_becomes_a_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = common::Run::new(2);
    run.manifest.config["batch"] = json!({"micro_batches": 4});
    run.manifest.config["parallel"] = json!({"bucket_mb": 0.005, "overlap": true});
    for (line, extra) in run.metrics.iter_mut().zip([9.0, 5.0, 0.0, 0.2, 0.1]) {
        line.seconds = Seconds {
            forward: 0.2,
            backward: 0.4,
            communication: 0.05,
            optimizer: 0.01,
            total: 0.7 + extra,
            ..Seconds::default()
        };
    }
    let dir = run.write(folder.path());
    let path = dir.path().to_str().unwrap();
    let (code, out, errors) = harness(&["measure", path, "--workload", "tiny", "--link", "lo"]);
    assert_eq!((code, errors.as_str()), (exit::OK, ""));
    let found: Value = serde_json::from_str(&out).unwrap();
    let expected = json!({
        "workload": "tiny", "link": "lo", "ranks": 2, "strategy": "ddp", "reduction": "ordered", "overlap": true,
        "micro_batches": 4, "gradient_bytes": 14200, "buckets": 3, "step_s": 0.7 + 0.1, "forward_s": 0.1,
        "backward_s": 0.2, "optimizer_s": 0.01, "exposed_s": 0.05,
    });
    assert_eq!(found, expected);
    let (_, out, _) =
        harness(&["measure", path, "--workload", "t", "--link", "l", "--buckets", "7", "--overlap", "false"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["buckets"], &found["overlap"]), (&json!(7), &json!(false)));
    assert_eq!(found["communication_s"], json!(0.05), "without overlap, all communication is exposed");
}

#[test]
fn runs_that_give_no_measurement_are_refused() {
    let measure = |change: &dyn Fn(&mut common::Run)| {
        let folder = tempfile::tempdir().unwrap();
        let mut run = common::Run::new(2);
        run.manifest.config["batch"] = json!({"micro_batches": 4});
        change(&mut run);
        let dir = run.write(folder.path());
        let (code, _, errors) =
            harness(&["measure", dir.path().to_str().unwrap(), "--workload", "t", "--link", "lo"]);
        assert_eq!(code, exit::USAGE, "{errors}");
        errors
    };
    assert!(measure(&|run| run.metrics.truncate(2)).contains("metrics.jsonl: no step after 3"));
    assert!(
        measure(&|run| run.manifest.config = json!({})).contains("config.batch.micro_batches is missing")
    );
    let foreign = |run: &mut common::Run| run.manifest.segments[0].strategy = "pytorch-ddp".into();
    assert!(measure(&foreign).contains("`pytorch-ddp` has no cost model"));
    let idle =
        |run: &mut common::Run| run.metrics.iter_mut().for_each(|line| line.seconds = Seconds::default());
    assert!(measure(&idle).contains("step_s is 0"));
    let (code, _, errors) = harness(&["measure", "/no/such/run", "--workload", "t", "--link", "lo"]);
    assert!(code == exit::USAGE && errors.contains("not a run directory"), "{errors}");
}
