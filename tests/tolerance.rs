//! Tolerance that is earned: `native` runs pass within the golden run's envelope, and what is wrong does not.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use lockstep_harness::cli::Cli;
use lockstep_harness::compare::{Comparison, Event, Mode, Tolerance, compare};
use lockstep_harness::tolerance::{self, Plan};
use lockstep_record::{Perturbed, RunDir, Unit, exit};
use tempfile::TempDir;

use crate::launch::{Launch, assert_equal, exactly, take_turn};

/// The tolerance of old, and what the comparison of the plans asks for.
const FIXED: Mode = Mode::Tolerance(Tolerance { rtol: 1e-5, atol: 1e-6, parameter_norm_atol: None });

fn launch(ranks: usize) -> Launch {
    Launch::ranks(ranks).set("record.sketches=true").set("record.local_gradients=true")
}

fn native(ranks: usize) -> Launch {
    launch(ranks).set("parallel.reduction=native")
}

fn plan<'a>(trainer: &'a Path, runs: u32, unit: Unit, stop: &'a AtomicBool) -> Plan<'a> {
    let timeout = Duration::from_secs(120);
    Plan { trainer, runs, perturbed: Perturbed::Gradients, unit, timeout, keep: true, stop }
}

/// Repeats a golden run and writes its envelope.
fn earn(golden: &Path, runs: u32) {
    let _turn = take_turn();
    let (trainer, stop) = (Path::new(env!("CARGO_BIN_EXE_lockstep")), AtomicBool::new(false));
    tolerance::earn(golden, &plan(trainer, runs, Unit::Fp32, &stop), &mut Vec::new(), &mut |_| {})
        .expect("an envelope");
}

/// A golden run of one process with its envelope; nobody writes to it.
fn golden() -> PathBuf {
    static GOLDEN: OnceLock<TempDir> = OnceLock::new();
    let folder = GOLDEN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("run");
        launch(1).run(&run).ok();
        earn(&run, 10);
        folder
    });
    folder.path().join("run")
}

fn automatically(candidate: &Path) -> Comparison {
    compare(&golden(), candidate, Mode::Auto).expect("comparable runs")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => assert!(std::fs::copy(entry.path(), target).is_ok()),
        }
    }
}

/// The command line in this process: exit code, what it printed, what it complained of.
fn harness(arguments: &[&str]) -> (i32, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let words = ["lockstep-harness"].iter().chain(arguments);
    let code = Cli::parse_from(words).run(&mut out, &mut errors);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (code, text(out), text(errors))
}

#[test]
fn native_runs_pass() {
    let folder = tempfile::tempdir().unwrap();
    let runs: [(&str, Launch); 5] = [
        ("ddp-2", native(2)),
        ("ddp-3", native(3)),
        ("zero1-3", native(3).zero1()),
        ("zero1-2-small-buckets", native(2).zero1().set("parallel.bucket_mb=0.01")),
        ("ddp-5", native(5)),
    ];
    for (name, launch) in runs {
        let run = folder.path().join(name);
        launch.run(&run).ok();
        let comparison = automatically(&run);
        assert!(comparison.passed(), "{name}: {:?}", comparison.first_difference());
        for check in ["distances of tensors", "norms of tensors", "checkpoint parameters", "losses"] {
            let check = comparison.check(check).unwrap();
            assert!(check.compared > 0 && check.note.is_none(), "{name}: {check:?}");
        }
        let used = comparison.check("distances of tensors").unwrap().worst.of_tolerance;
        // Otherwise it is an ordered run that was judged.
        assert!(used > 0.0 && !exactly(&golden(), &run).passed(), "{name}: {used}");
    }
}

/// The number of ranks does not change what is moved, either.
#[test]
fn a_perturbed_run_has_the_same_bits_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let perturbed = |ranks| launch(ranks).argument("--perturb").argument("all:3");
    perturbed(1).run(&at("one")).ok();
    perturbed(3).zero1().run(&at("three")).ok();
    assert_equal(&at("one"), &at("three"));
    assert!(!exactly(&golden(), &at("one")).passed());
}

/// Ordered runs lie within any envelope, at no distance at all.
#[test]
fn an_ordered_run_uses_nothing_of_the_tolerance() {
    let folder = tempfile::tempdir().unwrap();
    launch(3).run(folder.path()).ok();
    let comparison = automatically(folder.path());
    assert!(comparison.passed());
    assert!(comparison.checks.iter().all(|check| check.worst.of_tolerance == 0.0), "{comparison:?}");
}

/// The negative control of the bounds themselves: a hundredth of them is too little for runs that are right.
#[test]
fn a_shrunk_envelope_refuses_a_native_run() {
    let folder = tempfile::tempdir().unwrap();
    let (golden_copy, run) = (folder.path().join("golden"), folder.path().join("run"));
    copy(&golden(), &golden_copy);
    let path = RunDir::new(&golden_copy).tolerance().join("envelope.json");
    let mut header: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let factor = header["sum_factor"].as_f64().unwrap();
    header["sum_factor"] = (factor / 100.0).into();
    std::fs::write(&path, header.to_string()).unwrap();
    native(3).run(&run).ok();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let compare = |golden: &Path| harness(&["compare", &text(golden), &text(&run), "--tolerance", "auto"]);
    assert_eq!(compare(&golden()).0, exit::OK);
    let (code, out, _) = compare(&golden_copy);
    assert_eq!(code, exit::DIFFERENT);
    assert!(out.contains("step 1, reduced gradient, ") && out.contains("times the limit"), "{out}");
}

/// An envelope says nothing about another run, even where a golden run's folder has been filled anew.
#[test]
fn an_envelope_of_another_golden_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    launch(1).set("optim.lr=2e-3").run(&at("other")).ok();
    copy(&RunDir::new(golden()).tolerance(), &RunDir::new(at("other")).tolerance());
    let error = compare(&at("other"), &golden(), Mode::Auto).unwrap_err().to_string();
    assert!(error.contains("optim.lr: the envelope's has 0.001, this one 0.002"), "{error}");

    launch(1).argument("--perturb").argument("gradients:99").run(&at("again")).ok();
    copy(&RunDir::new(golden()).tolerance(), &RunDir::new(at("again")).tolerance());
    let error = compare(&at("again"), &golden(), Mode::Auto).unwrap_err().to_string();
    assert!(error.contains("it was trained again"), "{error}");

    launch(1).run(&at("none")).ok();
    let error = compare(&at("none"), &golden(), Mode::Auto).unwrap_err().to_string();
    assert!(error.contains("has no envelope yet: make it with `lockstep-harness tolerance"), "{error}");
}

/// What an envelope is made of is checked first.
#[test]
fn runs_that_are_no_perturbed_repetitions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let golden = golden();
    let mut runs: Vec<PathBuf> =
        (1..=6).map(|seed| RunDir::new(&golden).tolerance().join(format!("runs/{seed:04}/run"))).collect();
    let refused = |runs: &[PathBuf]| tolerance::make(&golden, runs).unwrap_err().to_string();
    assert!(refused(&runs[..5]).contains("5 perturbed runs are too few"));
    assert!(tolerance::make(&golden, &runs).is_ok());

    runs[5] = golden.clone();
    assert!(refused(&runs).contains("it was not perturbed"), "{}", refused(&runs));
    runs[5] = runs[0].clone();
    assert!(refused(&runs).contains("another one has the seed 1"), "{}", refused(&runs));
    launch(1).set("optim.lr=2e-3").argument("--perturb").argument("gradients:77").run(&at("other")).ok();
    runs[5] = at("other");
    assert!(
        refused(&runs).contains("no repetition of the golden run: configuration, optim.lr"),
        "{}",
        refused(&runs)
    );

    // Moved by 65536 times as much as it says: the theorem finds it out.
    launch(1).argument("--perturb").argument("gradients:78:bf16").run(&at("more")).ok();
    let manifest = RunDir::new(at("more")).manifest();
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"unit\": \"bf16\"", "\"unit\": \"fp32\"")).unwrap();
    runs[5] = at("more");
    assert!(refused(&runs).contains("or moved by more"), "{}", refused(&runs));
}

/// Gradients that travel in 16 bits, with an envelope of that unit.
#[test]
fn a_compressed_run_passes_within_an_envelope_of_its_unit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let launch = |ranks| Launch::ranks(ranks).set("record.sketches=true");
    launch(1).run(&at("golden")).ok();
    {
        let _turn = take_turn();
        let (trainer, stop) = (Path::new(env!("CARGO_BIN_EXE_lockstep")), AtomicBool::new(false));
        let plan = plan(trainer, 6, Unit::Bf16, &stop);
        tolerance::earn(&at("golden"), &plan, &mut Vec::new(), &mut |_| {}).unwrap();
    }
    launch(2).set("parallel.compression=bf16").run(&at("bf16")).ok();
    let comparison = compare(&at("golden"), &at("bf16"), Mode::Auto).unwrap();
    assert!(comparison.passed(), "{:?}", comparison.first_difference());
    // In fp32 units it would be far away.
    assert!(!automatically(&at("bf16")).passed());
}

/// As a user has it: a plan in which one word asks for all of this.
#[test]
fn a_plan_makes_the_envelope_that_its_cases_need() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.yaml");
    let plan = folder.path().join("plan.yaml");
    let text = format!(
        "groups: [{{ name: g, config: {}, perturbed_runs: 6, set: [schedule.steps=4],\n\
         golden: {{ stages: [{{ ranks: 1, strategy: single }}] }},\n\
         cases: [{{ name: native, set: [parallel.reduction=native], tolerance: auto,\n\
                  stages: [{{ ranks: 3, strategy: ddp }}] }}] }}]",
        config.display()
    );
    std::fs::write(&plan, text).unwrap();
    let work = folder.path().join("work");
    let words = |path: &Path| path.to_str().unwrap().to_owned();
    let _turn = take_turn();
    let (code, out, errors) = harness(&[
        "verify",
        &words(&plan),
        "--trainer",
        env!("CARGO_BIN_EXE_lockstep"),
        "--work-dir",
        &words(&work),
    ]);
    assert_eq!(code, exit::OK, "{out}{errors}");
    assert!(out.contains("tolerance auto") && out.contains("1 run within the stated tolerance"), "{out}");
    assert!(work.join("g/golden/run/tolerance/envelope.json").exists());
    assert!(!work.join("g/golden/run/tolerance/runs").exists(), "the perturbed runs are only a means");
}

#[cfg(feature = "mutations")]
mod planted {
    use super::*;

    fn mutated(name: &str, launch: Launch) -> (TempDir, Comparison) {
        let folder = tempfile::tempdir().unwrap();
        launch.mutate(name).run(folder.path()).ok();
        let comparison = automatically(folder.path());
        (folder, comparison)
    }

    /// A millionth is less than the fixed tolerance, and more than the envelope.
    #[test]
    fn what_a_fixed_tolerance_misses_is_caught() {
        let (run, comparison) = mutated("scaled-tensor", native(2));
        let fixed = compare(&golden(), run.path(), FIXED).unwrap();
        let in_gradients = |comparison: &Comparison| {
            comparison
                .first_difference()
                .is_some_and(|first| first.place.event == Some(Event::ReducedGradient))
        };
        assert!(!in_gradients(&fixed), "{:?}", fixed.first_difference());
        let first = comparison.first_difference().expect("a difference");
        assert_eq!((first.place.step, first.place.event), (Some(1), Some(Event::ReducedGradient)), "{first}");
        assert_eq!(first.place.what, "wte.weight", "{first}");
    }

    #[test]
    fn each_is_named_where_it_is() {
        for (name, launch, step, event) in [
            ("stale-bucket", native(3), 4, Event::ReducedGradient),
            ("stale-bucket", native(3).zero1(), 4, Event::ReducedGradient),
            ("loss-off-by-one", native(2), 1, Event::Forward),
            ("dropout-by-rank", native(2), 1, Event::Forward),
            ("one-sample-id", native(2).zero1(), 1, Event::Data),
            ("one-ranks-parameter", native(3), 2, Event::Parameters),
        ] {
            let (_run, comparison) = mutated(name, launch);
            let first = comparison.first_difference().unwrap_or_else(|| panic!("{name} was not seen"));
            assert_eq!((first.place.step, first.place.event), (Some(step), Some(event)), "{name}: {first}");
        }
    }
}
