//! What came of the zoo: one table for the terminal and for documents, and JSON.

use std::fmt::Write;
use std::path::PathBuf;

use lockstep_record::exit;
use serde::Serialize;

use super::catalogue::{Bug, Expected};
use super::judge::{Observed, Verdict, judge, step_of};
use crate::bisect::{Finding, Phase};
use crate::report::one_line;

/// Share of the answers that must have phase and tensor right.
const RIGHT_MIN: f64 = 0.95;

/// One bug that was run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub group: String,
    pub models: String,
    pub at: String,
    pub launch: String,
    pub expected: Expected,
    /// What the harness said.
    pub step: Option<u64>,
    pub phase: Option<Phase>,
    pub tensor: Option<String>,
    pub rank: Option<usize>,
    pub sentence: String,
    /// The first step after which checkpoints differ.
    pub state_differs: Option<u64>,
    pub exit: Option<i32>,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub run_dir: PathBuf,
    pub seconds: f64,
}

impl Row {
    pub fn new(bug: &Bug, observed: Observed, run_dir: PathBuf, seconds: f64) -> Self {
        let verdict = judge(&bug.expected, &observed);
        let finding = observed.finding.as_ref();
        Self {
            name: bug.name.clone(),
            group: bug.group.clone(),
            models: bug.models.clone(),
            at: bug.at.clone(),
            launch: bug.launch.clone(),
            expected: bug.expected.clone(),
            step: finding.map(step_of),
            phase: finding.map(|finding| finding.phase),
            tensor: finding.and_then(|finding| finding.tensor.clone()),
            rank: finding.and_then(|finding| finding.rank),
            sentence: finding.map_or_else(|| "nothing differs".into(), sentence),
            state_differs: observed.state_differs,
            exit: observed.exit,
            verdict,
            run_dir,
            seconds,
        }
    }

    /// `right`, or what was wrong.
    pub fn outcome(&self) -> String {
        let Verdict { caught, on_time, phase, tensor } = self.verdict;
        let wrong = [(on_time, "step"), (phase, "phase"), (tensor, "tensor")];
        let wrong: Vec<&str> = wrong.iter().filter(|(right, _)| !right).map(|(_, what)| *what).collect();
        match caught {
            false => "MISSED".into(),
            true if wrong.is_empty() => "right".into(),
            true => format!("WRONG {}", wrong.join(", ")),
        }
    }

    /// Of step, phase and tensor: what was said, and what was expected where that is something else.
    fn columns(&self) -> [String; 7] {
        let said = |right: bool, said: String, expected: String| match right {
            true => said,
            false => format!("{said} (not {expected})"),
        };
        let Verdict { on_time, phase, tensor, .. } = self.verdict;
        let expected = &self.expected;
        let step = self.step.map_or_else(|| "—".into(), |step| step.to_string());
        let wanted = match (self.step == Some(expected.step), self.state_differs) {
            (true, Some(first)) => format!("{first}, where the state differs"),
            _ => expected.step.to_string(),
        };
        let named = match self.phase {
            Some(Phase::Outcome) => self.exit.map_or_else(|| "killed".into(), |code| format!("exit {code}")),
            _ => self.tensor.clone().unwrap_or_else(|| "—".into()),
        };
        let tensors = match expected.phase {
            Phase::Outcome => {
                let exit = expected.exit.map_or_else(String::new, |code| format!("exit {code}"));
                [exit, expected.says.clone().unwrap_or_default()].join(" ").trim().to_owned()
            }
            _ => expected.tensors.join(" or "),
        };
        [
            format!("{}/{}", self.group, self.name),
            self.launch.clone(),
            said(on_time, step, wanted),
            said(phase, self.phase.map_or("—", Phase::name).into(), expected.phase.name().into()),
            said(tensor, named, tensors),
            self.outcome(),
            format!("{:.1}", self.seconds),
        ]
    }
}

fn sentence(finding: &Finding) -> String {
    one_line(&finding.sentence)
}

/// How many answers were right, and whether that is enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    pub bugs: usize,
    pub caught: usize,
    pub on_time: usize,
    pub phase: usize,
    pub tensor: usize,
    /// Phase and tensor at once.
    pub named: usize,
}

impl Score {
    pub fn of(rows: &[Row]) -> Self {
        let count = |right: fn(&Verdict) -> bool| rows.iter().filter(|row| right(&row.verdict)).count();
        Self {
            bugs: rows.len(),
            caught: count(|verdict| verdict.caught),
            on_time: count(|verdict| verdict.on_time),
            phase: count(|verdict| verdict.phase),
            tensor: count(|verdict| verdict.tensor),
            named: count(|verdict| verdict.phase && verdict.tensor),
        }
    }

    /// All are caught at the first step that differs, and phase and tensor of nearly all are right.
    pub fn is_enough(&self) -> bool {
        self.bugs > 0
            && self.caught == self.bugs
            && self.on_time == self.bugs
            && self.named as f64 >= RIGHT_MIN * self.bugs as f64
    }

    fn sentence(&self) -> String {
        let share =
            |count: usize| format!("{count} ({:.0} %)", 100.0 * count as f64 / self.bugs.max(1) as f64);
        format!(
            "{} bugs: caught {}, at the first step that differs {}, phase right {}, tensor right {}, both {}. {}",
            self.bugs,
            share(self.caught),
            share(self.on_time),
            share(self.phase),
            share(self.tensor),
            share(self.named),
            if self.is_enough() { "The bars are met." } else { "THE BARS ARE NOT MET." }
        )
    }
}

/// Everything about one visit to the zoo.
#[derive(Clone, Debug, Serialize)]
pub struct ZooReport {
    pub title: String,
    pub score: Score,
    pub passed: bool,
    /// Bugs that could not be run, and why: nothing is known about them.
    pub could_not_run: Vec<(String, String)>,
    pub rows: Vec<Row>,
    pub seconds: f64,
}

const HEAD: [&str; 7] = ["bug", "launch", "step", "phase", "tensor", "answer", "seconds"];

impl ZooReport {
    pub fn new(title: String, rows: Vec<Row>, could_not_run: Vec<(String, String)>, seconds: f64) -> Self {
        let score = Score::of(&rows);
        let passed = score.is_enough() && could_not_run.is_empty();
        Self { title, score, passed, could_not_run, rows, seconds }
    }

    /// A wrong answer outweighs a bug that could not be run: something is known, and it is bad.
    pub fn exit_code(&self) -> i32 {
        match () {
            () if self.passed => exit::OK,
            () if !self.rows.is_empty() && !self.score.is_enough() => exit::DIFFERENT,
            () => exit::CASE_FAILED,
        }
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let rows: Vec<[String; 7]> =
            std::iter::once(HEAD.map(String::from)).chain(self.rows.iter().map(Row::columns)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = String::new();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        let _ = write!(text, "\n{}", self.conclusion(""));
        text
    }

    /// The same for documents.
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
        for row in &self.rows {
            let cells = row.columns().map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        let _ = write!(text, "\n{}", self.conclusion("- "));
        text
    }

    /// What was missed, what could not be run, and the score.
    fn conclusion(&self, bullet: &str) -> String {
        let mut text = String::new();
        for row in self.rows.iter().filter(|row| !row.verdict.right()) {
            let _ = writeln!(text, "{bullet}{}: {}: {}", row.name, row.outcome(), row.sentence);
        }
        for (name, reason) in &self.could_not_run {
            let _ = writeln!(text, "{bullet}{name}: COULD NOT RUN: {}", one_line(reason));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{} {:.0} s.", self.score.sentence(), self.seconds);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verdict: Verdict) -> Row {
        let expected = Expected {
            step: 1,
            phase: Phase::Norm,
            tensors: vec!["gradient_norm".into()],
            exit: None,
            says: None,
        };
        Row {
            name: "b".into(),
            group: "g".into(),
            models: "m".into(),
            at: "f.rs".into(),
            launch: "ddp-2".into(),
            expected,
            step: Some(2),
            phase: Some(Phase::Optimizer),
            tensor: Some("w".into()),
            rank: None,
            sentence: "step 2: something".into(),
            state_differs: Some(1),
            exit: Some(0),
            verdict,
            run_dir: PathBuf::new(),
            seconds: 1.0,
        }
    }

    const RIGHT: Verdict = Verdict { caught: true, on_time: true, phase: true, tensor: true };

    fn enough(right: usize, other: usize, verdict: Verdict) -> bool {
        let rows: Vec<Row> = (0..right).map(|_| row(RIGHT)).chain((0..other).map(|_| row(verdict))).collect();
        ZooReport::new(String::new(), rows, Vec::new(), 0.0).passed
    }

    #[test]
    fn the_bars_are_all_for_catching_and_steps_and_most_for_names() {
        assert!(enough(20, 0, RIGHT));
        assert!(!enough(0, 0, RIGHT));
        assert!(!enough(99, 1, Verdict { on_time: false, ..RIGHT }));
        assert!(!enough(99, 1, Verdict { caught: false, ..RIGHT }));
        assert!(enough(19, 1, Verdict { phase: false, ..RIGHT }));
        assert!(!enough(18, 1, Verdict { tensor: false, ..RIGHT }));
    }

    #[test]
    fn what_could_not_be_run_is_no_success() {
        let report = ZooReport::new(String::new(), vec![row(RIGHT)], vec![("c".into(), "why".into())], 0.0);
        assert!(!report.passed && report.text().contains("c: COULD NOT RUN: why"));
        assert_eq!(report.exit_code(), exit::CASE_FAILED);
        let wrong = row(Verdict { caught: false, ..RIGHT });
        let both = ZooReport::new(String::new(), vec![wrong], report.could_not_run, 0.0);
        assert_eq!(both.exit_code(), exit::DIFFERENT);
    }

    #[test]
    fn misses_are_published() {
        let verdict = Verdict { on_time: false, phase: false, ..RIGHT };
        let report = ZooReport::new(String::new(), vec![row(verdict)], Vec::new(), 0.0);
        assert!(report.text().contains("2 (not 1)") && report.text().contains("optimizer (not norm)"));
        assert!(report.text().contains("b: WRONG step, phase: step 2: something"), "{}", report.text());
        assert!(report.markdown().contains("| g/b | ddp-2 | 2 (not 1) | optimizer (not norm) | w |"));
    }
}
