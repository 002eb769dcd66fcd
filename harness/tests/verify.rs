//! `lockstep-harness verify` with a shell script in the trainer's place, which lays down a record that was
//! written before. So the runner itself is judged: launches, limits, verdicts, reports. The real trainer is
//! judged by the shipped plans.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Run, harness, segment, signal};
use lockstep_record::Real;

/// A folder with a plan, prepared records, a trainer and a launcher.
struct Stand {
    folder: tempfile::TempDir,
}

/// Copies the record called `rR-STRATEGY` (or, when it resumes, `resumed`) to the run directory.
const TRAINER: &str = r#"#!/bin/sh
here=$(dirname "$0")
ranks=${RANKS:-1}
[ "$OMP_NUM_THREADS$MKL_NUM_THREADS" = 11 ] || exit 3
while [ $# -gt 0 ]; do
  case "$1" in
    --run-dir) run=$2; shift ;;
    --set) case "$2" in parallel.strategy=*) strategy=${2#*=} ;; behave=*) behave=${2#*=} ;; esac; shift ;;
    --resume) strategy=resumed; shift ;;
  esac
  shift
done
case "$behave" in
  hang) sleep 100 ;;
  fail) echo "first line" >&2; echo "rank 3: out of luck" >&2; exit 70 ;;
esac
mkdir -p "$run"
cp -r "$here/records/r$ranks-$strategy/." "$run"
"#;

const LAUNCHER: &str = "#!/bin/sh\nexport RANKS=$1\nshift\nexec \"$@\"\n";

impl Stand {
    fn new() -> Self {
        let stand = Self { folder: tempfile::tempdir().unwrap() };
        for (name, text) in [("lockstep", TRAINER), ("launcher", LAUNCHER)] {
            std::fs::write(stand.path(name), text).unwrap();
            std::fs::set_permissions(stand.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(stand.path("c.yaml"), "{}").unwrap();
        stand.record("r1-single", &Run::new(1));
        stand.record("r2-ddp", &Run::new(2));
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn record(&self, name: &str, run: &Run) {
        run.write(&self.path("records").join(name));
    }

    fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// Runs a plan with one group of these cases; exit code and stdout.
    fn verify(&self, cases: &str) -> (i32, String) {
        self.verify_with("{ stages: [{ ranks: 1, strategy: single }] }", cases, &[])
    }

    fn verify_with(&self, golden: &str, cases: &str, options: &[&str]) -> (i32, String) {
        let plan = format!(
            "title: a test\ntimeout_s: 20\ngroups:\n- {{ name: g, config: c.yaml, golden: {golden}, cases: [{cases}] }}\n"
        );
        std::fs::write(self.path("plan.yaml"), plan).unwrap();
        let [plan, trainer, work] = [self.path("plan.yaml"), self.path("lockstep"), self.work()];
        let launcher = format!("{} {{ranks}}", self.path("launcher").display());
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let arguments = [
            "verify".to_owned(),
            text(&plan),
            "--trainer".into(),
            text(&trainer),
            "--work-dir".into(),
            text(&work),
            "--launcher".into(),
            launcher,
        ];
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(options.iter().copied()).collect();
        let (code, out, errors) = harness(&arguments);
        (code, format!("{out}{errors}"))
    }

    fn report(&self) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.work().join("report.json")).unwrap()).unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.work().join(name)).unwrap()
    }
}

const DDP_2: &str = "{ name: ddp-2, stages: [{ ranks: 2, strategy: ddp }] }";

#[test]
fn a_plan_whose_cases_all_agree_passes() {
    let stand = Stand::new();
    let mut resumed = Run::new(2);
    resumed.manifest.segments = vec![segment(0, 2, "ddp"), segment(3, 1, "single")];
    stand.record("r1-resumed", &resumed);
    let case =
        "{ name: on, stages: [{ ranks: 2, strategy: ddp, stop_after: 3 }, { ranks: 1, strategy: single }] }";
    let (code, out) = stand.verify(&format!("{DDP_2}, {case}"));
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains(
            "Proved: 2 runs on 1 and 2 ranks with ddp and single, 1 of them stopped and resumed, have the same \
             bits as the golden run in samples, losses, gradients, norms, optimizer state, parameters and \
             checkpoints of all 5 steps."
        ),
        "{out}"
    );
    let report = stand.report();
    let verdicts: Vec<_> =
        report["cells"].as_array().unwrap().iter().map(|c| &c["outcome"]["verdict"]).collect();
    assert_eq!(verdicts, ["golden", "passed", "passed"]);
    assert_eq!(report["cells"][2]["ranks"], "2→1");
    assert!(stand.read("junit.xml").contains(r#"tests="3" failures="0" errors="0" skipped="0""#));
    let page = stand.read("report.html");
    assert!(page.contains("<svg") && page.contains("2 passed"), "{page}");
    for outside in ["src=", "@import", "url(", "<link", "href=\"http", "fetch(", "import("] {
        assert!(!page.contains(outside), "the page must work offline: {outside}");
    }
    // Only the golden run's checkpoints stay.
    assert!(stand.work().join("g/golden/run/checkpoints").exists());
    assert!(!stand.work().join("g/ddp-2/run/checkpoints").exists());
}

#[test]
fn a_difference_is_100_and_is_shown_everywhere() {
    let stand = Stand::new();
    let mut other = Run::new(3);
    other.metrics[2].loss = Real(other.metrics[2].loss.0.next_up());
    stand.record("r3-ddp", &other);
    let (code, out) =
        stand.verify(&format!("{{ name: ddp-3, stages: [{{ ranks: 3, strategy: ddp }}] }}, {DDP_2}"));
    assert_eq!(code, 100, "{out}");
    let first = "step 3, forward, loss: golden 4.7 (0x";
    let row = out.lines().find(|line| line.starts_with("g/ddp-3")).unwrap();
    assert!(row.contains("DIFFERENT") && row.contains(first), "{row}");
    assert!(out.contains("Proved: 1 run on 2 ranks with ddp has the same bits"), "{out}");
    assert!(out.contains("1 run: DIFFERENT from what was expected."), "{out}");
    let page = stand.read("report.html");
    assert!(page.contains("<details id=\"g-ddp-3\" open>") && page.contains(first), "{page}");
    assert!(stand.read("junit.xml").contains("<failure message=\"step 3, forward, loss"));
    assert!(stand.work().join("g/ddp-3/run/checkpoints").exists());
}

#[test]
fn a_trainer_that_fails_is_101_with_its_own_words() {
    let stand = Stand::new();
    let case = "{ name: bad, set: [behave=fail], stages: [{ ranks: 2, strategy: ddp }] }";
    let (code, out) = stand.verify(&format!("{case}, {DDP_2}"));
    assert_eq!(code, 101, "{out}");
    let row = out.lines().find(|line| line.starts_with("g/bad")).unwrap();
    assert!(row.contains("COULD NOT RUN") && row.contains("exit code 70"), "{row}");
    assert!(row.ends_with("first line rank 3: out of luck"), "{row}");
    assert_eq!(stand.read("g/bad/stage-1.stderr"), "first line\nrank 3: out of luck\n");
    assert_eq!(stand.report()["cells"][2]["outcome"]["verdict"], "passed");
}

#[test]
fn a_trainer_that_hangs_is_ended_at_its_limit() {
    let stand = Stand::new();
    let case = "{ name: slow, timeout_s: 0.5, set: [behave=hang], stages: [{ ranks: 2, strategy: ddp }] }";
    let (code, out) = stand.verify(case);
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("killed after 0.5 s, its time limit"), "{out}");
}

#[test]
fn without_its_golden_run_nothing_is_known_of_a_group() {
    let stand = Stand::new();
    let golden = "{ set: [behave=fail], stages: [{ ranks: 1, strategy: single }] }";
    let (code, out) = stand.verify_with(golden, DDP_2, &[]);
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("there is no good run `golden` to compare with"), "{out}");
    assert!(out.contains("Nothing was proved. 2 runs: could not run, so nothing is known."), "{out}");
}

#[test]
fn a_foreign_trainer_that_is_not_installed_is_skipped_not_passed() {
    let stand = Stand::new();
    let case = r#"{ name: other, command: [x], requires: [/bin/sh, -c, "echo no such module >&2; exit 1"] }"#;
    let (code, out) = stand.verify(&format!("{case}, {DDP_2}"));
    assert_eq!(code, 0, "{out}");
    let row = out.lines().find(|line| line.starts_with("g/other")).unwrap();
    assert!(row.contains("skipped") && row.contains("no such module") && !row.contains("passed"), "{row}");
    assert!(out.contains("1 run: skipped, so nothing is known."), "{out}");
    assert!(stand.read("junit.xml").contains("skipped=\"1\""));
}

#[test]
fn what_cases_require_is_asked_once_for_each_command() {
    let stand = Stand::new();
    let asked = stand.path("asked");
    let case = |name: &str, word: &str| {
        let requires = format!("[/bin/sh, -c, \"echo {word} >>{}; [ {word} = there ]\"]", asked.display());
        format!("{{ name: {name}, command: [/bin/false], requires: {requires} }}")
    };
    let cases = [case("a", "there"), case("b", "there"), case("c", "missing"), case("d", "missing")];
    let (_, out) = stand.verify(&cases.join(", "));
    assert_eq!(std::fs::read_to_string(&asked).unwrap(), "there\nmissing\n", "{out}");
    // Each case still gets the answer.
    let row = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(["g/a", "g/b"].iter().all(|name| row(name).contains("COULD NOT RUN")), "{out}");
    assert!(["g/c", "g/d"].iter().all(|name| row(name).contains("skipped")), "{out}");
}

#[test]
fn a_plan_of_which_everything_is_skipped_is_no_success() {
    let stand = Stand::new();
    let (code, out) = stand.verify("{ name: other, command: [x], requires: [/bin/false] }");
    assert_eq!(code, 101, "{out}");
}

#[test]
fn a_foreign_trainer_gets_its_paths_and_is_judged_alike() {
    let stand = Stand::new();
    let script = "test -d {golden} && mkdir -p {run_dir} && cp -r {plan_dir}/records/r2-ddp/. {run_dir}";
    let case = format!("{{ name: other, ranks: 2, command: [/bin/sh, -c, \"{script}\"] }}");
    let (code, out) = stand.verify(&case);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("1 run of another trainer agrees bit for bit"), "{out}");
}

/// N processes that each believe to be alone are equal to the golden run, and prove nothing.
#[test]
fn a_launcher_that_starts_n_worlds_of_one_is_found_out() {
    let stand = Stand::new();
    stand.record("r4-ddp", &Run::new(1));
    let (code, out) = stand.verify("{ name: ddp-4, stages: [{ ranks: 4, strategy: ddp }] }");
    assert_eq!(code, 101, "{out}");
    assert!(
        out.contains("asked for 4 rank(s), ddp, from step 0; its record says 1 rank(s), single"),
        "{out}"
    );
}

#[test]
fn a_resume_that_started_over_is_found_out() {
    let stand = Stand::new();
    let mut again = Run::new(2);
    again.manifest.segments = vec![segment(0, 2, "ddp"), segment(0, 2, "ddp")];
    stand.record("r2-resumed", &again);
    let stage = "{ ranks: 2, strategy: ddp";
    let (code, out) =
        stand.verify(&format!("{{ name: on, stages: [{stage}, stop_after: 3 }}, {stage} }}] }}"));
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("launch 2: asked for 2 rank(s), ddp, from step 3; its record says"), "{out}");
}

#[test]
fn cases_can_be_selected_and_results_are_never_mixed() {
    let stand = Stand::new();
    let cases =
        format!("{DDP_2}, {{ name: x, set: [behave=fail], stages: [{{ ranks: 2, strategy: ddp }}] }}");
    let golden = "{ stages: [{ ranks: 1, strategy: single }] }";
    let (code, out) = stand.verify_with(golden, &cases, &["--only", "g/ddp*"]);
    assert_eq!(code, 0, "{out}");
    let (code, out) = stand.verify_with(golden, &cases, &[]);
    assert!(code == 2 && out.contains("is not empty: runs are never mixed"), "{out}");
    let (code, out) = stand.verify_with(golden, &cases, &["--only", "nothing"]);
    assert!(code == 2 && out.contains("no case of the plan has such a name"), "{out}");
}

/// Ctrl-C must not leave ranks behind, and must keep what is known.
#[test]
fn an_interrupt_ends_the_ranks_and_keeps_the_report() {
    let stand = Stand::new();
    let plan = "title: t\ngroups: [{ name: g, config: c.yaml, golden: { stages: [{ ranks: 1, strategy: single }] }, \
                cases: [{ name: slow, set: [behave=hang], stages: [{ ranks: 1, strategy: single }] }] }]";
    std::fs::write(stand.path("plan.yaml"), plan).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_lockstep-harness"))
        .arg("verify")
        .arg(stand.path("plan.yaml"))
        .arg("--trainer")
        .arg(stand.path("lockstep"))
        .arg("--work-dir")
        .arg(stand.work())
        .spawn()
        .unwrap();
    let log = stand.work().join("g/slow/stage-1.stdout");
    let wait = |mut done: Box<dyn FnMut() -> bool + '_>| {
        (0..1000).any(|_| {
            done() || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                false
            }
        })
    };
    assert!(wait(Box::new(|| log.exists())), "the slow case has not started");
    signal(&child, "INT");
    assert!(wait(Box::new(|| child.try_wait().unwrap().is_some())), "it did not end");
    assert_eq!(child.wait().unwrap().code(), Some(101));
    assert_eq!(stand.report()["cells"].as_array().unwrap().len(), 1);
}

/// A plan may name a stored golden run: nothing is launched for it, and another family is said rather than compared.
#[test]
fn a_stored_golden_run_is_compared_with() {
    let stand = Stand::new();
    let mut golden = Run::new(1);
    let ended = lockstep_record::Ended { step: 5, outcome: lockstep_record::Outcome::Finished, unix_s: 1 };
    golden.manifest.segments[0].ended = Some(ended);
    golden.write(&stand.path("golden-run"));
    let (run, into) = (stand.path("golden-run"), stand.path("goldens/demo"));
    let bless = ["bless", run.to_str().unwrap(), "--unchecked", "--into", into.to_str().unwrap()];
    assert_eq!(harness(&bless).0, 0);
    let (code, out) = stand.verify_with("goldens/demo", DDP_2, &[]);
    assert_eq!(code, 0, "{out}");
    let row = out.lines().find(|line| line.starts_with("g/golden")).unwrap();
    assert!(row.contains("stored") && row.contains("golden"), "{row}");
    std::fs::remove_dir_all(stand.work()).unwrap();
    let mut other = Run::new(2);
    other.manifest.segments[0].cpu_capability = "AVX512".into();
    stand.record("r2-ddp", &other);
    let (code, out) = stand.verify_with("goldens/demo", DDP_2, &[]);
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("is of another family: cpu_capability AVX2, the candidate's AVX512"), "{out}");
    std::fs::remove_dir_all(stand.work()).unwrap();
    std::fs::write(into.join("metrics.jsonl"), "").unwrap();
    let (code, out) = stand.verify_with("goldens/demo", DDP_2, &[]);
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("was stored with"), "{out}");
    std::fs::remove_dir_all(stand.work()).unwrap();
    let (code, out) = stand.verify_with("nowhere", DDP_2, &[]);
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("is no stored golden run: store one with"), "{out}");
    let (code, out) = stand.verify_with("7", DDP_2, &[]);
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("a case, or the path of a stored golden run"), "{out}");
}
