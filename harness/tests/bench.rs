//! `lockstep-harness bench` with shell scripts in the trainer's, the launcher's, a peer's and the cluster's
//! place. So the runner itself is judged: order, limits, like with like, disturbance, results. Figures of
//! real trainers come from the shipped plan.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Run, harness, signal, write_lines};
use lockstep_record::{Category, RankInfo, RunDir, Span, SpanArgs, TraceEvent};

/// Copies the record called `rR-STRATEGY`, keeps a diary of who ran, and does as `--set behave=` says.
const TRAINER: &str = r#"#!/bin/sh
here=$(dirname "$0")
ranks=${RANKS:-1}
strategy=peer
while [ $# -gt 0 ]; do
  case "$1" in
    --run-dir) run=$2; shift ;;
    --set)
      case "$2" in
        parallel.strategy=*) strategy=${2#*=} ;;
        behave=*) behave=${2#*=} ;;
        checkpoint.at_start=true) golden=golden- ;;
      esac
      shift ;;
  esac
  shift
done
echo "$golden$ranks-$strategy" >> "$here/diary"
case "$behave" in
  hang) sleep 100 ;;
  fail) echo "rank 1: out of luck" >&2; exit 70 ;;
  late) sleep 0.6 ;;
esac
mkdir -p "$run"
cp -r "$here/records/r$ranks-$strategy/." "$run"
"#;
const LAUNCHER: &str = "#!/bin/sh\nexport RANKS=$1\nshift\nexec \"$@\"\n";
const CLUSTER: &str = "#!/bin/sh\necho \"cluster $*\" >> \"$(dirname \"$0\")/diary\"\n[ \"$1\" != broken ]\n";

struct Stand {
    folder: tempfile::TempDir,
}

/// A run of five steps that took `step_seconds` each, on ranks that hold `state` bytes.
fn run(ranks: u32, strategy: &str, step_seconds: f64, state: u64) -> Run {
    let mut run = Run::new(ranks);
    let segment = &mut run.manifest.segments[0];
    segment.strategy = strategy.into();
    segment.ranks = (0..ranks)
        .map(|rank| RankInfo {
            rank,
            host: "h".into(),
            optimizer_bytes: state,
            master_bytes: 0,
            processor: None,
        })
        .collect();
    for line in &mut run.metrics {
        // The first step is slow: it belongs to the warm-up.
        line.seconds.total = if line.step == 1 { 100.0 } else { step_seconds };
        line.resident_bytes_max = 1 << 20;
    }
    run
}

/// A trace of a rank that waits for a quarter of its communication in the second step.
fn trace(rank: u32) -> String {
    let span = |category, thread, start_us, duration_us| {
        let args = SpanArgs { step: 2, bucket: Some(0), ..SpanArgs::default() };
        let span =
            Span { name: "reduce bucket 0".into(), category, start_us, duration_us, rank, thread, args };
        serde_json::to_string(&TraceEvent::Span(span)).unwrap()
    };
    let (reduced, waited) =
        (span(Category::Communication, 1, 1000.0, 4000.0), span(Category::Wait, 0, 4000.0, 1000.0));
    format!("[\n{reduced},\n{waited},\n{{}}]\n")
}

impl Stand {
    fn new() -> Self {
        let stand = Self { folder: tempfile::tempdir().unwrap() };
        for (name, text) in [("lockstep", TRAINER), ("launcher", LAUNCHER), ("cluster", CLUSTER)] {
            std::fs::write(stand.path(name), text).unwrap();
            std::fs::set_permissions(stand.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(stand.path("c.yaml"), "{}").unwrap();
        stand.record("r1-single", &run(1, "single", 1.0, 8));
        stand.record("r2-ddp", &run(2, "ddp", 0.5, 8));
        stand.record("r2-zero1", &run(2, "zero1", 0.625, 4));
        stand.record("r2-peer", &run(2, "deepspeed", 1.0, 4));
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn record(&self, name: &str, run: &Run) {
        let _ = std::fs::remove_dir_all(self.path("records").join(name));
        let written: RunDir = run.write(&self.path("records").join(name));
        std::fs::create_dir_all(written.traces()).unwrap();
        for rank in 0..run.manifest.segments[0].world_size {
            std::fs::write(written.rank_trace(rank as usize), trace(rank)).unwrap();
        }
    }

    /// Runs a plan of these comparisons into `out`; exit code, and what it printed.
    fn bench_into(&self, out: &str, comparisons: &str, options: &[&str]) -> (i32, String) {
        let here = self.folder.path().display();
        let plan = format!(
            "title: a test\ntimeout_s: 20\npairs: 2\nwarmup_steps: 1\nsteps: 4\n\
             links: {{ slow: {{ setup: [[{here}/cluster, up]], launcher: [{here}/launcher, '{{ranks}}'], \
                                teardown: [[{here}/cluster, down]] }}, \
                       bad: {{ setup: [[{here}/cluster, broken]], launcher: ['{{ranks}}'], \
                               teardown: [[{here}/cluster, down]] }} }}\n\
             peers: {{ other: {{ label: Other, requires: [test, -f, {here}/c.yaml], command: [sh, -c, \
                       'test -d {{golden}}/checkpoints && RANKS={{ranks}} {here}/lockstep --run-dir {{run_dir}}'] }}, \
                       missing: {{ label: Missing, requires: ['false'], command: [x] }} }}\n\
             comparisons: [{comparisons}]\n"
        );
        std::fs::write(self.path("plan.yaml"), plan).unwrap();
        let _ = std::fs::remove_dir_all(self.path("work"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let [plan, out, trainer, work] =
            ["plan.yaml", out, "lockstep", "work"].map(|name| text(&self.path(name)));
        let launcher = format!("{} {{ranks}}", self.path("launcher").display());
        let arguments = [
            "bench",
            &plan,
            "--out",
            &out,
            "--trainer",
            &trainer,
            "--work-dir",
            &work,
            "--launcher",
            &launcher,
        ];
        // This machine may be busy; tests about that say so themselves.
        let quiet: &[&str] =
            if options.contains(&"--disturbance-max") { &[] } else { &["--disturbance-max", "1"] };
        let (code, printed, errors) = harness(&[&arguments[..], quiet, options].concat());
        (code, format!("{printed}{errors}"))
    }

    fn bench(&self, comparisons: &str, options: &[&str]) -> (i32, String) {
        self.bench_into("out", comparisons, options)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.path("out/bench.json")).unwrap()).unwrap()
    }

    fn diary(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("diary")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

const VARIANTS: &str = "{ name: zero1-ddp, config: c.yaml, ranks: 2, ours: { strategy: zero1 }, \
                          theirs: { strategy: ddp }, \
                          aims: [{ metric: tokens_per_second, at_least: 0.9 }, \
                                 { metric: state_bytes, at_most: 0.55 }, \
                                 { metric: exposed_share }] }";
const PEER: &str = "{ name: ddp-other, config: c.yaml, ranks: 2, ours: { strategy: ddp }, \
                      theirs: { peer: other }, \
                      aims: [{ metric: tokens_per_second, at_least: 1.35 }] }";

fn row<'a>(out: &'a str, name: &str, metric: &str) -> &'a str {
    out.lines()
        .find(|line| line.starts_with(name) && line.contains(metric) && line.contains('['))
        .unwrap_or_else(|| panic!("{name} {metric}: {out}"))
}

#[test]
fn two_variants_alternate_and_their_ratios_are_judged() {
    let stand = Stand::new();
    let (code, out) = stand.bench(VARIANTS, &[]);
    assert_eq!(code, 0, "{out}");
    assert_eq!(stand.diary(), ["2-zero1", "2-ddp", "2-ddp", "2-zero1"]);
    let speed = row(&out, "zero1-ddp", "tokens_per_second");
    assert!(speed.contains("0.800  [0.800–0.800]") && speed.ends_with("≥ 0.9    NO"), "{speed}");
    assert!(row(&out, "zero1-ddp", "state_bytes").ends_with("≤ 0.55   yes"), "{out}");
    assert!(row(&out, "zero1-ddp", "exposed_share").contains(" 0.250 "), "{out}");
    let finding = &stand.json()["comparisons"][0];
    assert_eq!(finding["pairs"][0]["ours"]["tokens_per_second"], 2048.0 / 0.625);
    assert_eq!(finding["pairs"][1]["ours_first"], false);
    assert_eq!(finding["rows"][0]["met"], "no");
    for (file, text) in
        [("bench.md", "| zero1-ddp | c | 2 | loopback |"), ("bench.svg", "zero1-ddp (2 ranks)")]
    {
        let written = std::fs::read_to_string(stand.path("out").join(file)).unwrap();
        assert!(written.contains(text), "{file}: {written}");
    }
    assert!(!stand.path("work/zero1-ddp/pair-001/ours/run/checkpoints").exists());
    assert!(stand.path("work/zero1-ddp/pair-001/ours/run/metrics.jsonl").exists());
    let (code, _) = stand.bench(VARIANTS, &["--strict"]);
    assert_eq!(code, 100);
}

#[test]
fn a_peer_repeats_one_golden_run_for_all_comparisons_that_share_it() {
    let stand = Stand::new();
    let (code, out) =
        stand.bench(&format!("{PEER}, {}", PEER.replace("ddp-other", "again")), &["--pairs", "1"]);
    assert_eq!(code, 0, "{out}");
    assert_eq!(stand.diary(), ["golden-1-single", "2-ddp", "2-peer", "2-ddp", "2-peer"]);
    assert!(
        row(&out, "ddp-other", "tokens").contains("2.000") && row(&out, "again", "tokens").contains("yes"),
        "{out}"
    );
}

/// Negative controls of "the same work": each difference is found, and no ratio is shown.
#[test]
fn unlike_work_is_not_compared() {
    let stand = Stand::new();
    type Spoil = fn(&mut Run);
    let spoils: [(Spoil, &str); 6] = [
        (|run| run.manifest.config["optim"]["lr"] = 0.5.into(), "not the same work"),
        (|run| run.manifest.model.tensors[0].shape[0] += 1, "model tensor 0"),
        (|run| run.manifest.segments[0].threads_per_rank = 2, "threads a rank: ours Some(1), theirs Some(2)"),
        (|run| run.metrics.truncate(4), "steps: ours 5, theirs 4"),
        (|run| run.metrics[3].tokens /= 2, "tokens of each step"),
        (|run| run.metrics[0].loss.0 += 0.01, "did not begin alike"),
    ];
    for (spoil, expected) in spoils {
        let mut theirs = run(2, "deepspeed", 1.0, 4);
        spoil(&mut theirs);
        stand.record("r2-peer", &theirs);
        let (code, out) = stand.bench(PEER, &["--pairs", "1"]);
        assert_eq!(code, 101, "{out}");
        assert!(out.contains("COULD NOT RUN: ") && out.contains(expected), "{expected}: {out}");
        assert!(stand.json()["comparisons"][0]["pairs"].as_array().unwrap().is_empty());
    }
}

#[test]
fn what_fails_hangs_or_is_missing_is_101_and_the_rest_still_runs() {
    let stand = Stand::new();
    let variant = |name: &str, more: &str| {
        format!("{{ name: {name}, config: c.yaml, ranks: 2, ours: {{ strategy: ddp }}, {more} }}")
    };
    let plan = [
        variant("fails", "set: [behave=fail], theirs: { strategy: ddp }"),
        variant("hangs", "set: [behave=hang], theirs: { strategy: ddp }, timeout_s: 0.5"),
        variant("lacks", "theirs: { peer: missing }"),
        variant("short", "theirs: { strategy: ddp }, warmup_steps: 9"),
        VARIANTS.to_owned(),
    ];
    let (code, out) = stand.bench(&plan.join(", "), &[]);
    assert_eq!(code, 101, "{out}");
    for expected in [
        "fails COULD NOT RUN: ours: exit code 70 (",
        "rank 1: out of luck",
        "hangs COULD NOT RUN: ours: killed after 0.5 s, its time limit",
        "lacks COULD NOT RUN: Missing: what it requires is not here",
        "short COULD NOT RUN: ours: its record has no step after the 9 of the warm-up",
    ] {
        let single_spaced = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(single_spaced.contains(expected), "{expected}: {out}");
    }
    assert!(row(&out, "zero1-ddp", "tokens").contains("0.800"), "{out}");
}

#[test]
fn ranks_that_each_believe_to_be_alone_are_found_out() {
    let stand = Stand::new();
    stand.record("r2-ddp", &run(1, "single", 0.1, 8));
    let (code, out) = stand.bench(PEER, &[]);
    assert!(code == 101 && out.contains("asked for 2 rank(s), ddp, from step 0; its record says 1"), "{out}");
}

#[test]
fn startup_is_the_time_until_the_first_step_is_on_disk() {
    let stand = Stand::new();
    let late = VARIANTS.replace("{ strategy: zero1 }", "{ strategy: zero1, set: [behave=late] }");
    let (code, out) = stand.bench(&late, &["--pairs", "1"]);
    assert_eq!(code, 0, "{out}");
    let pair = &stand.json()["comparisons"][0]["pairs"][0];
    let seconds = |side: &str| pair[side]["startup_seconds"].as_f64().unwrap();
    assert!((0.6..0.6 + seconds("theirs") + 5.0).contains(&seconds("ours")), "{pair}");
    assert!(
        seconds("theirs") < seconds("ours")
            && seconds("ours") <= pair["ours"]["seconds"].as_f64().unwrap() + 0.1
    );
}

/// Someone else keeps a core busy: pairs are repeated, and what is left is not to be quoted.
#[test]
fn disturbed_pairs_are_repeated_and_marked() {
    let stand = Stand::new();
    let mut other = std::process::Command::new("timeout")
        .args(["60", "sh", "-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let slow = VARIANTS.replace("{ name:", "{ set: [behave=late], name:");
    let (code, out) = stand.bench(&slow, &["--disturbance-max", "0.002", "--repeats", "1", "--strict"]);
    signal(&other, "TERM");
    other.wait().unwrap();
    assert_eq!(code, 100, "{out}");
    let finding = &stand.json()["comparisons"][0];
    let pairs = finding["pairs"].as_array().unwrap();
    assert!(pairs.len() == 3 && pairs.iter().all(|pair| pair["disturbed"] == true), "{finding}");
    // Bytes do not depend on who else uses the cores.
    assert!(row(&out, "zero1-ddp", "state_bytes").ends_with("yes"), "{out}");
    assert!(row(&out, "zero1-ddp", "tokens").ends_with("disturbed"), "{out}");
    assert!(std::fs::read_to_string(stand.path("out/bench.md")).unwrap().contains("**disturbed**"));
    assert!(std::fs::read_to_string(stand.path("out/bench.svg")).unwrap().contains("not to be quoted"));
}

#[test]
fn a_link_is_set_up_once_and_always_taken_down() {
    let stand = Stand::new();
    let over = |name: &str, link: &str| {
        VARIANTS.replace("zero1-ddp", name).replace("ranks: 2", &format!("ranks: 2, link: {link}"))
    };
    let plan =
        [over("a", "slow"), over("b", "slow"), over("c", "bad"), over("d", "bad"), VARIANTS.to_owned()];
    let (code, out) = stand.bench(&plan.join(", "), &["--pairs", "1"]);
    assert_eq!(code, 101, "{out}");
    let runs = ["2-zero1", "2-ddp"];
    let expected =
        [&["cluster up"], &runs[..], &runs, &["cluster down", "cluster broken", "cluster down"], &runs]
            .concat();
    assert_eq!(stand.diary(), expected);
    assert_eq!(out.matches("COULD NOT RUN: link `bad`: setup: ").count(), 2, "{out}");
    let own = format!("bad={} {{ranks}}", stand.path("launcher").display());
    let (code, out) = stand.bench(&over("c", "bad"), &["--pairs", "1", "--link", &own]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn results_of_several_invocations_add_up_in_the_table_the_document_and_the_picture() {
    let stand = Stand::new();
    let plan = format!("{VARIANTS}, {PEER}");
    assert_eq!(stand.bench(&plan, &["--only", "zero1*"]).0, 0);
    assert_eq!(stand.bench(&plan, &["--only", "*other", "--pairs", "1"]).0, 0);
    assert_eq!(stand.bench(&plan, &["--only", "zero1*", "--pairs", "1"]).0, 0);
    let comparisons = stand.json()["comparisons"].clone();
    let names: Vec<_> = comparisons.as_array().unwrap().iter().map(|finding| &finding["name"]).collect();
    assert_eq!(names, ["zero1-ddp", "ddp-other"]);
    assert_eq!(comparisons[0]["pairs"].as_array().unwrap().len(), 1, "run again, it was replaced");

    let [out, document, svg] =
        ["out", "page.md", "page.svg"].map(|name| stand.path(name).to_str().unwrap().to_owned());
    std::fs::write(&document, "before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n").unwrap();
    let (code, printed, errors) =
        harness(&["bench", "report", &out, "--markdown", "--into", &document, "--svg", &svg]);
    assert_eq!((code, printed.as_str()), (0, ""), "{errors}");
    let table = std::fs::read_to_string(stand.path("out/bench.md")).unwrap();
    let picture = "![Each pair, the medians and the aims](page.svg)";
    let expected = format!("before\n<!-- bench:begin -->\n{picture}\n\n{table}<!-- bench:end -->\nafter\n");
    assert_eq!(std::fs::read_to_string(&document).unwrap(), expected);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("ddp-other"));
    let (code, printed, _) = harness(&["bench", "report", &out]);
    assert!(code == 0 && row(&printed, "ddp-other", "tokens").ends_with("yes"), "{printed}");
}

#[test]
fn what_cannot_be_meant_is_2_with_the_remedy() {
    let stand = Stand::new();
    for (comparisons, options, expected) in [
        (VARIANTS, &["--only", "nothing"][..], "--only nothing: no comparison of the plan"),
        (
            VARIANTS,
            &["--link", "fast=x {ranks}"],
            "--link fast: the plan has no link of that name; its links: bad, slow",
        ),
        ("{ name: a }", &[], "plan.yaml: comparisons[0]: missing field `config`"),
        (VARIANTS, &["--pairs", "0"], "0 is not in 1..=1000"),
    ] {
        let (code, out) = stand.bench(comparisons, options);
        assert!(code == 2 && out.contains(expected), "{expected}: {out}");
    }
    std::fs::create_dir_all(stand.path("out")).unwrap();
    std::fs::write(stand.path("out/bench.json"), "{").unwrap();
    let (code, out) = stand.bench(VARIANTS, &[]);
    assert!(code == 2 && out.contains("bench.json: ") && out.contains("name another folder"), "{out}");
    assert!(stand.diary().is_empty(), "nothing was run");
    let (code, _, errors) = harness(&["bench", "report", stand.path("records").to_str().unwrap()]);
    assert!(code == 2 && errors.contains("no bench.json here"), "{errors}");
    write_lines::<u8>(&stand.path("page.md"), &[]);
    assert_eq!(stand.bench_into("other", VARIANTS, &["--pairs", "1"]).0, 0);
    let [out, page] = ["other", "page.md"].map(|name| stand.path(name).to_str().unwrap().to_owned());
    let (code, _, errors) = harness(&["bench", "report", &out, "--into", &page]);
    assert!(code == 2 && errors.contains("page.md: has no line `<!-- bench:begin -->`"), "{errors}");
}

/// Ctrl-C ends the ranks, takes the link down, and keeps the comparisons that were finished.
#[test]
fn an_interrupt_keeps_what_is_known() {
    let stand = Stand::new();
    let here = stand.folder.path().display();
    let side = "ranks: 1, ours: { strategy: single }, theirs: { strategy: single }";
    let plan = format!(
        "pairs: 1\nwarmup_steps: 1\n\
         links: {{ slow: {{ launcher: [{here}/launcher, '{{ranks}}'], teardown: [[{here}/cluster, down]] }} }}\n\
         comparisons: [{{ name: a, config: c.yaml, {side} }}, \
                       {{ name: b, config: c.yaml, link: slow, set: [behave=hang], {side} }}]"
    );
    std::fs::write(stand.path("plan.yaml"), plan).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lockstep-harness"));
    command.arg("bench").arg(stand.path("plan.yaml")).arg("--trainer").arg(stand.path("lockstep"));
    command.arg("--out").arg(stand.path("out")).arg("--work-dir").arg(stand.path("work"));
    let mut child = command.args(["--disturbance-max", "1"]).spawn().unwrap();
    let wait = |mut done: Box<dyn FnMut() -> bool + '_>| {
        (0..1000).any(|_| {
            done() || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                false
            }
        })
    };
    assert!(
        wait(Box::new(|| stand.path("work/b/pair-001/ours/stdout").exists())),
        "the slow one has not started"
    );
    signal(&child, "INT");
    assert!(wait(Box::new(|| child.try_wait().unwrap().is_some())), "it did not end");
    assert_eq!(child.wait().unwrap().code(), Some(101));
    assert_eq!(stand.diary().last().unwrap(), "cluster down");
    assert_eq!(stand.json()["comparisons"].as_array().unwrap().len(), 1);
}
