//! `--trace`: what each thread of this rank does when, as Chrome trace events on rank 0's clock, and as NVTX ranges of
//! the same names for Nsight Systems.

mod clock;
mod nvtx;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

pub use clock::offset_to_rank_0;
pub use lockstep_record::Category;
use lockstep_record::{
    COMMUNICATION_THREAD, Label, LabelArgs, LabelKind, Span as Event, SpanArgs, TRAINING_THREAD, TraceEvent,
};

/// A handle on this rank's trace; before it is opened, spans cost nothing.
#[derive(Clone, Default)]
pub struct Trace(Arc<OnceLock<Pen>>);

struct Pen {
    rank: u32,
    /// Times since it, plus the offset, are on rank 0's clock.
    origin: Instant,
    offset_us: f64,
    step: AtomicU64,
    /// None once a write has failed: a trace is no reason to end a run.
    file: Mutex<Option<BufWriter<File>>>,
    ranges: nvtx::Ranges,
}

/// What a span is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About(SpanArgs);

impl About {
    pub fn micro_batch(index: usize) -> Self {
        Self(SpanArgs { micro_batch: Some(index as u32), ..SpanArgs::default() })
    }

    pub fn bucket(bucket: usize, bytes: usize) -> Self {
        Self(SpanArgs { bucket: Some(bucket as u32), bytes: Some(bytes as u64), ..SpanArgs::default() })
    }
}

/// A stretch of time in progress: written when it is dropped.
pub struct Span {
    trace: Trace,
    started: Instant,
    event: Option<Event>,
}

impl Trace {
    /// Begins the rank's file. `offset_us` is added to times since `origin` to have them on rank 0's clock.
    pub fn open(
        &self,
        path: &Path,
        rank: usize,
        host: &str,
        origin: Instant,
        offset_us: f64,
    ) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        writeln!(file, "[")?;
        let pen = Pen {
            rank: rank as u32,
            origin,
            offset_us,
            step: AtomicU64::new(0),
            file: Mutex::new(Some(file)),
            ranges: nvtx::Ranges::load(),
        };
        pen.label(LabelKind::ProcessName, TRAINING_THREAD, format!("rank {rank} on {host}"));
        pen.label(LabelKind::ThreadName, TRAINING_THREAD, "training".into());
        pen.label(LabelKind::ThreadName, COMMUNICATION_THREAD, "communication".into());
        // Opened once: a second time would change nothing.
        let _ = self.0.set(pen);
        Ok(())
    }

    /// Spans from now on belong to this step.
    pub fn at_step(&self, step: u64) {
        if let Some(pen) = self.0.get() {
            pen.step.store(step, Ordering::Relaxed);
        }
    }

    /// A span of the training thread.
    pub fn training(&self, category: Category, about: About) -> Span {
        self.span(TRAINING_THREAD, category, category.name(), about)
    }

    /// A span of the communication thread, or of what would be its work.
    pub fn communication(&self, category: Category, what: &str, about: About) -> Span {
        self.span(COMMUNICATION_THREAD, category, what, about)
    }

    fn span(&self, thread: u32, category: Category, what: &str, About(args): About) -> Span {
        let started = Instant::now();
        let Some(pen) = self.0.get() else { return Span { trace: self.clone(), started, event: None } };
        let name = match args.bucket {
            Some(bucket) => format!("{what} bucket {bucket}"),
            None => what.to_owned(),
        };
        pen.ranges.push(&name);
        let args = SpanArgs { step: pen.step.load(Ordering::Relaxed), ..args };
        let start_us = started.duration_since(pen.origin).as_secs_f64() * 1e6 + pen.offset_us;
        let event = Event { name, category, start_us, duration_us: 0.0, rank: pen.rank, thread, args };
        Span { trace: self.clone(), started, event: Some(event) }
    }

    /// Writes the closing line. Spans that end later are lost.
    pub fn close(&self) {
        let Some(pen) = self.0.get() else { return };
        let file = pen.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut file) = file
            && let Err(error) = writeln!(file, "{{}}]").and_then(|()| file.flush())
        {
            tracing::warn!("the trace's end was not written: {error}");
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let (Some(pen), Some(mut event)) = (self.trace.0.get(), self.event.take()) else { return };
        event.duration_us = self.started.elapsed().as_secs_f64() * 1e6;
        pen.ranges.pop();
        pen.write(&TraceEvent::Span(event));
    }
}

impl Pen {
    fn label(&self, kind: LabelKind, thread: u32, name: String) {
        self.write(&TraceEvent::Label(Label { kind, rank: self.rank, thread, args: LabelArgs { name } }));
    }

    fn write(&self, event: &TraceEvent) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writer) = file.as_mut() else { return };
        let written = serde_json::to_vec(event).map_err(std::io::Error::from).and_then(|mut line| {
            line.extend_from_slice(b",\n");
            writer.write_all(&line)
        });
        if let Err(error) = written {
            tracing::warn!("the trace ends here, since it cannot be written: {error}");
            *file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_nest_and_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-00003.json");
        let trace = Trace::default();
        trace.open(&path, 3, "node1", Instant::now(), 500.0).unwrap();
        trace.at_step(7);
        {
            let _outer = trace.training(Category::Backward, About::micro_batch(2));
            let _inner = trace.communication(Category::Communication, "reduce", About::bucket(1, 4096));
        }
        trace.close();
        drop(trace.training(Category::Wait, About::default()));
        let mut reader = lockstep_record::read_trace(&path).unwrap();
        let events: Vec<TraceEvent> = reader.by_ref().map(|event| event.unwrap().1).collect();
        assert!(reader.is_complete());
        let spans: Vec<&Event> = events
            .iter()
            .filter_map(|event| match event {
                TraceEvent::Span(span) => Some(span),
                TraceEvent::Label(_) => None,
            })
            .collect();
        assert_eq!(
            spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(),
            ["reduce bucket 1", "backward"]
        );
        assert!(spans[1].start_us >= 500.0 && spans[1].start_us <= spans[0].start_us);
        assert!(spans[1].duration_us >= spans[0].duration_us);
        assert_eq!((spans[0].rank, spans[0].args.step, spans[1].args.micro_batch), (3, 7, Some(2)));
    }

    #[test]
    fn without_a_trace_nothing_is_written() {
        let trace = Trace::default();
        drop(trace.training(Category::Data, About::default()));
        trace.close();
    }
}
