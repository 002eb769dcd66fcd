//! Ends all ranks when a collective outlasts its limit: a rank that has stopped is noticed by nobody else.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_record::exit;

/// What this rank waits for, and since when.
struct Wait {
    operation: &'static str,
    since: Instant,
}

/// Watches one rank's collectives from a thread of its own.
pub struct Watchdog {
    current: Arc<Mutex<Option<Wait>>>,
}

/// A collective in progress: dropped when it is done.
pub struct Watch<'a>(&'a Watchdog);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Watchdog {
    /// `end_all_ranks` is called once, from the watching thread, after the message is out.
    pub fn start(rank: usize, limit: Duration, end_all_ranks: fn(i32)) -> std::io::Result<Self> {
        let current = Arc::new(Mutex::new(None::<Wait>));
        let watched = Arc::clone(&current);
        let pause = (limit / 10).clamp(Duration::from_millis(5), Duration::from_millis(500));
        std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            loop {
                std::thread::sleep(pause);
                let Ok(wait) = watched.lock() else { return };
                let Some(Wait { operation, since }) = wait.as_ref() else { continue };
                if since.elapsed() > limit {
                    eprintln!(
                        "lockstep: rank {rank}: {operation} made no progress for {:.1} s (parallel.timeout_s): another \
                         rank has stopped or is far behind; ending all ranks",
                        limit.as_secs_f64()
                    );
                    end_all_ranks(exit::WATCHDOG);
                    std::process::exit(exit::WATCHDOG);
                }
            }
        })?;
        Ok(Self { current })
    }

    /// Starts the clock for one collective.
    pub fn watch(&self, operation: &'static str) -> Watch<'_> {
        self.set(Some(Wait { operation, since: Instant::now() }));
        Watch(self)
    }

    fn set(&self, wait: Option<Wait>) {
        if let Ok(mut current) = self.current.lock() {
            *current = wait;
        }
    }
}
