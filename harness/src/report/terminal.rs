//! The output on the terminal: a table, one line a case, printed as soon as the case is done.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use super::stream::{Event, Sink};
use super::text::one_line;
use super::view::{CaseView, Class, Report};

/// Whether lines may be coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Always,
    Never,
}

impl Colour {
    /// As a person at a terminal wants it.
    pub fn wanted() -> Self {
        match io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            true => Self::Always,
            false => Self::Never,
        }
    }
}

/// What is known of a case before it is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heading {
    /// `group/name`
    pub name: String,
    pub ranks: String,
    pub strategy: String,
    pub expectation: String,
}

/// Column widths, known before the first case so that lines can be printed one by one.
pub struct Table {
    name: usize,
    ranks: usize,
    strategy: usize,
    expectation: usize,
    colour: Colour,
}

impl Table {
    pub fn new(headings: &[Heading], colour: Colour) -> Self {
        let width = |title: &str, of: fn(&Heading) -> &str| {
            let widths = headings.iter().map(|heading| of(heading).chars().count());
            widths.chain([title.len()]).max().unwrap_or(0)
        };
        Self {
            name: width("case", |heading| &heading.name),
            ranks: width("ranks", |heading| &heading.ranks),
            strategy: width("strategy", |heading| &heading.strategy),
            expectation: width("expected", |heading| &heading.expectation),
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

    pub fn row(&self, view: &CaseView) -> String {
        let text = self.line([
            &view.full_name(),
            &view.ranks,
            &view.strategy,
            &view.expectation,
            &view.verdict,
            view.distance.as_deref().unwrap_or("—"),
            &format!("{:.1}", view.seconds),
            &one_line(view.problem.as_deref().unwrap_or_default()),
        ]);
        match (self.colour, view.class) {
            (Colour::Never, _) | (_, Class::Golden) => text,
            (_, class) => {
                let coloured = format!("\x1b[{}m{}\x1b[0m", colour(class), view.verdict);
                text.replacen(&view.verdict, &coloured, 1)
            }
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

fn colour(class: Class) -> &'static str {
    match class {
        Class::Golden => "0",
        Class::Passed => "32",
        Class::Different | Class::CouldNotRun => "1;31",
        Class::Skipped => "33",
    }
}

/// Prints the title, the table's lines and the sentence.
pub struct Terminal<'a> {
    pub out: &'a mut dyn Write,
    pub table: Table,
    /// Named in the end.
    pub page: PathBuf,
}

impl Sink for Terminal<'_> {
    fn receive(&mut self, event: &Event, report: &Report) -> io::Result<()> {
        let text = match event {
            Event::Begin { title, .. } => format!("{title}\n\n{}", self.table.head()),
            Event::Case(case) => self.table.row(&case.view),
            Event::Sentence(_) => return Ok(()),
            Event::End => format!("\n{}\n\nReport: {}", report.sentence, self.page.display()),
        };
        // A reader of the table who goes away does not end the work.
        match writeln!(self.out, "{text}").and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}
