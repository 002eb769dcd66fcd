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

const GROUP: &str =
    "groups: [{ name: g, config: c.yaml, golden: { stages: [{ ranks: 1, strategy: single }] }, cases: [";

fn load_cases(cases: &str) -> Result<Plan, String> {
    load(&format!("{GROUP}{cases}] }}]"))
}

#[test]
fn the_shipped_plans_are_valid() {
    for name in ["demo", "long", "gpu", "nccl-double"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("plans/{name}.yaml"));
        let plan = Plan::load(&path).unwrap();
        assert!(plan.groups.iter().all(|group| !group.cases.is_empty()), "{name}");
    }
}

#[test]
fn each_mistake_is_named() {
    let stage = "stages: [{ ranks: 2, strategy: ddp }]";
    for (cases, expected) in [
        (String::new(), "has no cases"),
        (format!("{{ {stage} }}"), "a case needs a `name`"),
        (format!("{{ name: a/b, {stage} }}"), "`a/b` is not a name"),
        (format!("{{ name: .., {stage} }}"), "`..` is not a name"),
        (format!("{{ name: a, {stage} }}, {{ name: a, {stage} }}"), "two cases are called `a`"),
        (format!("{{ name: a, against: b, {stage} }}"), "against: no earlier case is called `b`"),
        (format!("{{ name: a, command: [x], {stage} }}"), "needs either `stages` or a `command`"),
        ("{ name: a }".into(), "needs either `stages` or a `command`"),
        (format!("{{ name: a, timeout_s: .nan, {stage} }}"), "timeout_s: NaN"),
        (format!("{{ name: a, tolerance: {{ rtol: -1 }}, {stage} }}"), "finite and not negative"),
        (format!("{{ name: a, tolerance: none, {stage} }}"), "expected `auto`, or `rtol`"),
        (format!("{{ name: a, tolerance: {{ rtoll: 1 }}, {stage} }}"), "unknown field `rtoll`"),
        (
            format!("{{ name: a, {stage} }}, {{ name: b, against: a, tolerance: auto, {stage} }}"),
            "case `b`: `tolerance: auto` is for cases that are compared with the golden run",
        ),
        ("{ name: a, stages: [{ ranks: 0, strategy: ddp }] }".into(), "stage 1: 0 ranks"),
        (
            "{ name: a, stages: [{ ranks: 1, strategy: ddp }, { ranks: 1, strategy: ddp }] }".into(),
            "stage 1: needs `stop_after`",
        ),
        (format!("{{ name: a, expect: exact, {stage} }}"), "groups[0].cases[0]: unknown field `expect`"),
    ] {
        let error = load_cases(&cases).unwrap_err();
        assert!(error.contains(expected), "{cases}: {error}");
    }
    assert!(load("[").unwrap_err().contains("plan.yaml"));
    assert!(load("title: x").unwrap_err().contains("nothing to run"));
    assert!(load("extends: plan.yaml").unwrap_err().contains("is it a circle?"));
    assert!(load("extends: none.yaml").unwrap_err().contains("none.yaml: no such plan"));
    assert!(load(&"[".repeat(100_000)).is_err());
}

#[test]
fn an_envelope_is_made_where_a_case_needs_one() {
    let stage = "stages: [{ ranks: 2, strategy: ddp }]";
    let plan =
        load_cases(&format!("{{ name: a, {stage} }}, {{ name: b, tolerance: auto, {stage} }}")).unwrap();
    assert_eq!(plan.groups[0].cases[1].mode, Mode::Auto);
    assert!(plan.groups[0].needs_envelope() && plan.groups[0].perturbed_runs == RUNS_DEFAULT);
    assert!(!load_cases(&format!("{{ name: a, {stage} }}")).unwrap().groups[0].needs_envelope());
    let foreign = GROUP.replace("stages: [{ ranks: 1, strategy: single }]", "command: [x]");
    let error = load(&format!("{foreign}{{ name: a, tolerance: auto, {stage} }}] }}]")).unwrap_err();
    assert!(error.contains("a command cannot be perturbed"), "{error}");
    let few = GROUP.replace("golden:", "perturbed_runs: 2, golden:");
    let error = load(&format!("{few}{{ name: a, {stage} }}] }}]")).unwrap_err();
    assert!(error.contains("perturbed_runs: 2 is not in 6..=1024"), "{error}");
}

#[test]
fn labels_tell_what_changes_on_the_way() {
    let plan = load_cases(
        "{ name: a, stages: [{ ranks: 4, strategy: ddp, stop_after: 3 }, { ranks: 3, strategy: zero1 }] },
         { name: b, set: [parallel.reduction=native], stages: [{ ranks: 4, strategy: ddp }] }",
    )
    .unwrap();
    let labels = |index: usize| (plan.groups[0].cases[index].ranks(), plan.groups[0].cases[index].strategy());
    assert_eq!(labels(0), ("4→3".to_owned(), "ddp→zero1".to_owned()));
    assert_eq!(labels(1), ("4".to_owned(), "ddp native".to_owned()));
}

#[test]
fn a_selection_keeps_what_it_is_compared_with() {
    let stage = "stages: [{ ranks: 2, strategy: ddp }]";
    let cases = format!("{{ name: a, {stage} }}, {{ name: b, against: a, {stage} }}, {{ name: c, {stage} }}");
    let selected = |pattern: &str| {
        let mut plan = load_cases(&cases).unwrap();
        plan.select(pattern);
        plan.groups.iter().flat_map(|group| &group.cases).map(|case| case.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(selected("g/b"), ["a", "b"]);
    assert_eq!(selected("g*c"), ["c"]);
    assert!(selected("nothing").is_empty());
}

proptest! {
    #[test]
    fn no_plan_panics(text in "[ -~\n]{0,200}") {
        let _ = parse::<PlanFile>(&text);
    }
}
