//! How much of a run's communication was hidden behind computing: reads the traces that the ranks left, joins
//! them into one file for Perfetto, and sums up where each rank's time went.

mod figures;
mod intervals;
mod meetings;
mod merge;
mod picture;
mod text;
mod window;

use std::path::{Path, PathBuf};

use lockstep_record::{
    LabelKind, Manifest, RecordError, RunDir, Span, TraceEvent, exit, read_json, read_trace, refuse_link,
};

use crate::report::write_whole;
pub use figures::{BucketFigures, Figures, RankFigures, TraceReport};
use figures::{Slowest, Sums};
use meetings::Meetings;
use merge::Merged;
use picture::Sketch;
pub use text::trace_text;
use window::{StepTimes, Window};

/// What a rank may be called: every line of the table is as wide as the longest name.
const LABEL_CHARACTERS: usize = 80;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub run: PathBuf,
    /// Where the joined trace goes, instead of [`RunDir::merged_trace`].
    pub out: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    /// All but the first without it: the first step warms up.
    pub steps: Option<Steps>,
}

/// Steps `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub first: u64,
    pub last: u64,
}

impl Steps {
    fn contain(self, step: u64) -> bool {
        (self.first..=self.last).contains(&step)
    }
}

impl std::str::FromStr for Steps {
    type Err = String;

    /// `5..8`, `5..` or `5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` names no steps: write 5..8 (both included), 5.. or 5; the first step is 1");
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
        let (first, last) = match text.split_once("..") {
            None => (number(text)?, number(text)?),
            Some((first, "")) => (number(first)?, u64::MAX),
            Some((first, last)) => (number(first)?, number(last)?),
        };
        if first == 0 || last < first { Err(wrong()) } else { Ok(Self { first, last }) }
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.last {
            u64::MAX => write!(formatter, "{}..", self.first),
            last => write!(formatter, "{}..{last}", self.first),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{}: no trace of any rank: train with `lockstep train --trace`", .0.display())]
    NoTrace(PathBuf),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{}:{line}: {problem}", path.display())]
    Malformed { path: PathBuf, line: u64, problem: String },
    #[error(
        "{}: the run's newest execution had {world_size} ranks: this trace is of an earlier one; remove it",
        path.display()
    )]
    Stale { path: PathBuf, world_size: u32 },
    #[error(
        "none of the steps {selected} is whole in the traces; choose others with --steps, or 1.. for all"
    )]
    NoSteps { selected: String },
    #[error("{} is one of the traces to read: choose another --out", .0.display())]
    OutIsInput(PathBuf),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

impl TraceError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NoTrace(_) | Self::NoSteps { .. } | Self::OutIsInput(_) => exit::USAGE,
            Self::Record(_) | Self::Malformed { .. } | Self::Stale { .. } => exit::CASE_FAILED,
            Self::Write { .. } => exit::INTERNAL,
        }
    }

    fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Write { path, source }
    }
}

/// Does what was asked, rank by rank, once for when they met and once for all else; memory holds a few steps of one rank,
/// a time for each collective, and what a picture shows.
pub fn trace(options: &Options) -> Result<TraceReport, TraceError> {
    let run = RunDir::new(&options.run);
    let (ranks, mut notes) = traced_ranks(&run)?;
    let out = options.out.clone().unwrap_or_else(|| run.merged_trace());
    let mut merged = Merged::create(&out, &run, &ranks)?;
    let meetings = read_meetings(&run, &ranks)?;
    let mut reader = Reader::new(&run, options.steps, &meetings);
    let mut all = Sums::default();
    let mut figures = Vec::with_capacity(ranks.len());
    for rank in ranks {
        let traced = reader.read(rank, Some(&mut merged))?;
        all.join(&traced.sums);
        if !traced.complete {
            notes.push(format!("{}: cut short, so its last steps are left out", traced.label));
        }
        figures.push(traced.sums.of_rank(rank, traced.label));
    }
    let selected = reader.steps.map_or("1..".to_owned(), |steps| steps.to_string());
    if all.steps() == 0 {
        return Err(TraceError::NoSteps { selected });
    }
    merged.publish()?;
    if let Some(path) = &options.svg {
        write_whole(path, &reader.sketch.svg()).map_err(TraceError::write(path))?;
        notes.extend(reader.sketch.note());
    }
    notes.extend(meetings.note());
    notes.extend(clock_note(meetings.disagreement_us()));
    Ok(TraceReport { merged: out, selected, overall: all.figures(), ranks: figures, notes })
}

/// The figures over all steps of all ranks, without joining the traces.
pub fn traced_figures(run: &RunDir, steps: Steps) -> Result<Figures, TraceError> {
    let (ranks, _) = traced_ranks(run)?;
    let meetings = read_meetings(run, &ranks)?;
    let mut reader = Reader::new(run, Some(steps), &meetings);
    let mut all = Sums::default();
    for rank in ranks {
        all.join(&reader.read(rank, None)?.sums);
    }
    if all.steps() == 0 {
        return Err(TraceError::NoSteps { selected: steps.to_string() });
    }
    Ok(all.figures())
}

/// Communication that a run waited for ÷ all its communication: of each step on its slowest rank, since the others wait for
/// that one, however fast the link is. None without communication.
pub fn exposed_share(run: &RunDir, steps: Steps) -> Result<Option<f64>, TraceError> {
    let (ranks, _) = traced_ranks(run)?;
    let meetings = read_meetings(run, &ranks)?;
    let mut reader = Reader::new(run, Some(steps), &meetings);
    for rank in ranks {
        reader.read(rank, None)?;
    }
    Ok(reader.slowest.exposed_share())
}

fn clock_note(disagreement_us: f64) -> Option<String> {
    (disagreement_us > 0.0).then(|| {
        format!(
            "the ranks' clocks disagree by at least {disagreement_us:.0} µs: a collective ended on one rank before it \
             began on another. Figures of each rank hold all the same; its place beside the others is off by that much"
        )
    })
}

/// The ranks that have a trace, and a note if some have none.
fn traced_ranks(run: &RunDir) -> Result<(Vec<usize>, Vec<String>), TraceError> {
    refuse_link(&run.traces())?;
    let ranks = run.traced_ranks().map_err(|source| RecordError::Io { path: run.traces(), source })?;
    let Some(&last) = ranks.last() else { return Err(TraceError::NoTrace(run.path().to_owned())) };
    let mut expected = last + 1;
    if run.manifest().exists() {
        let manifest: Manifest = read_json(&run.manifest())?;
        let world_size = manifest.segments.last().map_or(0, |segment| segment.world_size);
        if last >= world_size as usize {
            return Err(TraceError::Stale { path: run.rank_trace(last), world_size });
        }
        expected = world_size as usize;
    }
    let missing = expected.saturating_sub(ranks.len());
    let note = (missing > 0).then(|| format!("{missing} of {expected} ranks left no trace"));
    Ok((ranks, note.into_iter().collect()))
}

/// Goes through one rank's trace. `take` gets each event, its text, and what makes an error of a problem with it. Returns
/// whether the file is whole.
fn each_event(
    run: &RunDir,
    rank: usize,
    mut take: impl FnMut(TraceEvent, &[u8], &dyn Fn(String) -> TraceError) -> Result<(), TraceError>,
) -> Result<bool, TraceError> {
    let path = run.rank_trace(rank);
    let mut events = read_trace(&path)?;
    while let Some(item) = events.next() {
        let (line, event) = item?;
        let malformed = |problem| TraceError::Malformed { path: path.clone(), line, problem };
        let pid = match &event {
            TraceEvent::Span(span) => span.rank,
            TraceEvent::Label(label) => label.rank,
        };
        if pid as usize != rank {
            return Err(malformed(format!("an event of rank {pid} in the trace of rank {rank}")));
        }
        take(event, events.text(), &malformed)?;
    }
    Ok(events.is_complete())
}

/// When the ranks met.
fn read_meetings(run: &RunDir, ranks: &[usize]) -> Result<Meetings, TraceError> {
    let mut meetings = Meetings::default();
    for &rank in ranks {
        each_event(run, rank, |event, _, _| {
            if let TraceEvent::Span(span) = event {
                meetings.add(&span);
            }
            Ok(())
        })?;
    }
    Ok(meetings)
}

/// What is known across ranks while their files go by.
struct Reader<'m> {
    run: RunDir,
    /// Known from the first span on.
    steps: Option<Steps>,
    meetings: &'m Meetings,
    sketch: Sketch,
    slowest: Slowest,
}

struct TracedRank {
    label: String,
    complete: bool,
    sums: Sums,
}

impl<'m> Reader<'m> {
    fn new(run: &RunDir, steps: Option<Steps>, meetings: &'m Meetings) -> Self {
        Self { run: run.clone(), steps, meetings, sketch: Sketch::default(), slowest: Slowest::default() }
    }

    fn read(&mut self, rank: usize, mut merged: Option<&mut Merged>) -> Result<TracedRank, TraceError> {
        let (mut window, mut sums) = (Window::new(self.meetings), Sums::default());
        let mut label = format!("rank {rank}");
        let run = self.run.clone();
        let complete = each_event(&run, rank, |event, text, malformed| {
            if let Some(merged) = &mut merged {
                merged.add(text)?;
            }
            match event {
                TraceEvent::Label(named) if named.kind == LabelKind::ProcessName => {
                    label = named.args.name.chars().take(LABEL_CHARACTERS).collect();
                }
                TraceEvent::Label(_) => {}
                TraceEvent::Span(span) => {
                    let whole = window.push(&span).map_err(malformed)?;
                    self.select(span);
                    self.count(whole, &mut sums);
                }
            }
            Ok(())
        })?;
        self.count(window.finish(complete), &mut sums);
        self.sketch.name(rank, &label);
        Ok(TracedRank { label, complete, sums })
    }

    /// Keeps what a picture needs of a span.
    fn select(&mut self, span: Span) {
        let step = span.args.step;
        if step == 0 {
            return;
        }
        let steps = *self.steps.get_or_insert(Steps { first: step.saturating_add(1), last: u64::MAX });
        if steps.contain(step) {
            self.sketch.add(span);
        }
    }

    fn count(&mut self, whole: Vec<StepTimes>, sums: &mut Sums) {
        let Some(steps) = self.steps else { return };
        for times in whole.into_iter().filter(|times| steps.contain(times.step)) {
            sums.add(&times);
            self.slowest.add(&times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_named_as_people_write_them() {
        let steps = |text: &str| text.parse::<Steps>().map(|steps| (steps.first, steps.last));
        assert_eq!(steps("5..8"), Ok((5, 8)));
        assert_eq!(steps("5.."), Ok((5, u64::MAX)));
        assert_eq!(steps("5"), Ok((5, 5)));
        for text in ["", "0..3", "8..5", "..", "a..b", "1..-2", "5..99999999999999999999"] {
            assert!(steps(text).unwrap_err().contains("names no steps"), "{text}");
        }
    }
}
