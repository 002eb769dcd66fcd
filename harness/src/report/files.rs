//! The outputs that are files of a folder: `report.json`, `junit.xml` and `report.html`, each replaced whole after
//! every case, so that a crash keeps what was known by then.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::stream::{Event, Sink};
use super::text::write_whole;
use super::view::Report;
use super::{html, junit};

/// Version of `report.json`.
pub const REPORT_VERSION: u32 = 2;

/// Writes `report.json`.
pub struct JsonFile(pub PathBuf);

impl Sink for JsonFile {
    fn receive(&mut self, event: &Event, report: &Report) -> io::Result<()> {
        write_if(!matches!(event, Event::Case(_)), || write_whole(&self.0, &report_json(report)?))
    }
}

/// Writes `junit.xml`.
pub struct JunitFile(pub PathBuf);

impl Sink for JunitFile {
    fn receive(&mut self, event: &Event, report: &Report) -> io::Result<()> {
        write_if(!matches!(event, Event::Case(_)), || write_whole(&self.0, &junit(report)?))
    }
}

/// Writes `report.html`. With many cases the page is large, so it is not drawn again while drawing would take more than
/// a small part of the time.
pub struct PageFile {
    path: PathBuf,
    next: Instant,
}

/// The part is 1 in so many.
const PAUSE: u32 = 20;

impl PageFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, next: Instant::now() }
    }
}

impl Sink for PageFile {
    fn receive(&mut self, event: &Event, report: &Report) -> io::Result<()> {
        let due = match event {
            Event::Begin { .. } | Event::End => true,
            Event::Sentence(_) => Instant::now() >= self.next,
            Event::Case(_) => false,
        };
        write_if(due, || {
            let begin = Instant::now();
            write_whole(&self.path, &html(report).map_err(io::Error::other)?)?;
            self.next = Instant::now() + (begin.elapsed() * PAUSE).min(Duration::from_secs(60));
            Ok(())
        })
    }
}

fn write_if(due: bool, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if due { write() } else { Ok(()) }
}

/// The report for programs: each cell has its facts, and under `view` what people are shown.
pub fn report_json(report: &Report) -> io::Result<String> {
    let cell = |case: &super::CaseReport| -> io::Result<Value> {
        let mut cell = match &case.facts {
            Value::Object(facts) => facts.clone(),
            _ => serde_json::Map::new(),
        };
        cell.insert("view".into(), serde_json::to_value(&case.view)?);
        Ok(Value::Object(cell))
    };
    let cells: Vec<Value> = report.cases.iter().map(cell).collect::<Result<_, _>>()?;
    let tree = json!({
        "report_version": REPORT_VERSION,
        "title": report.title,
        "started_unix_s": report.started_unix_s,
        "seconds": report.seconds,
        "planned": report.planned,
        "sentence": report.sentence,
        "cells": cells,
    });
    Ok(format!("{tree:#}"))
}
