//! Ends all ranks when a collective makes no progress for its limit: a rank that has stopped is noticed by nobody else. Before that
//! it asks the other ranks' watchdogs what they are doing, and every rank writes its flight recorder.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_record::{Channel, FlightState, RunDir, exit};

use super::call::{Call, Position, Title};
use super::doing::{Doing, describe};
use super::flight::{self, Entry, FlightRecorder, Ticket};
use super::inquiry::{Action, ENDED_WITHIN, Inquiry};
use super::side_channel::SideChannel;

/// How often messages are looked for while ranks ask one another.
const BUSY_TICK: Duration = Duration::from_millis(5);
/// How long the end of the run is held up for the flight recorder's file: the disk may be what hangs.
const DUMP_WITHIN: Duration = Duration::from_secs(1);

/// Watches one rank's collectives from a thread of its own, which ends when this is dropped.
pub struct Watchdog {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    rank: usize,
    size: usize,
    limit: Duration,
    end_all_ranks: fn(i32),
    started: Instant,
    position: Position,
    /// When this rank's last message was done.
    progressed_us: AtomicU64,
    recorder: Mutex<FlightRecorder>,
    run: OnceLock<RunDir>,
    /// What else must stop before the ranks end.
    last_act: OnceLock<LastAct>,
    side_channel: OnceLock<SideChannel>,
}

type LastAct = Box<dyn Fn() + Send + Sync>;

/// A collective in progress: dropped when it is done.
pub struct Watch<'a> {
    shared: &'a Shared,
    ticket: Ticket,
    /// How it ends: done, unless [`Watch::fail`] says otherwise.
    state: FlightState,
}

impl Watch<'_> {
    /// The collective has failed; the flight recorder is written.
    pub fn fail(mut self) {
        self.state = FlightState::Failed;
        let shared = self.shared;
        drop(self);
        shared.dump();
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let now = self.shared.now_us();
        self.shared.recorder().finish(self.ticket, self.state, now);
    }
}

impl Watchdog {
    /// `end_all_ranks` is called from the watching thread, after the message is out. Until [`Watchdog::connect`]
    /// it speaks for this rank alone.
    pub fn start(rank: usize, size: usize, limit: Duration, end_all_ranks: fn(i32)) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            rank,
            size,
            limit,
            end_all_ranks,
            started: Instant::now(),
            position: Position::default(),
            progressed_us: AtomicU64::new(0),
            recorder: Mutex::default(),
            run: OnceLock::new(),
            last_act: OnceLock::new(),
            side_channel: OnceLock::new(),
        });
        let (stop, stopped) = channel();
        let watched = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("watchdog".into()).spawn(move || guard(&watched, &stopped))?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on the watchdogs ask one another.
    pub fn connect(&self, side_channel: SideChannel) {
        let _ = self.shared.side_channel.set(side_channel);
    }

    /// What the watching thread does before it ends all ranks. It may take [`ENDED_WITHIN`] at most.
    pub fn before_the_end(&self, act: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.last_act.set(Box::new(act));
    }

    /// Where the flight recorder is written. The files of an earlier execution are moved aside.
    pub fn record_to(&self, run: &RunDir) {
        if self.shared.rank == 0
            && let Err(error) = flight::move_aside(run)
        {
            tracing::warn!("{}: cannot move the earlier files aside: {error}", run.flight().display());
        }
        let _ = self.shared.run.set(run.clone());
    }

    pub fn position(&self) -> &Position {
        &self.shared.position
    }

    /// Starts the clock for one collective. At most one a channel may be in progress.
    pub fn watch(&self, call: Call) -> Watch<'_> {
        let shared = &*self.shared;
        let now = shared.now_us();
        let ticket = shared.recorder().start(call, shared.position.step(), now);
        Watch { shared, ticket, state: FlightState::Done }
    }

    /// A message has arrived or left: whatever is in progress has its whole limit again.
    pub fn progressed(&self) {
        self.shared.progressed_us.store(self.shared.now_us(), Relaxed);
    }

    /// The sequence number of the channel's newest collective.
    pub fn sequence(&self, channel: Channel) -> u64 {
        self.shared.recorder().sequence(channel)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        // MPI is finalised next: the thread must not ask it anything then.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn recorder(&self) -> MutexGuard<'_, FlightRecorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collective that has made no progress for longer than the limit.
    fn overdue(&self) -> Option<Entry> {
        self.overdue_beyond(self.limit)
    }

    fn overdue_beyond(&self, limit: Duration) -> Option<Entry> {
        let limit = limit.as_micros() as u64;
        let (now, progressed) = (self.now_us(), self.progressed_us.load(Relaxed));
        let idle = |entry: &Entry| now.saturating_sub(entry.started_us.max(progressed));
        self.recorder().oldest_running().filter(|entry| idle(entry) > limit).copied()
    }

    fn doing(&self) -> Doing {
        self.recorder().doing(self.position.step(), self.now_us())
    }

    /// Writes the flight recorder if the run directory is known, within a limit.
    fn dump(&self) {
        let Some(run) = self.run.get().cloned() else { return };
        let (rank, lines) = (self.rank, self.recorder().lines());
        let (done, written) = channel();
        std::thread::spawn(move || {
            if let Err(error) = flight::write(&run, rank, &lines) {
                tracing::warn!("{}: {error}", run.rank_flight(rank).display());
            }
            let _ = done.send(());
        });
        let _ = written.recv_timeout(DUMP_WITHIN);
    }

    /// Prints what the ranks were doing, and ends them.
    fn report(&self, overdue: Option<Entry>, answers: Option<Vec<Option<Doing>>>) -> ! {
        end_at_last(self.end_all_ranks);
        let mut message = self.headline(overdue);
        if let Some(mut answers) = answers {
            answers[self.rank] = Some(self.doing());
            message += ". The ranks were:";
            describe(&answers).iter().for_each(|line| message += &format!("\n  {line}"));
        }
        eprintln!("lockstep: {message}");
        tracing::error!("{message}");
        self.dump();
        if let Some(act) = self.last_act.get() {
            act();
        }
        (self.end_all_ranks)(exit::WATCHDOG);
        std::process::exit(exit::WATCHDOG)
    }

    fn headline(&self, overdue: Option<Entry>) -> String {
        let title = match overdue {
            Some(Entry { call, step, .. }) => {
                let bucket = call.bucket.map(|bucket| bucket as u64);
                Title { operation: call.operation, bucket, step }.to_string()
            }
            // Asked by a rank that was gone before it could end the run.
            None => "another rank's collective".into(),
        };
        format!(
            "rank {}: {title} made no progress for {:.1} s (parallel.timeout_s): another rank has stopped or is far \
             behind; ending all ranks",
            self.rank,
            self.limit.as_secs_f64()
        )
    }
}

/// The watching thread.
fn guard(shared: &Shared, stopped: &Receiver<()>) {
    let idle = (shared.limit / 10).clamp(BUSY_TICK, Duration::from_millis(500));
    let mut inquiry = Inquiry::new(shared.rank, shared.size);
    let mut timed_out = None;
    loop {
        let tick = if inquiry.is_busy() { BUSY_TICK } else { idle };
        if stopped.recv_timeout(tick) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let overdue = shared.overdue();
        let Some(side_channel) = shared.side_channel.get() else {
            match overdue {
                Some(_) => shared.report(overdue, None),
                None => continue,
            }
        };
        let messages = std::iter::from_fn(|| side_channel.receive());
        let now = shared.started.elapsed();
        let mut actions: Vec<Action> =
            messages.filter_map(|(from, message)| inquiry.receive(now, from, message)).collect();
        actions.extend(inquiry.tick(now, overdue.is_some()));
        for action in actions {
            match action {
                Action::AskAll => {
                    timed_out = overdue;
                    side_channel.ask_all();
                }
                Action::Answer { to } => {
                    let text = serde_json::to_vec(&shared.doing()).unwrap_or_default();
                    side_channel.answer(to, &text);
                    shared.dump();
                }
                Action::Report(answers) => shared.report(timed_out.or(overdue), Some(answers)),
            }
        }
    }
}

/// Whatever hangs on the way out (MPI, the terminal, the disk), this process ends.
fn end_at_last(end_all_ranks: fn(i32)) {
    std::thread::spawn(move || {
        std::thread::sleep(ENDED_WITHIN);
        end_all_ranks(exit::WATCHDOG);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(exit::WATCHDOG) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_gives_a_collective_its_whole_limit_again() {
        let call = Call {
            operation: "all-gather",
            elements: 1,
            bytes: 4,
            dtype: "f32",
            bucket: None,
            channel: Channel::Data,
        };
        let limit = Duration::from_millis(200);
        let watchdog = Watchdog::start(0, 1, Duration::from_secs(3600), |_| {}).unwrap();
        let overdue_after = |pause| {
            std::thread::sleep(pause);
            let idle = watchdog.shared.overdue_beyond(limit);
            idle.is_some()
        };
        assert!(!overdue_after(limit));
        let watch = watchdog.watch(call);
        assert!(!overdue_after(limit / 2));
        watchdog.progressed();
        // Begun longer ago than the limit, but its last message was not.
        assert!(!overdue_after(limit * 3 / 4));
        assert!(overdue_after(limit / 2));
        drop(watch);
        assert!(!overdue_after(Duration::ZERO));
    }
}
