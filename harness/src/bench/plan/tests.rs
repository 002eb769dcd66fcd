use super::*;
use crate::plan_file::parse;
use proptest::prelude::*;

fn load(text: &str) -> Result<Plan, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("c.yaml"), "{}").unwrap();
    let path = folder.path().join("plan.yaml");
    std::fs::write(&path, text).unwrap();
    Plan::load(&path).map_err(|error| error.to_string())
}

const HEAD: &str = "links: { slow: { launcher: [l, '{ranks}'] } }\n\
                    peers: { torch: { label: PyTorch, command: [p, '{golden}'] } }\n";
const OURS: &str = "config: c.yaml, ranks: 2, ours: { strategy: ddp }";

fn load_comparison(fields: &str) -> Result<Plan, String> {
    load(&format!("{HEAD}comparisons: [{{ {fields} }}]"))
}

#[test]
fn the_shipped_plan_is_valid() {
    let plan = Plan::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/bench.yaml")).unwrap();
    assert!(plan.comparisons.iter().any(|comparison| comparison.link != LOOPBACK));
    assert!(plan.comparisons.iter().any(|comparison| comparison.theirs.needs_golden()));
    assert!(plan.comparisons.iter().all(|comparison| comparison.pairs >= 5));
}

/// `ci/gpu-acceptance` selects by the number in a name.
#[test]
fn the_plan_for_gpus_is_valid_and_says_how_many_it_needs() {
    let plan = Plan::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/gpu-bench.yaml")).unwrap();
    for comparison in &plan.comparisons {
        let Comparison { name, ranks, set, turn, .. } = comparison;
        assert!(name.starts_with(&format!("gpus-{ranks}-")), "{name}");
        assert!(turn.is_none() && set.iter().any(|set| set == "run.device=cuda"), "{name}");
    }
}

#[test]
fn each_mistake_is_named() {
    let peer = "theirs: { peer: torch }";
    for (fields, expected) in [
        (format!("name: a/b, {OURS}, {peer}"), "`a/b` is not a name"),
        (format!("name: a, {OURS}"), "comparisons[0]: missing field `theirs`"),
        (format!("name: a, {OURS}, theirs: {{}}"), "`a`: theirs: needs either a `peer` or a `strategy`"),
        (format!("name: a, {OURS}, theirs: {{ peer: x }}"), "theirs: no peer is called `x`"),
        (format!("name: a, {OURS}, theirs: {{ peer: torch, set: [a=1] }}"), "not for a peer"),
        (
            format!("name: a, {OURS}, theirs: {{ peer: torch, strategy: ddp }}"),
            "either a `peer` or a `strategy`",
        ),
        (format!("name: a, {OURS}, {peer}, link: x"), "link: `x` is none of loopback, slow"),
        (format!("name: a, {OURS}, {peer}, pairs: 0"), "pairs: 0 is not from 1 to 1000"),
        (format!("name: a, {OURS}, {peer}, steps: 0"), "steps: 0 is not from 1"),
        (format!("name: a, {OURS}, {peer}, timeout_s: .nan"), "timeout_s: NaN"),
        (format!("name: a, {OURS}, {peer}, aims: [{{ metric: speed }}]"), "unknown variant `speed`"),
        (
            format!("name: a, {OURS}, {peer}, aims: [{{ metric: resident_bytes, at_most: .inf }}]"),
            "aims: resident_bytes: inf is not a ratio",
        ),
        (
            format!("name: a, {OURS}, {peer}, aims: [{{ metric: resident_bytes, at_most: 1, at_least: 1 }}]"),
            "needs one bound",
        ),
        (
            format!("name: a, {OURS}, {peer}, aims: [{{ metric: state_bytes }}, {{ metric: state_bytes }}]"),
            "aims: two are about state_bytes",
        ),
        (
            format!("name: a, config: d.yaml, ranks: 2, ours: {{ strategy: ddp }}, {peer}"),
            "config: no such file",
        ),
        (format!("name: a, config: c.yaml, ranks: 0, ours: {{ strategy: ddp }}, {peer}"), "0 ranks"),
        (format!("name: a, {OURS}, {peer}, speed: 1"), "comparisons[0]: unknown field `speed`"),
        (format!("name: a, {OURS}, {peer} }}, {{ name: a, {OURS}, {peer}"), "two comparisons are called `a`"),
    ] {
        let error = load_comparison(&fields).unwrap_err();
        assert!(error.contains(expected) && error.contains("plan.yaml"), "{fields}: {error}");
    }
    for (text, expected) in [
        ("title: x", "nothing to run"),
        ("links: { loopback: { launcher: ['{ranks}'] } }", "stands for this machine alone"),
        ("links: { a: { launcher: [mpirun] } }", "link `a`: its `launcher` needs `{ranks}`"),
        ("links: { a: { launcher: ['{ranks}'], setup: [[]] } }", "is empty"),
        ("peers: { a: { label: x, command: [] } }", "peer `a`: needs a `command`"),
        ("[", "plan.yaml"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_a_comparison_leaves_out_comes_from_the_plan_and_then_from_here() {
    let plan = load(&format!(
        "pairs: 7\nsteps: 4\n{HEAD}comparisons: [{{ name: a, {OURS}, theirs: {{ peer: torch }} }}, \
         {{ name: b, {OURS}, steps: 9, link: slow, \
            theirs: {{ strategy: ddp, set: [parallel.reduction=native], flags: [--comm, none] }} }}]"
    ))
    .unwrap();
    let [a, b] = &plan.comparisons[..] else { panic!("two comparisons") };
    assert_eq!((a.pairs, a.warmup_steps, a.steps, a.link.as_str()), (7, 2, 4, LOOPBACK));
    assert_eq!((b.pairs, b.steps_in_all(), b.link.as_str()), (7, 11, "slow"));
    assert_eq!(a.aims, [Aim { metric: Metric::TokensPerSecond, at_least: None, at_most: None }]);
    assert_eq!((a.theirs.label(), b.theirs.label()), ("PyTorch".into(), "ddp native --comm none".into()));
    assert!(a.theirs.needs_golden() && !b.theirs.needs_golden());
}

#[test]
fn a_selection_may_have_several_patterns() {
    let comparison = |name: &str| format!("{{ name: {name}, {OURS}, theirs: {{ peer: torch }} }}");
    let text = format!("{HEAD}comparisons: [{}]", ["gpt-2", "gpt-4", "resnet-2"].map(comparison).join(", "));
    let selected = |patterns: &[&str]| {
        let mut plan = load(&text).unwrap();
        plan.select(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>());
        plan.comparisons.into_iter().map(|comparison| comparison.name).collect::<Vec<_>>()
    };
    assert_eq!(selected(&["g*4", "res"]), ["gpt-4", "resnet-2"]);
    assert!(selected(&["nothing"]).is_empty());
}

proptest! {
    #[test]
    fn no_plan_panics(text in "[ -~\n]{0,200}") {
        let _ = parse::<PlanFile>(&text);
    }
}
