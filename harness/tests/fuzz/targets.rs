//! Every reader of the harness, as a function of one file's bytes.

use std::path::{Path, PathBuf};

use lockstep_harness::bench::{BenchPlan, Results};
use lockstep_harness::bisect::bisect_records;
use lockstep_harness::compare::{Mode, Tolerance, compare};
use lockstep_harness::lint::{lint, report_text};
use lockstep_harness::predict::{Extraction, Options as Prediction, Scope, Selector};
use lockstep_harness::report::{
    CaseView, Report, comparison_json, comparison_text, html, junit, read_curves, read_report,
};
use lockstep_harness::trace::{Options as Tracing, Steps};
use lockstep_harness::verify::Plan;
use lockstep_harness::zoo::Zoo;
use lockstep_harness::{flight, plan_file, predict, report, trace};
use lockstep_record::{
    Category, CheckpointManifest, Digest, FlightLine, LossScale, LossTerm, Real, RunDir, Span, SpanArgs,
    TraceEvent,
};
use serde_json::json;

use super::goldens::{envelope_file, golden_header, in_envelope, read_golden_header};
use crate::common::{Bench, Run, STEPS, read_manifest, write_lines, write_manifest};

/// A folder with whatever a reader wants beside the file that is mutated.
pub struct Scratch {
    bench: Bench,
    pub golden: RunDir,
    pub candidate: RunDir,
}

impl Scratch {
    pub fn new() -> Self {
        let mut bench = Bench::new();
        for run in [&mut bench.golden, &mut bench.candidate] {
            with_two_losses_and_dropout(run);
        }
        let [golden, candidate] = bench.write();
        for run in [&golden, &candidate] {
            std::fs::create_dir_all(run.flight()).unwrap();
            std::fs::create_dir_all(run.traces()).unwrap();
            for rank in 0..2 {
                write_lines(&run.rank_flight(rank), &flight_lines());
                std::fs::write(run.rank_trace(rank), trace_text(rank as u32)).unwrap();
            }
        }
        let scratch = Self { bench, golden, candidate };
        scratch.add_plans();
        scratch
    }

    /// Plans name one another, and configurations that must be there.
    fn add_plans(&self) {
        let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (from, to) in [("plans", "harness/plans"), ("../configs", "configs")] {
            std::fs::create_dir_all(self.path(to)).unwrap();
            for entry in std::fs::read_dir(harness.join(from)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), self.path(to).join(entry.file_name())).unwrap();
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.folder.path().join(name)
    }

    fn shard(&self) -> PathBuf {
        self.candidate.checkpoint(STEPS).join("shard-00001-of-00003.safetensors")
    }
}

/// What only some models leave in a record.
fn with_two_losses_and_dropout(run: &mut Run) {
    run.manifest.config["model"] = json!({"ar_weight": 0.5, "fm_weight": 2.0});
    for (index, line) in run.metrics.iter_mut().enumerate() {
        let term = |share: f64| LossTerm { loss: Real(share * line.loss.0), targets: 7 };
        line.loss_terms = [("ar".into(), term(1.0)), ("fm".into(), term(0.25))].into();
        line.loss_scale = Some(LossScale { scale: Real(1024.0), finite_steps: index as u64 });
    }
    for line in &mut run.samples {
        line.masks = (0..2).map(|index| Digest(u128::from(16 * line.step + index))).collect();
    }
}

/// One reader.
pub struct Target {
    pub name: &'static str,
    /// Valid files.
    pub seeds: fn(&Scratch) -> Vec<Vec<u8>>,
    /// Reads such a file, and says whether it was accepted; it may refuse it, but not panic.
    pub read: fn(&Scratch, &[u8]) -> bool,
}

pub static TARGETS: [Target; 18] = [
    Target {
        name: "manifest",
        seeds: |s| vec![file(&s.candidate.manifest())],
        read: |s, b| in_record(s, &s.candidate.manifest(), b),
    },
    Target {
        name: "metrics",
        seeds: |s| vec![file(&s.candidate.metrics())],
        read: |s, b| in_record(s, &s.candidate.metrics(), b),
    },
    Target {
        name: "samples",
        seeds: |s| vec![file(&s.candidate.samples())],
        read: |s, b| in_record(s, &s.candidate.samples(), b),
    },
    Target {
        name: "digests",
        seeds: |s| vec![file(&s.candidate.digests())],
        read: |s, b| in_record(s, &s.candidate.digests(), b),
    },
    Target {
        name: "checkpoint-manifest",
        seeds: |s| vec![file(&s.candidate.checkpoint(STEPS).join("manifest.json"))],
        read: |s, b| in_record(s, &s.candidate.checkpoint(STEPS).join("manifest.json"), b),
    },
    Target { name: "safetensors", seeds: |s| vec![file(&s.shard())], read: shard },
    Target { name: "safetensors-header", seeds: |s| vec![header(&s.shard())], read: shard_header },
    Target { name: "flight", seeds: |s| vec![file(&s.candidate.rank_flight(1))], read: recorder },
    Target { name: "trace", seeds: |s| vec![file(&s.candidate.rank_trace(1))], read: spans },
    Target { name: "measurements", seeds: |_| vec![measurements()], read: measured },
    Target { name: "plan", seeds: |_| plans(&["demo.yaml", "long.yaml", "selftest.yaml"]), read: plan },
    Target { name: "bench-plan", seeds: |_| plans(&["bench.yaml"]), read: bench_plan },
    Target { name: "bench-results", seeds: |_| vec![results()], read: bench_results },
    Target { name: "report", seeds: |s| vec![saved(s)], read: report_file },
    Target {
        name: "envelope",
        seeds: |s| vec![envelope_file(s, "envelope.json")],
        read: |s, b| in_envelope(s, "envelope.json", b),
    },
    Target {
        name: "envelope-steps",
        seeds: |s| vec![envelope_file(s, "envelope.jsonl")],
        read: |s, b| in_envelope(s, "envelope.jsonl", b),
    },
    Target { name: "golden-header", seeds: |s| vec![golden_header(s)], read: read_golden_header },
    Target { name: "zoo", seeds: |_| plans(&["zoo.yaml"]), read: zoo },
];

pub fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Puts the bytes in the place of a file of the candidate, reads the record in every way there is, and puts the file
/// back.
fn in_record(scratch: &Scratch, path: &Path, bytes: &[u8]) -> bool {
    let before = file(path);
    std::fs::write(path, bytes).unwrap();
    let accepted = read_record(scratch);
    std::fs::write(path, before).unwrap();
    accepted
}

fn read_record(scratch: &Scratch) -> bool {
    let Scratch { golden, candidate, .. } = scratch;
    let close = Mode::Tolerance(Tolerance { rtol: 1e-5, atol: 1e-6, parameter_norm_atol: Some(1e-4) });
    let mut accepted = true;
    for (left, right, mode) in [(golden, candidate, Mode::Exact), (candidate, golden, close)] {
        match compare(left.path(), right.path(), mode) {
            Ok(comparison) => {
                assert!(!comparison_text(&comparison).is_empty());
                serde_json::from_str::<serde_json::Value>(&comparison_json(&comparison)).unwrap();
            }
            Err(_) => accepted = false,
        }
    }
    let extraction = Extraction {
        run: candidate.path().to_owned(),
        workload: "w".into(),
        link: "l".into(),
        buckets: None,
        overlap: None,
    };
    let _ = predict::extract(&extraction);
    accepted &= flight::read(candidate).map(|flight| flight.text()).is_ok();
    let _ = lint(candidate.path()).map(|report| report_text(&report));
    for (left, right) in [(golden, candidate), (candidate, golden)] {
        let _ =
            bisect_records(left.path(), right.path()).map(|finding| finding.map(|found| found.to_string()));
    }
    draw(CaseView { curves: read_curves(candidate, Some(golden)), ..CaseView::new("g", "c") });
    accepted
}

fn draw(view: CaseView) {
    let report =
        Report { cases: vec![report::CaseReport::new(view, serde_json::Value::Null)], ..Report::default() };
    html(&report).unwrap();
    junit(&report).unwrap();
}

/// The whole file, whose size the manifest agrees to: what is refused for its size alone teaches nothing.
fn shard(scratch: &Scratch, bytes: &[u8]) -> bool {
    let (path, folder) = (scratch.shard(), scratch.candidate.checkpoint(STEPS));
    let (before, listed) = (file(&path), read_manifest(&folder));
    let mut manifest: CheckpointManifest = listed.clone();
    manifest.files[1].bytes = bytes.len() as u64;
    write_manifest(&folder, &manifest);
    std::fs::write(&path, bytes).unwrap();
    let accepted = compare(scratch.golden.path(), scratch.candidate.path(), Mode::Exact).is_ok();
    std::fs::write(&path, before).unwrap();
    write_manifest(&folder, &listed);
    accepted
}

fn header(path: &Path) -> Vec<u8> {
    let bytes = file(path);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8..8 + length].to_vec()
}

/// The header alone, with the length that it has and the data that follow it.
fn shard_header(scratch: &Scratch, bytes: &[u8]) -> bool {
    let whole = file(&scratch.shard());
    let data = 8 + header(&scratch.shard()).len();
    shard(scratch, &[&(bytes.len() as u64).to_le_bytes(), bytes, &whole[data..]].concat())
}

fn flight_lines() -> Vec<FlightLine> {
    let line = |sequence: u64| {
        let state = if sequence == 9 { "running" } else { "done" };
        let line = json!({"sequence": sequence, "channel": "data", "operation": "all-to-all", "bucket": sequence % 3,
            "step": sequence, "elements": 8, "bytes": 32, "dtype": "f32", "started_us": sequence, "state": state});
        serde_json::from_value(line).unwrap()
    };
    (1..10).map(line).collect()
}

fn recorder(scratch: &Scratch, bytes: &[u8]) -> bool {
    in_record(scratch, &scratch.candidate.rank_flight(1), bytes)
}

fn trace_text(rank: u32) -> String {
    let span = |step: u64, index: u64| {
        let category = Category::ALL[index as usize % Category::ALL.len()];
        let args = SpanArgs { step, bucket: Some(index as u32), bytes: Some(64), micro_batch: Some(0) };
        let (start_us, thread) =
            ((step * 100 + index * 10) as f64, (category == Category::Communication) as u32);
        TraceEvent::Span(Span { name: "x".into(), category, start_us, duration_us: 12.0, rank, thread, args })
    };
    let spans = (1..5).flat_map(|step| (0..8).map(move |index| span(step, index)));
    let lines: String = spans.map(|span| serde_json::to_string(&span).unwrap() + ",\n").collect();
    let label =
        format!(r#"{{"ph":"M","name":"process_name","pid":{rank},"tid":0,"args":{{"name":"rank on a"}}}}"#);
    format!("[\n{label},\n{lines}{{}}]\n")
}

fn spans(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.candidate.rank_trace(1);
    let before = file(&path);
    std::fs::write(&path, bytes).unwrap();
    let svg = Some(scratch.path("trace.svg"));
    let options = Tracing { run: scratch.candidate.path().to_owned(), out: None, svg, steps: None };
    let accepted = trace::trace(&options).map(|report| trace::trace_text(&report)).is_ok();
    let _ = trace::traced_figures(&scratch.candidate, Steps { first: 2, last: 3 });
    std::fs::write(&path, before).unwrap();
    accepted
}

fn measurements() -> Vec<u8> {
    let line = |(ranks, buckets): (u32, u32)| {
        let n = f64::from(ranks);
        let communication = 2.0 * (n - 1.0) * (f64::from(buckets) * 5e-5 + 4e7 / n * 8.5e-9);
        let line = json!({"workload": "gpt", "link": "1gbit", "ranks": ranks, "reduction": "ordered", "overlap": false,
            "strategy": if ranks == 1 { "single" } else { "ddp" }, "micro_batches": 8, "gradient_bytes": 40_000_000,
            "buckets": buckets, "step_s": 8.0 / n * 0.06 + 0.011 + communication, "forward_s": 0.02, "backward_s": 0.04,
            "optimizer_s": 0.008});
        format!("{line}\n")
    };
    [(1, 1), (2, 1), (2, 40), (4, 1), (4, 40), (8, 10)].map(line).concat().into_bytes()
}

fn measured(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.path("measurements.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let options = Prediction {
        measurements: vec![path],
        holdout: vec!["ranks=4".parse().unwrap()],
        only: None,
        scope: Scope { to: 64, micro_batches: 64, micro_batches_a_rank: 1 },
        max_error_percent: 10.0,
    };
    let prediction = predict::predict(&options);
    if let Ok(prediction) = &prediction {
        predict::prediction_text(prediction);
        predict::picture(prediction);
        serde_json::to_string(prediction).unwrap();
    }
    // What is typed is read as carefully as what lies in files.
    if let Ok(text) = std::str::from_utf8(bytes) {
        for word in text.split([',', '\n']).take(20) {
            let _ = (word.parse::<Selector>(), word.parse::<Steps>(), word.parse::<Digest>());
            plan_file::matches(word, text);
        }
    }
    prediction.is_ok()
}

fn plans(names: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    names.iter().map(|name| file(&folder.join(name))).collect()
}

fn zoo(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.path("harness/plans/mutated.yaml");
    std::fs::write(&path, bytes).unwrap();
    Zoo::load(&path).map(|mut zoo| zoo.select(&["dropout".to_owned()])).is_ok()
}

fn plan(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.path("harness/plans/mutated.yaml");
    std::fs::write(&path, bytes).unwrap();
    Plan::load(&path).map(|mut plan| plan.select("*")).is_ok()
}

fn bench_plan(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.path("harness/plans/mutated.yaml");
    std::fs::write(&path, bytes).unwrap();
    BenchPlan::load(&path).is_ok()
}

fn results() -> Vec<u8> {
    let measured = json!({"tokens_per_second": 100.0, "startup_seconds": 1.0, "resident_bytes": 1e6, "exposed_share": 0.1,
        "state_bytes": 1e5, "step_seconds": [0.1, 0.1], "seconds": 2.0, "others_share": 0.0});
    let pair = json!({"ours_first": true, "disturbed": false, "ours": measured, "theirs": measured});
    let row = json!({"aim": {"metric": "tokens_per_second", "at_least": 1.05}, "figures": [1.1],
        "spread": {"median": 1.1, "min": 1.1, "max": 1.1, "pairs": 1}, "met": "yes", "ours": 110.0, "theirs": 100.0});
    let side = json!({"label": "ddp", "program": "lockstep 0.1.0", "versions": {"libtorch": "2.13.0"}});
    let finding = json!({"name": "a", "config": "c", "ranks": 2, "link": "loopback", "ours": side, "theirs": side,
        "warmup_steps": 2, "steps": 6, "started_unix_s": 1, "machine": "m", "accounting": "cgroup",
        "disturbance_max": 0.1, "pairs_wanted": 1, "pairs": [pair], "rows": [row]});
    let results = json!({"bench_version": 1, "title": "t", "comparisons": [finding]});
    results.to_string().into_bytes()
}

fn bench_results(scratch: &Scratch, bytes: &[u8]) -> bool {
    std::fs::write(scratch.path("bench.json"), bytes).unwrap();
    Results::load(scratch.bench.folder.path())
        .is_ok_and(|results| results.is_some_and(|r| !r.metrics().is_empty()))
}

fn saved(scratch: &Scratch) -> Vec<u8> {
    let curves = read_curves(&scratch.candidate, Some(&scratch.golden));
    let view = CaseView { curves, problem: Some("p".into()), ..CaseView::new("g", "c") };
    let cases = vec![report::CaseReport::new(view, json!({"outcome": {"verdict": "passed"}}))];
    report::report_json(&Report { title: "t".into(), cases, ..Report::default() }).unwrap().into_bytes()
}

fn report_file(scratch: &Scratch, bytes: &[u8]) -> bool {
    let path = scratch.path("report.json");
    std::fs::write(&path, bytes).unwrap();
    let report = read_report(&path);
    if let Ok(report) = &report {
        html(report).unwrap();
        junit(report).unwrap();
        report::report_json(report).unwrap();
    }
    report.is_ok()
}
