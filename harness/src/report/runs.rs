//! `lockstep-harness report`: any number of runs beside the first one, and reports that were made before, as one page.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, RecordError, RunDir, StepLine, exit, read_json, read_lines, refuse_link};
use serde_json::json;

use super::cell::Outcome;
use super::comparison::{comparison_text, distance};
use super::curves::read_curves;
use super::reporter::all_sinks;
use super::saved::{SavedError, read_report};
use super::stream::{Event, Stream};
use super::terminal::Heading;
use super::text::visible;
use super::view::{CaseReport, CaseView, Class, Report};
use crate::compare::{Mode, compare_families};
use crate::goldens::Families;

/// The group of all runs that are compared here.
const GROUP: &str = "runs";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run directories, of which the first is the reference; files `report.json`, or the folders of such.
    pub inputs: Vec<PathBuf>,
    /// Where the page goes; `report` in the folder of the first input without it.
    pub out: Option<PathBuf>,
    pub mode: Mode,
    pub families: Families,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{}: neither a run directory (with manifest.json) nor a report (report.json)", .0.display())]
    NotAReport(PathBuf),
    #[error("{} is named twice: a run is compared with others, not with itself", .0.display())]
    Twice(PathBuf),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot write to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ReportError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotAReport(_) | Self::Twice(_) => exit::USAGE,
            Self::Saved(_) | Self::Record(_) => exit::CASE_FAILED,
            Self::Write { .. } => exit::INTERNAL,
        }
    }
}

enum Input {
    Run(PathBuf),
    Saved(PathBuf, Report),
}

/// Prints a line a run to `out`, writes the page, and returns the exit code.
pub fn report(options: &Options, out: &mut dyn Write) -> Result<i32, ReportError> {
    let inputs: Vec<Input> = options.inputs.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
    for (index, path) in options.inputs.iter().enumerate() {
        if options.inputs[..index].contains(path) {
            return Err(ReportError::Twice(path.clone()));
        }
    }
    let folder = folder(options, &inputs)?;
    let labels = labels(&options.inputs);
    let headings = headings(&inputs, &labels, options.mode);
    let failed = |source| ReportError::Write { path: folder.clone(), source };
    let mut stream = Stream::new(all_sinks(&folder, out, &headings));
    stream.send(Event::Begin { title: title(&inputs), planned: headings.len() }).map_err(failed)?;
    let mut reference = None;
    let mut sentences = Vec::new();
    for (input, label) in inputs.iter().zip(&labels) {
        let cases = match input {
            Input::Run(path) => {
                vec![judge(path, label, reference.get_or_insert(path.as_path()), options)]
            }
            Input::Saved(_, report) => {
                sentences.push(format!("{}: {}", report.title, report.sentence));
                regrouped(report, inputs.len() > 1)
            }
        };
        for case in cases {
            stream.send(Event::Case(Box::new(case))).map_err(failed)?;
        }
    }
    let sentence = sentence(stream.report(), &sentences);
    stream.send(Event::Sentence(sentence)).map_err(failed)?;
    stream.send(Event::End).map_err(failed)?;
    Ok(exit_code(stream.report()))
}

fn open(path: &Path) -> Result<Input, ReportError> {
    let run = RunDir::new(path);
    if run.manifest().symlink_metadata().is_ok() {
        return Ok(Input::Run(path.to_owned()));
    }
    let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    match file.is_file() {
        true => Ok(Input::Saved(file.clone(), read_report(&file)?)),
        false => Err(ReportError::NotAReport(path.to_owned())),
    }
}

/// Makes the folder of the page. A run directory may be anyone's: where nobody named the folder, a link is not
/// followed.
fn folder(options: &Options, inputs: &[Input]) -> Result<PathBuf, ReportError> {
    let folder = match (&options.out, inputs.first()) {
        (Some(out), _) => out.clone(),
        (None, Some(Input::Run(path))) => RunDir::new(path).report(),
        (None, Some(Input::Saved(path, _))) => path.parent().unwrap_or(Path::new(".")).join("report"),
        (None, None) => PathBuf::from("report"),
    };
    if options.out.is_none() {
        refuse_link(&folder)?;
    }
    std::fs::create_dir_all(&folder).map_err(|source| ReportError::Write { path: folder.clone(), source })?;
    Ok(folder)
}

/// The inputs' paths without the folders that all of them begin with.
fn labels(paths: &[PathBuf]) -> Vec<String> {
    let parents: Vec<PathBuf> =
        paths.iter().map(|path| path.parent().unwrap_or(Path::new("")).to_owned()).collect();
    let mut common = parents.first().cloned().unwrap_or_default();
    while !parents.iter().all(|parent| parent.starts_with(&common)) {
        if !common.pop() {
            // An absolute path and a relative one: not even the root.
            common = PathBuf::new();
        }
    }
    let label = |path: &PathBuf| {
        let label = path.strip_prefix(&common).unwrap_or(path).display().to_string();
        if label.is_empty() { path.display().to_string() } else { label }
    };
    paths.iter().map(label).collect()
}

fn title(inputs: &[Input]) -> String {
    match inputs {
        [Input::Saved(_, report)] => report.title.clone(),
        [Input::Run(path)] => visible(&format!("Run {}", path.display())),
        many => format!("{} runs and reports side by side", many.len()),
    }
}

fn headings(inputs: &[Input], labels: &[String], mode: Mode) -> Vec<Heading> {
    let several = inputs.len() > 1;
    let heading = |view: &CaseView| Heading {
        name: view.full_name(),
        ranks: view.ranks.clone(),
        strategy: view.strategy.clone(),
        expectation: view.expectation.clone(),
    };
    let of = |(input, label): (&Input, &String)| match input {
        Input::Run(path) => {
            let (ranks, strategy) = launched(path);
            vec![Heading {
                name: format!("{GROUP}/{}", visible(label)),
                ranks: visible(&ranks),
                strategy: visible(&strategy),
                expectation: mode.to_string(),
            }]
        }
        Input::Saved(_, report) => {
            regrouped(report, several).iter().map(|case| heading(&case.view)).collect()
        }
    };
    inputs.iter().zip(labels).flat_map(of).collect()
}

/// Ranks and strategies of a run's executions, such as `4→3`; empty where its manifest cannot be read.
fn launched(path: &Path) -> (String, String) {
    let Ok(manifest) = read_json::<Manifest>(&RunDir::new(path).manifest()) else {
        return Default::default();
    };
    let arrows = |mut parts: Vec<String>| {
        parts.dedup();
        let shown = parts.len().min(8);
        let more = if parts.len() > shown { "→…" } else { "" };
        parts[..shown].join("→") + more
    };
    let segments = &manifest.segments;
    (
        arrows(segments.iter().map(|segment| segment.world_size.to_string()).collect()),
        arrows(segments.iter().map(|segment| segment.strategy.clone()).collect()),
    )
}

/// One run beside the reference, which may be itself.
fn judge(path: &Path, label: &str, reference: &Path, options: &Options) -> CaseReport {
    let is_reference = path == reference;
    let (run, golden) = (RunDir::new(path), RunDir::new(reference));
    let Options { mode, families, .. } = *options;
    let comparison = (!is_reference).then(|| compare_families(reference, path, mode, families));
    let (ranks, strategy) = launched(path);
    let mut view = CaseView {
        ranks,
        strategy,
        expectation: if is_reference { "—".into() } else { mode.to_string() },
        run_dir: path.display().to_string(),
        seconds: seconds(&run),
        curves: read_curves(&run, (!is_reference).then_some(&golden)),
        ..CaseView::new(GROUP, label)
    };
    let outcome = match &comparison {
        None => Outcome::Golden,
        Some(Ok(comparison)) if comparison.passed() => Outcome::Passed,
        Some(Ok(_)) => Outcome::Different,
        Some(Err(error)) => Outcome::CouldNotRun { reason: error.to_string() },
    };
    (view.class, view.verdict) = ((&outcome).into(), outcome.to_string());
    match &comparison {
        None => "reference".clone_into(&mut view.verdict),
        Some(Err(error)) => {
            "NOT COMPARED".clone_into(&mut view.verdict);
            view.problem = Some(error.to_string());
        }
        Some(Ok(comparison)) => {
            view.problem = comparison.first_difference().map(ToString::to_string);
            view.distance = distance(comparison);
            view.detail = Some(comparison_text(comparison));
        }
    }
    let facts = json!({ "run_dir": path, "outcome": outcome, "comparison": comparison.and_then(Result::ok) });
    CaseReport::new(view, facts)
}

/// Rank 0's time of all steps that can be read.
fn seconds(run: &RunDir) -> f64 {
    let lines = read_lines::<StepLine>(&run.metrics()).into_iter().flatten().map_while(Result::ok);
    let seconds: f64 = lines.map(|line| line.seconds.total).sum();
    if seconds.is_finite() { seconds } else { 0.0 }
}

/// A report's cases; beside others, its groups are told apart by its title.
fn regrouped(report: &Report, several: bool) -> Vec<CaseReport> {
    let mut cases = report.cases.clone();
    if several {
        for case in &mut cases {
            case.view.group = format!("{}: {}", report.title, case.view.group);
        }
    }
    cases
}

/// What the runs' comparison says, then what the reports said.
fn sentence(report: &Report, reports: &[String]) -> String {
    let of = |class: Class| report.views().filter(|view| view.group == GROUP && view.class == class).count();
    let runs = |number: usize| if number == 1 { "1 run".to_owned() } else { format!("{number} runs") };
    let mut parts = Vec::new();
    if let Some(reference) = report.views().find(|view| view.group == GROUP && view.class == Class::Golden) {
        let name = &reference.name;
        let kinds = [
            (Class::Passed, "as equal to it as was demanded"),
            (Class::Different, "DIFFERENT from it"),
            (Class::CouldNotRun, "not comparable, so nothing is known"),
        ];
        let counts = kinds.iter().filter(|(class, _)| of(*class) > 0);
        let counts: Vec<String> =
            counts.map(|(class, text)| format!("{}: {text}", runs(of(*class)))).collect();
        parts.push(match counts.is_empty() {
            true => format!("{name}, compared with nothing."),
            false => format!("Beside {name}: {}.", counts.join("; ")),
        });
    }
    parts.extend(reports.iter().cloned());
    parts.join(" ")
}

/// One run alone is no failure: there was nothing to compare.
fn exit_code(report: &Report) -> i32 {
    match report.views().all(|view| view.class == Class::Golden) {
        true => exit::OK,
        false => report.exit_code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_as_short_as_they_can_be() {
        let of = |paths: &[&str]| labels(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["runs/a", "runs/b"]), ["a", "b"]);
        assert_eq!(of(&["runs/x/a", "runs/y/a"]), ["x/a", "y/a"]);
        assert_eq!(of(&["/r/a", "b"]), ["/r/a", "b"]);
        assert_eq!(of(&["a"]), ["a"]);
        assert_eq!(of(&["runs/a"]), ["a"]);
        assert_eq!(of(&["."]), ["."]);
    }
}
