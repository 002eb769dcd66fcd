//! Shows each comparison as it is done, and rewrites all files after each: a crash keeps what was known by
//! then.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::results::{Finding, Results};
use super::table::Table;
use super::{BenchError, chart, markdown};
use crate::report::write_whole;

/// Writes the table to `out`, and `bench.json`, `bench.md` and `bench.svg` into a folder.
pub struct Output<'a> {
    folder: PathBuf,
    out: &'a mut dyn Write,
    table: Table,
    results: Results,
}

impl<'a> Output<'a> {
    /// Reads what earlier invocations left in the folder, and makes sure that it can be written before any
    /// run starts.
    pub fn begin(plan: &Plan, folder: &Path, out: &'a mut dyn Write) -> Result<Self, BenchError> {
        std::fs::create_dir_all(folder).map_err(BenchError::io(folder))?;
        let mut results = Results::load(folder)?.unwrap_or_else(|| Results::new(String::new()));
        results.title = plan.title.clone();
        let names = plan.comparisons.iter().map(|c| (c.name.as_str(), c.link.as_str()));
        let mut output = Self { folder: folder.to_owned(), out, table: Table::new(names), results };
        output.write_files()?;
        let head = format!("{}\n\n{}", plan.title, output.table.head());
        output.print(&head)?;
        Ok(output)
    }

    pub fn add(&mut self, finding: &Finding) -> Result<(), BenchError> {
        self.results.put(finding.clone());
        self.write_files()?;
        let rows = self.table.rows(finding);
        self.print(&rows)
    }

    pub fn end(mut self) -> Result<(), BenchError> {
        let last = format!("\nResults: {}", self.folder.join("bench.json").display());
        self.print(&last)
    }

    /// A reader of the table who goes away does not end the bench.
    fn print(&mut self, text: &str) -> Result<(), BenchError> {
        match writeln!(self.out, "{text}").and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(BenchError::io(Path::new("standard output"))(error))
            }
            _ => Ok(()),
        }
    }

    fn write_files(&self) -> Result<(), BenchError> {
        let json = serde_json::to_string_pretty(&self.results).map_err(io::Error::other);
        let svg = chart::svg(&self.results).map_err(io::Error::other);
        let files = [
            ("bench.json", json.map(|json| json + "\n")),
            ("bench.md", Ok(markdown::table(&self.results))),
            ("bench.svg", svg),
        ];
        for (name, text) in files {
            let path = self.folder.join(name);
            text.and_then(|text| write_whole(&path, &text)).map_err(BenchError::io(&path))?;
        }
        Ok(())
    }
}
