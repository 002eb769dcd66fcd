//! The thread that looks, and its file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_record::TelemetryLine;

/// How long the end of a run may wait for the last look: a driver that hangs must not keep it.
const LAST_LOOK_WITHIN: Duration = Duration::from_secs(2);
/// Longer than any line of a telemetry file.
const LINE_BYTES_MAX: u64 = 4096;

/// Where readings come from.
pub trait Source: Send {
    /// What can be read now; the time, the step and the largest memory so far are added by whoever asks.
    fn read(&mut self) -> TelemetryLine;
}

/// A running thread. Dropping it takes a last look, and ends it.
pub struct Telemetry {
    step: Arc<AtomicU64>,
    /// Nothing is sent: the thread ends when this is gone.
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
    limit: Duration,
}

impl Telemetry {
    /// Looks at once, and then after each interval. Lines are added to the file, which an earlier execution may have begun.
    pub fn start(source: Box<dyn Source>, path: &Path, every: Duration) -> io::Result<Self> {
        let step = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = channel();
        let (end, ended) = channel::<()>();
        let sampler = Sampler {
            source,
            file: open(path)?,
            path: path.to_owned(),
            step: Arc::clone(&step),
            memory_used_bytes_max: None,
        };
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            sampler.run(&stopped, every);
            drop(end);
        })?;
        Ok(Self { step, stop: Some(stop), ended, limit: LAST_LOOK_WITHIN })
    }

    /// The training begins a step.
    pub fn at_step(&self, step: u64) {
        self.step.store(step, Relaxed);
    }

    #[cfg(test)]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.stop = None;
        if self.ended.recv_timeout(self.limit) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "telemetry: the GPU's driver did not answer within {} s: the last line is missing",
                self.limit.as_secs_f64()
            );
        }
    }
}

struct Sampler {
    source: Box<dyn Source>,
    file: File,
    path: PathBuf,
    step: Arc<AtomicU64>,
    memory_used_bytes_max: Option<u64>,
}

impl Sampler {
    fn run(mut self, stopped: &Receiver<()>, every: Duration) {
        loop {
            if let Err(error) = self.look() {
                tracing::warn!("telemetry ends here: {}: {error}", self.path.display());
                return;
            }
            if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                // What a short run did last would be lost otherwise.
                let _ = self.look();
                return;
            }
        }
    }

    /// One line, whole or not at all as far as a write can be.
    fn look(&mut self) -> io::Result<()> {
        let read = self.source.read();
        self.memory_used_bytes_max = self.memory_used_bytes_max.max(read.memory_used_bytes);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = TelemetryLine {
            unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            step: self.step.load(Relaxed),
            memory_used_bytes_max: self.memory_used_bytes_max,
            ..read
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.write_all(&text)
    }
}

/// For lines to be added: without a last one that a crash cut short.
fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let bytes = file.metadata()?.len();
    let start = bytes.saturating_sub(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    (&file).take(LINE_BYTES_MAX).read_to_end(&mut end)?;
    let whole = end.iter().rposition(|&byte| byte == b'\n').map_or(start, |at| start + at as u64 + 1);
    if whole < bytes {
        file.set_len(whole)?;
    }
    Ok(file)
}
