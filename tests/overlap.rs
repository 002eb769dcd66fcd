//! Communication while backward goes on: it starts no earlier than it may, it really overlaps, and no switch of it moves
//! a bit.

use std::path::Path;

use lockstep_record::{
    COMMUNICATION_THREAD, Category, Manifest, RunDir, Span, TraceEvent, read_json, read_trace,
};

use crate::equality::golden;
use crate::launch::{Launch, assert_equal, exactly};

/// Small buckets, so that there are many.
const SMALL: [&str; 2] = ["parallel.bucket_mb=0.05", "parallel.edge_bucket_mb=0.01"];

fn with(launch: Launch, settings: &[&str]) -> Launch {
    settings.iter().fold(launch.set("record.local_gradients=true"), |launch, setting| launch.set(setting))
}

#[test]
fn no_switch_moves_a_bit() {
    let switches: [&[&str]; 9] = [
        &SMALL,
        &["parallel.overlap=false"],
        &["parallel.overlap=false", SMALL[0], SMALL[1]],
        &["parallel.mpi_threads=serialized", SMALL[0], SMALL[1]],
        &["parallel.mpi_threads=funneled"],
        &["parallel.edge_bucket_mb=25"],
        &["parallel.shared_memory=false", SMALL[0], SMALL[1]],
        &["parallel.shared_memory=false"],
        &["parallel.shared_memory=false", "parallel.overlap=false"],
    ];
    let folder = tempfile::tempdir().unwrap();
    for (index, settings) in switches.into_iter().enumerate() {
        let run = folder.path().join(index.to_string());
        let launch = with(Launch::ranks(2 + index % 2), settings);
        if index % 2 == 0 { launch.zero1() } else { launch }.run(&run).ok();
        assert_equal(&golden(), &run);
    }
}

/// Without clipping, buckets are updated before all of them are reduced.
#[test]
fn early_updates_do_not_move_bits() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, launch: Launch, settings: &[&str]| {
        with(launch, settings).set("optim.clip_norm=null").run(&folder.path().join(name)).ok();
        folder.path().join(name)
    };
    let golden = run("golden", Launch::ranks(1), &[]);
    assert_equal(&golden, &run("zero1", Launch::ranks(3).zero1(), &SMALL));
    assert_equal(&golden, &run("ddp", Launch::ranks(2), &SMALL));
    assert_equal(&golden, &run("late", Launch::ranks(2).zero1(), &["parallel.overlap=false"]));
}

fn spans(run: &Path, rank: usize) -> Vec<Span> {
    let mut events = read_trace(&RunDir::new(run).rank_trace(rank)).unwrap();
    let spans = events.by_ref().filter_map(|event| match event.unwrap().1 {
        TraceEvent::Span(span) => Some(span),
        TraceEvent::Label(_) => None,
    });
    let spans = spans.collect();
    assert!(events.is_complete());
    spans
}

fn end(span: &Span) -> f64 {
    span.start_us + span.duration_us
}

/// What one rank did in one step: its backward passes, and the reductions of its buckets.
fn passes_and_reductions(spans: &[Span], step: u64) -> (Vec<&Span>, Vec<&Span>) {
    let of_step = || spans.iter().filter(move |span| span.args.step == step);
    let backward = of_step().filter(|span| span.category == Category::Backward).collect();
    let reductions = of_step().filter(|span| span.name.starts_with("reduce")).collect();
    (backward, reductions)
}

/// Two ranks with two micro-batches each, traced; the steps in which the first reduction began before the rank's
/// last backward pass ended.
fn overlapped_steps(settings: &[&str], strategy: fn(Launch) -> Launch) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let settings = [settings, &SMALL, &["batch.micro_batches=4", "model.context=128"]].concat();
    strategy(with(Launch::ranks(2), &settings)).argument("--trace").run(folder.path()).ok();
    let ranks = [spans(folder.path(), 0), spans(folder.path(), 1)];
    let steps = ranks[0].iter().map(|span| span.args.step).max().unwrap();
    assert!(steps > 2);
    let mut overlapped = 0;
    for step in 1..=steps {
        let mut firsts = Vec::new();
        for spans in &ranks {
            let (backward, reductions) = passes_and_reductions(spans, step);
            assert_eq!(backward.len(), 2, "step {step}");
            // Nothing is sent before the last local micro-batch, and buckets go in their order.
            assert!(reductions.iter().all(|span| span.start_us >= backward[1].start_us), "step {step}");
            assert!(
                reductions.iter().map(|span| span.args.bucket).eq((0..).map(Some).take(reductions.len()))
            );
            assert!(
                reductions.len() > 3 && reductions.iter().all(|span| span.thread == COMMUNICATION_THREAD)
            );
            overlapped += usize::from(reductions[0].start_us < end(backward[1]));
            firsts.push(reductions[0].clone());
        }
        // A reduction needs both ranks, so on one clock both are in it at some time.
        let latest_start = f64::max(firsts[0].start_us, firsts[1].start_us);
        assert!(
            latest_start <= f64::min(end(&firsts[0]), end(&firsts[1])) + 1000.0,
            "step {step}: {firsts:?}"
        );
    }
    assert!(overlapped <= 2 * steps as usize);
    overlapped
}

#[test]
fn reductions_begin_while_backward_goes_on() {
    assert!(overlapped_steps(&[], |launch| launch) > 4);
    assert!(overlapped_steps(&["optim.clip_norm=null"], Launch::zero1) > 4);
}

/// The negative control: without overlap the same trace shows none.
#[test]
fn without_overlap_reductions_follow_backward() {
    assert_eq!(overlapped_steps(&["parallel.overlap=false"], |launch| launch), 0);
    assert_eq!(overlapped_steps(&["parallel.mpi_threads=funneled"], Launch::zero1), 0);
}

#[test]
fn a_fallback_is_told() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2).set("parallel.mpi_threads=funneled").run(folder.path()).ok();
    let log = std::fs::read_to_string(RunDir::new(folder.path()).rank_log(0)).unwrap();
    assert!(log.contains("parallel.mpi_threads"), "{log}");
}

/// Ranks that exchange nothing do not train the same model, and their record says so.
#[test]
fn isolated_ranks_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2).argument("--comm").argument("none").run(folder.path()).ok();
    let manifest: Manifest = read_json(&RunDir::new(folder.path()).manifest()).unwrap();
    assert_eq!(manifest.segments[0].reduction, "none");
    assert!(!exactly(&golden(), folder.path()).passed());
}
