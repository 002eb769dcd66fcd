//! What `verify` reports through: cells in, events out.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::cell::{Cell, expectation};
use super::files::{JsonFile, JunitFile, PageFile};
use super::sentence;
use super::stream::{Event, Sink, Stream};
use super::terminal::{Colour, Heading, Table, Terminal};
use super::view::{CaseReport, CaseView, Report};
use crate::verify::{Case, Group, Plan};

/// Every output: the files of a folder, then the table on `out`, so that what is printed is on disk.
pub fn all_sinks<'a>(folder: &Path, out: &'a mut dyn Write, headings: &[Heading]) -> Vec<Box<dyn Sink + 'a>> {
    let page: PathBuf = folder.join("report.html");
    vec![
        Box::new(JsonFile(folder.join("report.json"))),
        Box::new(JunitFile(folder.join("junit.xml"))),
        Box::new(PageFile::new(page.clone())),
        Box::new(Terminal { out, table: Table::new(headings, Colour::wanted()), page }),
    ]
}

/// Writes the table to `out`, and `report.json`, `junit.xml` and `report.html` into a folder.
pub struct Reporter<'a> {
    title: String,
    planned: usize,
    cells: Vec<Cell>,
    stream: Stream<'a>,
}

impl<'a> Reporter<'a> {
    pub fn new(plan: &Plan, folder: PathBuf, out: &'a mut dyn Write) -> Self {
        let heading = |group: &Group, case: &Case| Heading {
            name: format!("{}/{}", group.name, case.name),
            ranks: case.ranks(),
            strategy: case.strategy(),
            expectation: expectation(case.mode, case.against.as_deref()),
        };
        let of_group = |group: &Group| -> Vec<Heading> {
            std::iter::once(&group.golden).chain(&group.cases).map(|case| heading(group, case)).collect()
        };
        let headings: Vec<Heading> = plan.groups.iter().flat_map(of_group).collect();
        Self {
            title: plan.title.clone(),
            planned: headings.len(),
            cells: Vec::new(),
            stream: Stream::new(all_sinks(&folder, out, &headings)),
        }
    }

    /// Prints the head of the table, and makes sure that the reports can be written before any run starts.
    pub fn begin(&mut self) -> io::Result<()> {
        self.stream.send(Event::Begin { title: self.title.clone(), planned: self.planned })
    }

    pub fn add(&mut self, cell: Cell) -> io::Result<()> {
        let case = CaseReport::new(CaseView::from(&cell), serde_json::to_value(&cell)?);
        self.cells.push(cell);
        self.stream.send(Event::Case(Box::new(case)))?;
        self.stream.send(Event::Sentence(sentence(&self.cells)))
    }

    pub fn end(mut self) -> io::Result<Report> {
        self.stream.send(Event::End)?;
        Ok(self.stream.report().clone())
    }
}
