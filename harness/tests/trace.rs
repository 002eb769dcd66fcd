//! `lockstep-harness trace` on traces as ranks would leave them.

mod common;

use std::fmt::Write;
use std::path::Path;

use assert_cmd::Command;
use lockstep_record::{
    COMMUNICATION_THREAD, Category, Label, LabelArgs, LabelKind, RunDir, Span, SpanArgs, TRAINING_THREAD,
    TraceEvent, exit, read_trace,
};
use proptest::prelude::*;

const BUCKETS: u32 = 4;
/// Of one step, in microseconds: two micro-batches of 20 000 + 40 000, buckets of 14 000 each from the second
/// one's backward on, of which the last ends after it.
const STEP_US: f64 = 140_000.0;

struct Trace {
    ranks: u32,
    steps: u64,
}

fn span(rank: u32, category: Category, step: u64, start_us: f64, duration_us: f64) -> Span {
    let thread = if category == Category::Communication { COMMUNICATION_THREAD } else { TRAINING_THREAD };
    let args = SpanArgs { step, ..SpanArgs::default() };
    Span { name: category.name().into(), category, start_us, duration_us, rank, thread, args }
}

/// The spans of a step in the order in which they end, which is that of the file.
fn step(rank: u32, step: u64) -> Vec<Span> {
    let begin = 1000.0 + step as f64 * STEP_US;
    let mut spans = vec![span(rank, Category::Data, step, begin, 1000.0)];
    let mut at = begin + 1000.0;
    for micro_batch in 0..2 {
        for (category, duration) in [(Category::Forward, 20_000.0), (Category::Backward, 40_000.0)] {
            let mut span = span(rank, category, step, at, duration);
            span.args.micro_batch = Some(micro_batch);
            spans.push(span);
            at += duration;
        }
    }
    // The bucket of the last layers is ready first.
    for turn in 0..BUCKETS {
        let start = at - 40_000.0 + 10_000.0 + f64::from(turn) * 14_000.0;
        let mut span = span(rank, Category::Communication, step, start, 14_000.0);
        let bucket = BUCKETS - 1 - turn;
        span.name = format!("reduce bucket {bucket}");
        span.args = SpanArgs { bucket: Some(bucket), bytes: Some(1 << 20), ..span.args };
        spans.push(span);
    }
    let end = at - 30_000.0 + f64::from(BUCKETS) * 14_000.0;
    spans.push(span(rank, Category::Wait, step, at, end - at));
    spans.push(span(rank, Category::Optimizer, step, end, 5_000.0));
    spans.push(span(rank, Category::Record, step, end + 5_000.0, 500.0));
    spans.sort_by(|a, b| (a.start_us + a.duration_us).total_cmp(&(b.start_us + b.duration_us)));
    spans
}

fn event(text: &mut String, event: &TraceEvent) {
    writeln!(text, "{},", serde_json::to_string(event).unwrap()).unwrap();
}

fn text(trace: &Trace, rank: u32) -> String {
    let mut text = "[\n".to_owned();
    let label = |kind, thread, name: &str| {
        TraceEvent::Label(Label { kind, rank, thread, args: LabelArgs { name: name.into() } })
    };
    event(&mut text, &label(LabelKind::ProcessName, 0, &format!("rank {rank} on node{rank}")));
    event(&mut text, &label(LabelKind::ThreadName, TRAINING_THREAD, "training"));
    event(&mut text, &label(LabelKind::ThreadName, COMMUNICATION_THREAD, "communication"));
    (1..=trace.steps)
        .flat_map(|number| step(rank, number))
        .for_each(|span| event(&mut text, &TraceEvent::Span(span)));
    text + "{}]\n"
}

impl Trace {
    fn write(&self, folder: &Path) -> RunDir {
        let run = common::Run::new(self.ranks).write(folder);
        std::fs::create_dir_all(run.traces()).unwrap();
        for rank in 0..self.ranks {
            std::fs::write(run.rank_trace(rank as usize), text(self, rank)).unwrap();
        }
        run
    }
}

fn harness(run: &RunDir, options: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("lockstep-harness")
        .unwrap()
        .arg("trace")
        .arg(run.path())
        .args(options)
        .timeout(std::time::Duration::from_secs(60))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn figures(run: &RunDir, options: &[&str]) -> serde_json::Value {
    let (code, out, errors) = harness(run, &[options, &["--json"]].concat());
    assert_eq!((code, errors.as_str()), (exit::OK, ""), "{out}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn figures_are_those_of_the_generator() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 3, steps: 6 }.write(folder.path());
    let report = figures(&run, &[]);
    let all = &report["overall"];
    assert_eq!((&report["selected"], &all["steps"]), (&"2..".into(), &15.into()));
    let near = |value: &serde_json::Value, expected: f64| {
        assert!((value.as_f64().unwrap() - expected).abs() < 1e-3, "{value} is not {expected}");
    };
    near(&all["communication_us"], 56_000.0);
    near(&all["exposed_us"], 26_000.0);
    near(&all["hidden"], 30.0 / 56.0);
    near(&all["phases_us"]["forward"], 40_000.0);
    near(&all["phases_us"]["backward"], 80_000.0);
    near(&all["step_us"], 1000.0 + 120_000.0 + 26_000.0 + 5_500.0);
    near(&all["other_us"], 0.0);
    near(&report["ranks"][2]["step_median_us"], 152_500.0);
    assert_eq!(report["ranks"][2]["label"], "rank 2 on node2");
    let (code, out, _) = harness(&run, &[]);
    assert_eq!(code, exit::OK);
    assert!(out.contains("53.6 % of the communication was hidden"), "{out}");
    assert!(out.contains("Most exposed: bucket 0, 14.00 ms a step (54 %"), "{out}");
}

#[test]
fn waiting_for_a_late_rank_is_told_apart_from_communication() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 2, steps: 3 }.write(folder.path());
    // All that rank 1 does, 6 ms later.
    let late = (1..=3).flat_map(|number| step(1, number)).fold("[\n".to_owned(), |mut text, span| {
        event(&mut text, &TraceEvent::Span(Span { start_us: span.start_us + 6_000.0, ..span }));
        text
    });
    std::fs::write(run.rank_trace(1), late + "{}]\n").unwrap();
    let report = figures(&run, &[]);
    let of = |rank: usize, name: &str| report["ranks"][rank]["mean"][name].as_f64().unwrap().round();
    // Of each bucket's 14 ms on rank 0 the first 6 are not the link's fault.
    assert_eq!(
        [of(0, "communication_us"), of(0, "exposed_us"), of(0, "late_us")],
        [32_000.0, 16_000.0, 10_000.0]
    );
    assert_eq!([of(1, "communication_us"), of(1, "exposed_us"), of(1, "late_us")], [56_000.0, 26_000.0, 0.0]);
    let (_, out, _) = harness(&run, &[]);
    assert!(out.contains("Waiting for ranks that came late took 5.00 ms a step more"), "{out}");
}

#[test]
fn the_joined_trace_has_every_event_and_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 2, steps: 3 }.write(folder.path());
    assert_eq!(harness(&run, &[]).0, exit::OK);
    let merged = std::fs::read_to_string(run.merged_trace()).unwrap();
    let tree: Vec<serde_json::Value> = serde_json::from_str(&merged).unwrap();
    let of_ranks: usize = (0..2).map(|rank| read_trace(&run.rank_trace(rank)).unwrap().count()).sum();
    assert_eq!(tree.len(), of_ranks + 1, "all events and the closing `{{}}`");
    assert_eq!(read_trace(&run.merged_trace()).unwrap().filter(Result::is_ok).count(), of_ranks);
    assert!(!run.traces().join("trace.draft").exists());
}

#[test]
fn a_killed_run_is_summed_up_as_far_as_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 2, steps: 6 }.write(folder.path());
    let path = run.rank_trace(1);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 200]).unwrap();
    let report = figures(&run, &[]);
    assert_eq!(
        (&report["ranks"][0]["mean"]["steps"], &report["ranks"][1]["mean"]["steps"]),
        (&5.into(), &3.into())
    );
    assert!(report["notes"][0].as_str().unwrap().contains("rank 1 on node1: cut short"));
    serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(run.merged_trace()).unwrap()).unwrap();
}

#[test]
fn steps_can_be_chosen_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 2, steps: 6 }.write(folder.path());
    let svg = folder.path().join("picture.svg");
    let report = figures(&run, &["--steps", "3..4", "--svg", svg.to_str().unwrap()]);
    assert_eq!(report["overall"]["steps"], 4);
    let picture = std::fs::read_to_string(svg).unwrap();
    for expected in ["step 3", "step 4", "rank 1 on node1", "communication"] {
        assert!(picture.contains(expected), "{expected}");
    }
    assert!(!picture.contains("step 5"));
}

/// Spoils a run of two ranks and expects the exit code, a message, and no joined trace.
fn refused(spoil: impl FnOnce(&RunDir), options: &[&str], code: i32, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 2, steps: 3 }.write(folder.path());
    spoil(&run);
    let (found, out, errors) = harness(&run, options);
    assert_eq!(found, code, "{out}{errors}");
    assert!(errors.contains(expected), "`{errors}` does not contain `{expected}`");
    assert!(!run.merged_trace().exists() && !run.traces().join("trace.draft").exists());
}

/// Replaces text in rank 1's trace.
fn replace<'a>(from: &'a str, to: &'a str) -> impl FnOnce(&RunDir) + 'a {
    move |run| {
        let path = run.rank_trace(1);
        let before = std::fs::read_to_string(&path).unwrap();
        let after = before.replacen(from, to, 1);
        assert_ne!(before, after);
        std::fs::write(path, after).unwrap();
    }
}

#[test]
fn nonsense_is_refused_with_its_line() {
    let bad = exit::CASE_FAILED;
    refused(
        |run| std::fs::remove_dir_all(run.traces()).unwrap(),
        &[],
        exit::USAGE,
        "train with `lockstep train --trace`",
    );
    refused(replace("[\n", "{\n"), &[], bad, "rank-00001.json:1: not a trace");
    refused(replace("\"dur\":1000.0", "\"dur\":-5"), &[], bad, "rank-00001.json:5: a start of");
    refused(replace("\"dur\":1000.0", "\"dur\":\"long\""), &[], bad, "rank-00001.json:5: invalid type");
    refused(replace("\"pid\":1", "\"pid\":0"), &[], bad, "rank-00001.json:2: an event of rank 0");
    refused(replace("\"step\":1", "\"step\":9"), &[], bad, "step 1 after step 9");
    refused(replace("\"cat\":\"data\"", "\"cat\":\"dta\""), &[], bad, "unknown variant `dta`");
    let third = |run: &RunDir| std::fs::write(run.rank_trace(2), "[\n{}]\n").unwrap();
    refused(third, &[], bad, "the run's newest execution had 2 ranks");
    refused(|_| {}, &["--steps", "7..9"], exit::USAGE, "none of the steps 7..9 is whole");
    refused(|_| {}, &["--steps", "9..7"], exit::USAGE, "names no steps");
    refused(
        |_| {},
        &["--out", "/no/such/folder/x.json"],
        exit::INTERNAL,
        "cannot write /no/such/folder/x.draft",
    );
}

#[test]
fn a_rank_without_a_trace_and_clocks_that_part_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 3, steps: 3 }.write(folder.path());
    std::fs::remove_file(run.rank_trace(2)).unwrap();
    let late: String = text(&Trace { ranks: 2, steps: 3 }, 1)
        .lines()
        .map(|line| match serde_json::from_str(line.trim_end_matches(',')) {
            Ok(TraceEvent::Span(span)) => {
                let span = Span { start_us: span.start_us + 17_000.0, ..span };
                serde_json::to_string(&TraceEvent::Span(span)).unwrap() + ",\n"
            }
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(run.rank_trace(1), late).unwrap();
    let notes = figures(&run, &[])["notes"].to_string();
    assert!(notes.contains("1 of 3 ranks left no trace"), "{notes}");
    assert!(notes.contains("clocks disagree by at least 3000 µs"), "{notes}");
}

#[test]
fn a_rank_s_trace_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let run = Trace { ranks: 1, steps: 3 }.write(folder.path());
    let before = std::fs::read(run.rank_trace(0)).unwrap();
    let (code, _, errors) = harness(&run, &["--out", run.rank_trace(0).to_str().unwrap()]);
    assert_eq!(code, exit::USAGE, "{errors}");
    assert_eq!(std::fs::read(run.rank_trace(0)).unwrap(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn whatever_lies_there_it_ends_with_a_code(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..9000) {
        let folder = tempfile::tempdir().unwrap();
        let run = Trace { ranks: 1, steps: 3 }.write(folder.path());
        let mut text = text(&Trace { ranks: 1, steps: 3 }, 0).into_bytes();
        text.truncate(cut);
        text.extend(bytes);
        std::fs::write(run.rank_trace(0), text).unwrap();
        let (code, _, errors) = harness(&run, &[]);
        prop_assert!([exit::OK, exit::USAGE, exit::CASE_FAILED].contains(&code), "{} {}", code, errors);
    }
}
