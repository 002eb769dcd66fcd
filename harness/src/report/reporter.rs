//! Shows each cell as it is done, and rewrites all reports after each: a crash keeps what was known by then.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::cell::{Cell, REPORT_VERSION, Report};
use super::table::{Colour, Table};
use super::text::write_whole;
use super::{html, junit, sentence};
use crate::verify::Plan;

/// Writes the table to `out`, and `report.json`, `junit.xml` and `report.html` into a folder.
pub struct Reporter<'a> {
    folder: PathBuf,
    out: &'a mut dyn Write,
    table: Table,
    report: Report,
    start: Instant,
}

impl<'a> Reporter<'a> {
    pub fn new(plan: &Plan, folder: PathBuf, out: &'a mut dyn Write) -> Self {
        let colour = match io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            true => Colour::Always,
            false => Colour::Never,
        };
        let report = Report {
            report_version: REPORT_VERSION,
            title: plan.title.clone(),
            started_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |elapsed| elapsed.as_secs()),
            seconds: 0.0,
            planned: plan.groups.iter().map(|group| 1 + group.cases.len()).sum(),
            sentence: sentence(&[]),
            cells: Vec::new(),
        };
        Self { folder, out, table: Table::new(plan, colour), report, start: Instant::now() }
    }

    /// Prints the head of the table, and makes sure that the reports can be written before any run starts.
    pub fn begin(&mut self) -> io::Result<()> {
        self.write_files()?;
        self.print(&format!("{}\n\n{}", self.report.title, self.table.head()))
    }

    pub fn add(&mut self, cell: Cell) -> io::Result<()> {
        let row = self.table.row(&cell);
        self.report.cells.push(cell);
        self.report.sentence = sentence(&self.report.cells);
        self.write_files()?;
        self.print(&row)
    }

    pub fn end(mut self) -> io::Result<Report> {
        self.write_files()?;
        let page = self.folder.join("report.html");
        let last = format!("\n{}\n\nReport: {}", self.report.sentence, page.display());
        self.print(&last)?;
        Ok(self.report)
    }

    /// A reader of the table who goes away does not end the verification.
    fn print(&mut self, text: &str) -> io::Result<()> {
        match writeln!(self.out, "{text}").and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    fn write_files(&mut self) -> io::Result<()> {
        self.report.seconds = self.start.elapsed().as_secs_f64();
        let json = serde_json::to_string_pretty(&self.report)?;
        write_whole(&self.folder.join("report.json"), &json)?;
        write_whole(&self.folder.join("junit.xml"), &junit(&self.report).map_err(io::Error::other)?)?;
        write_whole(&self.folder.join("report.html"), &html(&self.report).map_err(io::Error::other)?)
    }
}
