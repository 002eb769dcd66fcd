//! One sentence that says what was proved: only what passed, and what is not known.

use std::collections::BTreeSet;

use super::cell::{Cell, Outcome};
use crate::compare::{Mode, Verdict};

/// Kinds of facts, and the checks whose equality proves them.
const FACTS: [(&str, &[&str]); 7] = [
    ("samples", &["sample ids"]),
    ("losses", &["losses", "micro-batch losses"]),
    ("gradients", &["reduced gradients"]),
    ("norms", &["gradient norms", "parameter norms"]),
    ("optimizer state", &["optimizer state"]),
    ("parameters", &["parameters"]),
    ("checkpoints", &["checkpoint parameters", "checkpoint optimizer state"]),
];

/// What the cells prove, and what they do not.
pub fn sentence(cells: &[Cell]) -> String {
    let passed = |foreign: bool, exact: bool| -> Vec<&Cell> {
        let wanted = |cell: &&Cell| {
            cell.outcome == Outcome::Passed && cell.foreign == foreign && (cell.mode == Mode::Exact) == exact
        };
        cells.iter().filter(wanted).collect()
    };
    let mut proved = Vec::new();
    let own = passed(false, true);
    if !own.is_empty() {
        let resumed = own.iter().filter(|cell| cell.launches_planned > 1).count();
        let resumed =
            if resumed == 0 { String::new() } else { format!(", {resumed} of them stopped and resumed,") };
        let have = if own.len() == 1 { "has" } else { "have" };
        proved.push(format!(
            "{} on {} ranks with {}{resumed} {have} the same bits as the golden run in {}",
            count(own.len(), "run"),
            list(numbers(&own)),
            list(words(&own)),
            facts(&own),
        ));
    }
    let foreign = passed(true, true);
    if !foreign.is_empty() {
        let agree = if foreign.len() == 1 { "agrees" } else { "agree" };
        let runs = count(foreign.len(), "run");
        proved.push(format!("{runs} of another trainer {agree} bit for bit in {}", facts(&foreign)));
    }
    let close = [passed(false, false), passed(true, false)].concat();
    if !close.is_empty() {
        proved.push(format!("{} within the stated tolerance", count(close.len(), "run")));
    }
    let proved = if proved.is_empty() {
        "Nothing was proved".to_owned()
    } else {
        format!("Proved: {}", proved.join("; "))
    };
    format!("{proved}.{}", remainder(cells))
}

/// What is not known, or known to be wrong.
fn remainder(cells: &[Cell]) -> String {
    let number = |wanted: fn(&Outcome) -> bool| cells.iter().filter(|cell| wanted(&cell.outcome)).count();
    let kinds: [(usize, &str); 3] = [
        (number(|outcome| matches!(outcome, Outcome::Different)), "DIFFERENT from what was expected"),
        (
            number(|outcome| matches!(outcome, Outcome::CouldNotRun { .. })),
            "could not run, so nothing is known",
        ),
        (number(|outcome| matches!(outcome, Outcome::Skipped { .. })), "skipped, so nothing is known"),
    ];
    kinds.iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!(" {}: {kind}.", count(*n, "run"))).collect()
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn numbers(cells: &[&Cell]) -> Vec<String> {
    let numbers: BTreeSet<u32> =
        cells.iter().flat_map(|cell| cell.ranks.split('→').filter_map(|part| part.parse().ok())).collect();
    numbers.iter().map(u32::to_string).collect()
}

fn words(cells: &[&Cell]) -> Vec<String> {
    let words: BTreeSet<&str> = cells.iter().flat_map(|cell| cell.strategy.split('→')).collect();
    words.into_iter().map(str::to_owned).collect()
}

/// Facts that every one of these cells compared and found equal.
fn facts(cells: &[&Cell]) -> String {
    let equal = |cell: &Cell, name: &str| {
        cell.comparison
            .as_ref()
            .and_then(|c| c.check(name))
            .is_some_and(|check| check.verdict == Verdict::Equal)
    };
    let held = FACTS
        .iter()
        .filter(|(_, checks)| cells.iter().all(|cell| checks.iter().all(|name| equal(cell, name))));
    let steps = cells.iter().filter_map(|cell| cell.comparison.as_ref()).map(|c| c.steps);
    let steps = match (steps.clone().min(), steps.max()) {
        (Some(least), Some(most)) if least == most => format!("all {least} steps"),
        (Some(least), Some(most)) => format!("all their {least} to {most} steps"),
        _ => "no step".into(),
    };
    format!("{} of {steps}", list(held.map(|(fact, _)| (*fact).to_owned()).collect()))
}

fn list(mut items: Vec<String>) -> String {
    match items.pop() {
        None => "nothing".into(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Check, Comparison};
    use crate::report::Curves;

    fn cell(ranks: &str, strategy: &str, outcome: Outcome, equal: &[&'static str]) -> Cell {
        let check = |name: &&'static str| {
            let mut check = Check::new(name);
            check.agree();
            check
        };
        Cell {
            group: "g".into(),
            name: "c".into(),
            ranks: ranks.into(),
            strategy: strategy.into(),
            launches_planned: 1 + strategy.matches('→').count(),
            foreign: false,
            against: Some("golden".into()),
            mode: Mode::Exact,
            outcome,
            started_unix_s: 0,
            seconds: 0.0,
            run_dir: "run".into(),
            launches: Vec::new(),
            comparison: Some(Comparison {
                golden: "a".into(),
                candidate: "b".into(),
                mode: Mode::Exact,
                steps: 24,
                checks: equal.iter().map(check).collect(),
                notes: Vec::new(),
            }),
            curves: Curves::default(),
        }
    }

    #[test]
    fn it_claims_only_what_every_passed_run_compared() {
        let cells = [
            cell("2", "ddp", Outcome::Passed, &["sample ids", "parameters"]),
            cell("4→3", "ddp→zero1", Outcome::Passed, &["sample ids"]),
            cell("8", "ddp", Outcome::Different, &["sample ids"]),
            cell("16", "ddp", Outcome::Skipped { reason: String::new() }, &[]),
        ];
        assert_eq!(
            sentence(&cells),
            "Proved: 2 runs on 2, 3 and 4 ranks with ddp and zero1, 1 of them stopped and resumed, have the same \
             bits as the golden run in samples of all 24 steps. 1 run: DIFFERENT from what was expected. 1 run: \
             skipped, so nothing is known."
        );
    }

    #[test]
    fn nothing_is_claimed_where_nothing_passed() {
        let cells = [cell("2", "ddp", Outcome::Skipped { reason: String::new() }, &[])];
        assert_eq!(sentence(&cells), "Nothing was proved. 1 run: skipped, so nothing is known.");
        assert_eq!(sentence(&[]), "Nothing was proved.");
    }
}
