//! What every output shows of a case, and of all cases together.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cell::{Cell, Outcome};
use super::comparison::comparison_text;
use super::curves::Curves;
use super::text::{visible, visible_lines};
use lockstep_record::exit;

/// What became of a case, as far as its colour and the exit code are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What the others are compared with.
    Golden,
    Passed,
    Different,
    Skipped,
    /// Nothing is known about it.
    CouldNotRun,
}

impl Class {
    /// As the page's style sheet spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Golden => "golden",
            Self::Passed => "passed",
            Self::Different => "different",
            Self::Skipped => "skipped",
            Self::CouldNotRun => "could-not-run",
        }
    }

    /// Tells it apart without colours.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Golden => "◆",
            Self::Passed => "✓",
            Self::Different => "✗",
            Self::Skipped => "–",
            Self::CouldNotRun => "!",
        }
    }

    /// Whether somebody must look at it.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Different | Self::CouldNotRun)
    }
}

impl From<&Outcome> for Class {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Golden => Self::Golden,
            Outcome::Passed => Self::Passed,
            Outcome::Different => Self::Different,
            Outcome::Skipped { .. } => Self::Skipped,
            Outcome::CouldNotRun { .. } => Self::CouldNotRun,
        }
    }
}

/// One case, as the terminal, JUnit and the page show it. `report.json` keeps it beside the facts, so that a page can
/// be made from the file alone. Whoever has cases of another kind fills this in and sends it; see
/// [`super::Stream`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseView {
    /// Cases of a group share their curves' charts; a row of the matrix.
    pub group: String,
    pub name: String,
    /// Such as `4→3`; empty where it means nothing. So are `strategy` and `expectation`.
    #[serde(default)]
    pub ranks: String,
    #[serde(default)]
    pub strategy: String,
    #[serde(default)]
    pub expectation: String,
    pub class: Class,
    /// In words: `DIFFERENT`.
    pub verdict: String,
    /// The largest distance: `3` in ulps, `Δ 1e-7`.
    #[serde(default)]
    pub distance: Option<String>,
    pub seconds: f64,
    /// Why it did not pass: the first difference, or what went wrong.
    #[serde(default)]
    pub problem: Option<String>,
    /// Lines for people who open the case: all checks.
    #[serde(default)]
    pub detail: Option<String>,
    #[serde(default)]
    pub run_dir: String,
    #[serde(default)]
    pub launches: Vec<LaunchView>,
    #[serde(default)]
    pub curves: Curves,
}

/// One command of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchView {
    /// As one could paste it into a shell.
    pub command: String,
    pub ended: String,
    pub stdout: String,
    pub stderr: String,
}

impl CaseView {
    /// A case of which nothing is known yet.
    pub fn new(group: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            name: name.into(),
            ranks: String::new(),
            strategy: String::new(),
            expectation: String::new(),
            class: Class::CouldNotRun,
            verdict: Outcome::CouldNotRun { reason: String::new() }.to_string(),
            distance: None,
            seconds: 0.0,
            problem: None,
            detail: None,
            run_dir: String::new(),
            launches: Vec::new(),
            curves: Curves::default(),
        }
    }

    /// `group/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Names come from run directories and files that may be anyone's: nothing in them may reorder or hide text.
    fn made_visible(mut self) -> Self {
        let words = [&mut self.group, &mut self.name, &mut self.ranks, &mut self.strategy];
        let more = [&mut self.expectation, &mut self.verdict, &mut self.run_dir];
        for text in words.into_iter().chain(more).chain(&mut self.distance) {
            *text = visible(text);
        }
        for text in self.problem.iter_mut().chain(&mut self.detail) {
            *text = visible_lines(text);
        }
        for launch in &mut self.launches {
            for text in [&mut launch.command, &mut launch.ended, &mut launch.stdout, &mut launch.stderr] {
                *text = visible(text);
            }
        }
        let terms = std::mem::take(&mut self.curves.loss_terms);
        self.curves.loss_terms = terms.into_iter().map(|(name, points)| (visible(&name), points)).collect();
        self
    }
}

impl From<&Cell> for CaseView {
    fn from(cell: &Cell) -> Self {
        let launches = cell.launches.iter().map(|launch| LaunchView {
            command: shell_words(&launch.argv),
            ended: launch.ended.clone(),
            stdout: launch.stdout.display().to_string(),
            stderr: launch.stderr.display().to_string(),
        });
        Self {
            ranks: cell.ranks.clone(),
            strategy: cell.strategy.clone(),
            expectation: cell.expectation(),
            class: (&cell.outcome).into(),
            verdict: cell.outcome.to_string(),
            distance: cell.distance(),
            seconds: cell.seconds,
            problem: cell.problem(),
            detail: cell.comparison.as_ref().map(comparison_text),
            run_dir: cell.run_dir.display().to_string(),
            launches: launches.collect(),
            curves: cell.curves.clone(),
            ..Self::new(&cell.group, &cell.name)
        }
    }
}

/// The command as one could paste it into a shell.
fn shell_words(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quote = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// A case that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    pub view: CaseView,
    /// For programs: an object whose fields `report.json` holds beside the view.
    pub facts: Value,
}

impl CaseReport {
    pub fn new(view: CaseView, facts: Value) -> Self {
        Self { view: view.made_visible(), facts }
    }
}

/// All that is known so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub title: String,
    pub started_unix_s: u64,
    pub seconds: f64,
    /// Cases that are to come, golden runs included; fewer in `cases` mean that it was cut short.
    pub planned: usize,
    /// What is proved, in one sentence.
    pub sentence: String,
    pub cases: Vec<CaseReport>,
}

impl Report {
    pub fn views(&self) -> impl Iterator<Item = &CaseView> {
        self.cases.iter().map(|case| &case.view)
    }

    /// Names of the groups, in the order of their first case.
    pub fn groups(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for view in self.views() {
            if !names.contains(&view.group.as_str()) {
                names.push(&view.group);
            }
        }
        names
    }

    /// A difference outweighs a case that could not run: something is known, and it is bad. Nothing proved is no
    /// success either: every candidate was skipped.
    pub fn exit_code(&self) -> i32 {
        let any = |class: Class| self.views().any(|view| view.class == class);
        if any(Class::Different) {
            exit::DIFFERENT
        } else if any(Class::CouldNotRun) || !any(Class::Passed) {
            exit::CASE_FAILED
        } else {
            exit::OK
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let argv = ["a b", "it's", "--x=1", ""].map(str::to_owned);
        assert_eq!(shell_words(&argv), r"'a b' 'it'\''s' --x=1 ''");
    }

    #[test]
    fn the_exit_code_is_of_the_worst_case() {
        let code = |classes: &[Class]| {
            let case =
                |&class: &Class| CaseReport::new(CaseView { class, ..CaseView::new("g", "c") }, Value::Null);
            Report { cases: classes.iter().map(case).collect(), ..Report::default() }.exit_code()
        };
        use Class::{CouldNotRun, Different, Golden, Passed, Skipped};
        assert_eq!(code(&[Golden, Passed, Skipped]), exit::OK);
        assert_eq!(code(&[Golden, Passed, CouldNotRun]), exit::CASE_FAILED);
        assert_eq!(code(&[Golden, CouldNotRun, Different]), exit::DIFFERENT);
        assert_eq!(code(&[Golden, Skipped]), exit::CASE_FAILED);
        assert_eq!(code(&[]), exit::CASE_FAILED);
    }

    #[test]
    fn what_a_name_hides_is_spelt_out() {
        let case = CaseReport::new(CaseView::new("g\u{202e}", "a\nb"), Value::Null);
        assert_eq!(case.view.full_name(), "g\\u{202e}/a\\u{a}b");
        let curves = Curves { loss_terms: [("f\u{202e}m".into(), Vec::new())].into(), ..Curves::default() };
        let case = CaseReport::new(CaseView { curves, ..CaseView::new("g", "c") }, Value::Null);
        assert!(case.view.curves.loss_terms.contains_key("f\\u{202e}m"));
    }
}
