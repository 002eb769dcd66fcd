//! `trace/rank-00000.json`: what each thread of a rank was doing when, as Chrome's trace events.
//!
//! A JSON array with one event a line, so that what a killed run left can still be read: the first line is
//! `[`, each event's line ends with a comma, and the last line is `{}]`. Perfetto and chrome://tracing open
//! it as it is. The format:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>, "JSON Array Format".

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::RecordError;
use crate::jsonl::RawLines;

/// [`Span::thread`] of the thread that computes.
pub const TRAINING_THREAD: u32 = 0;
/// [`Span::thread`] of the thread that moves buckets.
pub const COMMUNICATION_THREAD: u32 = 1;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ph")]
pub enum TraceEvent {
    /// A stretch of time that a thread spent on one thing.
    #[serde(rename = "X")]
    Span(Span),
    /// What a viewer calls a rank or a thread.
    #[serde(rename = "M")]
    Label(Label),
}

/// A stretch of time. Spans of one thread do not overlap, unless collectives are in flight side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// For people: `forward`, `reduce bucket 3`.
    pub name: String,
    #[serde(rename = "cat")]
    pub category: Category,
    /// Microseconds since the run's start, on rank 0's clock.
    #[serde(rename = "ts")]
    pub start_us: f64,
    #[serde(rename = "dur")]
    pub duration_us: f64,
    #[serde(rename = "pid")]
    pub rank: u32,
    /// [`TRAINING_THREAD`] or [`COMMUNICATION_THREAD`].
    #[serde(rename = "tid")]
    pub thread: u32,
    pub args: SpanArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanArgs {
    /// The step that the work belongs to; 0 for work outside of steps. Along a file it falls back by at most
    /// one: a gathering of step 7 may be written after the first spans of step 8.
    pub step: u64,
    /// Of forward and backward: which micro-batch, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Of communication: which bucket, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<u32>,
    /// Of communication: size of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What a thread was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    Data,
    Forward,
    Backward,
    Optimizer,
    /// Digests, metrics, checkpoints and their files.
    Record,
    /// The training thread has nothing to do until a communication has finished.
    Wait,
    Communication,
}

impl Category {
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Forward,
        Self::Backward,
        Self::Optimizer,
        Self::Record,
        Self::Wait,
        Self::Communication,
    ];

    /// As the file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Record => "record",
            Self::Wait => "wait",
            Self::Communication => "communication",
        }
    }
}

/// A name for a rank (`rank 0 on node1`) or for one of its threads (`training`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    #[serde(rename = "name")]
    pub kind: LabelKind,
    #[serde(rename = "pid")]
    pub rank: u32,
    #[serde(rename = "tid", default)]
    pub thread: u32,
    pub args: LabelArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelKind {
    ProcessName,
    ThreadName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelArgs {
    pub name: String,
}

/// Opens a trace: one rank's, or several merged.
pub fn read_trace(path: &Path) -> Result<TraceEvents, RecordError> {
    Ok(TraceEvents { raw: RawLines::open(path)?, state: State::Begin })
}

/// The events of a trace with their line numbers, in constant memory. A file that stops in the middle ends it
/// without an error: see [`TraceEvents::is_complete`]. It ends after the first error.
pub struct TraceEvents {
    raw: RawLines,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Events,
    /// The closing line was read.
    Closed,
    /// The file stopped before its closing line, or has an error.
    Broken,
}

impl TraceEvents {
    /// Once all events are read: whether the file has its closing line. One that was cut short is of a killed
    /// run.
    pub fn is_complete(&self) -> bool {
        self.state == State::Closed
    }

    /// The text of the event that was returned last: one JSON object, with whatever this program does not
    /// know.
    pub fn text(&self) -> &[u8] {
        without_comma(self.raw.buffer.trim_ascii())
    }

    fn problem(&self, problem: impl Into<String>) -> RecordError {
        RecordError::Trace { path: self.raw.path.clone(), line: self.raw.line, problem: problem.into() }
    }

    fn next_event(&mut self) -> Result<Option<(u64, TraceEvent)>, RecordError> {
        loop {
            if !self.raw.advance()? {
                if self.state != State::Closed {
                    self.state = State::Broken;
                }
                return Ok(None);
            }
            let line = self.raw.buffer.trim_ascii();
            match (self.state, line) {
                (_, b"") => {}
                (State::Begin, b"[") => self.state = State::Events,
                (State::Begin, _) => {
                    return Err(self.problem("not a trace: its first line must be `[`"));
                }
                (State::Events, b"{}]" | b"]") => self.state = State::Closed,
                (State::Closed, _) => {
                    return Err(self.problem("more lines after the closing `{}]`: two traces in one file?"));
                }
                // Cut short in the middle of a line.
                _ if !self.raw.is_whole() => {
                    self.state = State::Broken;
                    return Ok(None);
                }
                (_, line) => return self.event(line).map(Some),
            }
        }
    }

    fn event(&self, line: &[u8]) -> Result<(u64, TraceEvent), RecordError> {
        let event = serde_json::from_slice(without_comma(line)).map_err(|source| {
            self.problem(format!("{source}; docs/run-record.md describes a trace's events"))
        })?;
        if let TraceEvent::Span(Span { args: SpanArgs { step, bucket, .. }, .. }) = event
            && (step > STEP_MAX || bucket.is_some_and(|bucket| bucket > BUCKET_MAX))
        {
            return Err(self.problem(format!("step {step}, bucket {bucket:?}: no run has so many")));
        }
        if let TraceEvent::Span(Span { start_us, duration_us, .. }) = event
            && !(start_us.abs() <= TIME_US_MAX && (0.0..=TIME_US_MAX).contains(&duration_us))
        {
            return Err(self.problem(format!(
                "a start of {start_us} µs and a duration of {duration_us} µs are no times of a run"
            )));
        }
        Ok((self.raw.line, event))
    }
}

fn without_comma(line: &[u8]) -> &[u8] {
    line.strip_suffix(b",").unwrap_or(line)
}

/// Leaves room to count on from any step.
const STEP_MAX: u64 = 1 << 53;
const BUCKET_MAX: u32 = 1 << 16;
/// Thirty years: below it a double still tells half a microsecond apart.
const TIME_US_MAX: f64 = 1e15;

impl Iterator for TraceEvents {
    type Item = Result<(u64, TraceEvent), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Broken {
            return None;
        }
        let item = self.next_event().transpose();
        if matches!(item, Some(Err(_))) {
            self.state = State::Broken;
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: &str = r#"{"ph":"X","name":"reduce bucket 3","cat":"communication","ts":12.5,"dur":3.0,"pid":1,"tid":1,"args":{"step":7,"bucket":3,"bytes":4096}},"#;
    const LABEL: &str = r#"{"name":"process_name","ph":"M","pid":1,"args":{"name":"rank 1 on node1"}},"#;

    type Read = Vec<Result<(u64, TraceEvent), RecordError>>;

    fn events_of(bytes: &[u8]) -> (Read, bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-00001.json");
        std::fs::write(&path, bytes).unwrap();
        let mut events = read_trace(&path).unwrap();
        (events.by_ref().collect(), events.is_complete())
    }

    #[test]
    fn a_whole_trace_is_json_and_reads_back() {
        let text = format!("[\n{LABEL}\n{SPAN}\n{{}}]\n");
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let (events, complete) = events_of(text.as_bytes());
        assert!(complete);
        let (line, TraceEvent::Span(span)) = events[1].as_ref().unwrap() else { panic!("{events:?}") };
        assert_eq!((*line, span.args.bucket, span.category), (3, Some(3), Category::Communication));
        let written = serde_json::to_string(&TraceEvent::Span(span.clone())).unwrap();
        assert_eq!(format!("{written},"), SPAN);
    }

    #[test]
    fn categories_are_spelt_alike_everywhere() {
        for category in Category::ALL {
            assert_eq!(serde_json::to_value(category).unwrap(), category.name());
        }
    }

    proptest! {
        #[test]
        fn a_cut_trace_keeps_its_whole_lines(cut in 0usize..400) {
            let text = format!("[\n{LABEL}\n{SPAN}\n{{}}]\n");
            let cut = cut.min(text.len());
            let (events, complete) = events_of(&text.as_bytes()[..cut]);
            prop_assert!(events.iter().all(Result::is_ok), "{:?}", events);
            let whole = text[..cut].matches("},\n").count();
            prop_assert_eq!(events.len(), whole);
            prop_assert_eq!(complete, text[..cut].contains("{}]"));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            events_of(&bytes);
            events_of(&[b"[\n", &bytes[..]].concat());
        }
    }

    #[test]
    fn nonsense_is_named_with_its_line() {
        let cases = [
            ("{}\n".to_owned(), ":1: not a trace"),
            (format!("[\n{SPAN}\n{{}}]\n[\n"), ":4: more lines after"),
            ("[\n{\"ph\":\"X\"},\n".to_owned(), ":2: missing field"),
            (format!("[\n{}\n", SPAN.replace("3.0", "-1")), ":2: a start of"),
            (
                format!("[\n{}\n", SPAN.replace(":7,", ":18446744073709551615,")),
                ":2: step 18446744073709551615, bucket",
            ),
            (format!("[\n{}\n", SPAN.replace("communication", "dancing")), ":2: unknown variant `dancing`"),
            (format!("[\n{}\n", SPAN.replace("\"step\":7,", "")), ":2: missing field `step`"),
        ];
        for (text, expected) in cases {
            let (events, complete) = events_of(text.as_bytes());
            let error = events.last().unwrap().as_ref().unwrap_err().to_string();
            assert!(error.contains(expected) && !complete, "{error}");
        }
    }
}
