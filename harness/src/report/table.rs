//! The table on the terminal: one line a cell, printed as soon as the cell is done.

use super::cell::{Cell, Outcome};
use super::text::one_line;
use crate::verify::{Case, Plan};

/// Whether lines may be coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Always,
    Never,
}

/// Column widths, known before the first run so that lines can be printed one by one.
pub struct Table {
    name: usize,
    ranks: usize,
    strategy: usize,
    expectation: usize,
    colour: Colour,
}

impl Table {
    pub fn new(plan: &Plan, colour: Colour) -> Self {
        let cases = || plan.groups.iter().flat_map(|group| group.cases.iter().map(move |case| (group, case)));
        let width = |title: &str, of: &dyn Fn(&Case) -> String| {
            cases().map(|(_, case)| of(case).chars().count()).max().unwrap_or(0).max(title.len())
        };
        let name = cases().map(|(group, case)| group.name.len() + 1 + case.name.len()).max().unwrap_or(0);
        Self {
            name: name.max("group/golden".len()),
            ranks: width("ranks", &Case::ranks),
            strategy: width("strategy", &Case::strategy),
            expectation: width("expected", &|case| {
                super::cell::expectation(case.mode, case.against.as_deref())
            }),
            colour,
        }
    }

    pub fn head(&self) -> String {
        self.line([
            "case",
            "ranks",
            "strategy",
            "expected",
            "verdict",
            "max ulps",
            "seconds",
            "first difference",
        ])
    }

    pub fn row(&self, cell: &Cell) -> String {
        let verdict = cell.outcome.to_string();
        let ulps = cell.distance().unwrap_or_else(|| "—".into());
        let problem = cell.problem().unwrap_or_default();
        let text = self.line([
            &format!("{}/{}", cell.group, cell.name),
            &cell.ranks,
            &cell.strategy,
            &cell.expectation(),
            &verdict,
            &ulps,
            &format!("{:.1}", cell.seconds),
            &one_line(&problem),
        ]);
        match (self.colour, &cell.outcome) {
            (Colour::Never, _) | (_, Outcome::Golden) => text,
            (_, outcome) => text.replacen(&verdict, &format!("\x1b[{}m{verdict}\x1b[0m", colour(outcome)), 1),
        }
    }

    fn line(&self, columns: [&str; 8]) -> String {
        let [name, ranks, strategy, expected, verdict, ulps, seconds, first] = columns;
        let (w_name, w_ranks, w_strategy, w_expected) =
            (self.name, self.ranks, self.strategy, self.expectation);
        let line = format!(
            "{name:w_name$}  {ranks:>w_ranks$}  {strategy:w_strategy$}  {expected:w_expected$}  {verdict:13}  \
             {ulps:>8}  {seconds:>7}  {first}"
        );
        line.trim_end().to_owned()
    }
}

fn colour(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Golden => "0",
        Outcome::Passed => "32",
        Outcome::Different | Outcome::CouldNotRun { .. } => "1;31",
        Outcome::Skipped { .. } => "33",
    }
}
