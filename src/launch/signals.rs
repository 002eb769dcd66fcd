//! SIGTERM and SIGUSR1 ask for an end: the step is finished and saved first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGTERM, SIGUSR1};

/// Whether a signal has asked this rank to stop.
#[derive(Clone)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Catches the signals from now on. A write beyond the file size limit then fails with an error, too, instead
    /// of ending the process.
    pub fn listen() -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        Ok(Self(flag))
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
