//! The flight recorder: the last collectives of this rank, in memory until something breaks. PyTorch's
//! `TORCH_FR_BUFFER_SIZE` recorder of NCCL collectives is the model.

use std::io;

use lockstep_record::{FLIGHT_LINES_MAX, FlightLine, FlightState, RunDir};

use super::call::{Call, Channel};
use super::doing::{Collective, Doing};

/// One collective that was begun. Times are in microseconds since this rank joined the world.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub call: Call,
    /// Counts the collectives of one channel from 1.
    pub sequence: u64,
    pub step: u64,
    pub started_us: u64,
    pub finished_us: Option<u64>,
    pub state: FlightState,
    /// Counts the collectives of all channels from 0: where it lies in the ring.
    number: u64,
}

impl Entry {
    fn line(&self) -> FlightLine {
        FlightLine {
            sequence: self.sequence,
            channel: self.call.channel,
            operation: self.call.operation.into(),
            bucket: self.call.bucket.map(|bucket| bucket as u64),
            step: self.step,
            elements: self.call.elements as u64,
            bytes: self.call.bytes as u64,
            dtype: self.call.dtype.into(),
            started_us: self.started_us,
            finished_us: self.finished_us,
            state: self.state,
        }
    }

    /// As other ranks are told of it, `since_us` before `now_us`.
    fn collective(&self, since_us: u64, now_us: u64) -> Collective {
        Collective {
            operation: self.call.operation.into(),
            bucket: self.call.bucket.map(|bucket| bucket as u64),
            step: self.step,
            channel: self.call.channel,
            sequence: self.sequence,
            seconds: now_us.saturating_sub(since_us) as f64 / 1e6,
        }
    }
}

/// A ring of entries, and which of them are in progress: at most one a channel. Starting and finishing allocate nothing.
pub struct FlightRecorder {
    ring: Vec<Entry>,
    started: u64,
    sequences: [u64; 2],
    running: [Option<Entry>; 2],
    last: Option<Entry>,
}

/// Names a collective that was started.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    channel: Channel,
    number: u64,
}

impl Default for FlightRecorder {
    fn default() -> Self {
        Self {
            ring: Vec::with_capacity(FLIGHT_LINES_MAX),
            started: 0,
            sequences: [0; 2],
            running: [None; 2],
            last: None,
        }
    }
}

impl FlightRecorder {
    pub fn start(&mut self, call: Call, step: u64, now_us: u64) -> Ticket {
        let channel = call.channel as usize;
        self.sequences[channel] += 1;
        let (sequence, number) = (self.sequences[channel], self.started);
        let state = FlightState::Running;
        let entry = Entry { call, sequence, step, started_us: now_us, finished_us: None, state, number };
        self.started += 1;
        match self.ring.get_mut(slot(number)) {
            Some(oldest) => *oldest = entry,
            None => self.ring.push(entry),
        }
        self.running[channel] = Some(entry);
        Ticket { channel: call.channel, number }
    }

    pub fn finish(&mut self, ticket: Ticket, state: FlightState, now_us: u64) {
        let running = &mut self.running[ticket.channel as usize];
        let Some(mut entry) = running.take_if(|entry| entry.number == ticket.number) else { return };
        (entry.finished_us, entry.state) = (Some(now_us), state);
        self.last = Some(entry);
        if let Some(kept) = self.ring.get_mut(slot(entry.number)).filter(|kept| kept.number == entry.number) {
            *kept = entry;
        }
    }

    /// The collective that has been in progress for longest.
    pub fn oldest_running(&self) -> Option<&Entry> {
        self.running.iter().flatten().min_by_key(|entry| entry.started_us)
    }

    /// The sequence number of the channel's newest collective.
    pub fn sequence(&self, channel: Channel) -> u64 {
        self.sequences[channel as usize]
    }

    /// What this rank is doing, as it tells others.
    pub fn doing(&self, step: u64, now_us: u64) -> Doing {
        let mut running: Vec<&Entry> = self.running.iter().flatten().collect();
        running.sort_by_key(|entry| entry.started_us);
        let ended = |entry: &Entry| entry.collective(entry.finished_us.unwrap_or(now_us), now_us);
        Doing {
            step,
            waits: running.iter().map(|entry| entry.collective(entry.started_us, now_us)).collect(),
            last: self.last.as_ref().map(ended),
        }
    }

    /// The newest [`FLIGHT_LINES_MAX`] collectives in the order of their start, and whatever still runs.
    pub fn lines(&self) -> Vec<FlightLine> {
        let lost = |entry: &&Entry| entry.number + (self.ring.len() as u64) < self.started;
        let mut entries: Vec<&Entry> = self.running.iter().flatten().filter(lost).collect();
        let room = FLIGHT_LINES_MAX - entries.len();
        let mut kept: Vec<&Entry> = self.ring.iter().collect();
        kept.sort_by_key(|entry| entry.number);
        entries.extend(&kept[kept.len().saturating_sub(room)..]);
        entries.sort_by_key(|entry| entry.number);
        entries.into_iter().map(Entry::line).collect()
    }
}

fn slot(number: u64) -> usize {
    (number % FLIGHT_LINES_MAX as u64) as usize
}

/// Writes one rank's file, whole or not at all.
pub fn write(run: &RunDir, rank: usize, lines: &[FlightLine]) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    std::fs::create_dir_all(run.flight())?;
    crate::files::replace(&run.rank_flight(rank), &text)
}

/// Moves the files of an earlier execution aside: they would be taken for this one's. Their own predecessors go.
pub fn move_aside(run: &RunDir) -> io::Result<()> {
    if !run.flight().exists() {
        return Ok(());
    }
    match std::fs::remove_dir_all(run.earlier_flight()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(run.flight(), run.earlier_flight())
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
