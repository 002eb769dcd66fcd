//! One NCCL communicator, non-blocking, that can be aborted from any thread while another one waits for it.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::abi::{Code, Config, RawComm, Table, UniqueId};
use super::library::Library;

/// How long the end of a communicator may take, in order or by force: a rank that is gone must not keep the others.
const ENDED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// All calls go through one lock, so that nothing asks a communicator that an abort has freed. Each returns at once, since
/// the communicator is non-blocking.
pub struct Communicator {
    library: &'static Library,
    comm: Mutex<Option<Handle>>,
}

struct Handle(RawComm);
// SAFETY: NCCL lets any thread use a communicator, one at a time.
unsafe impl Send for Handle {}

impl Communicator {
    /// Starts to connect this rank with the others; [`Communicator::is_idle`] says when that is done.
    pub fn start(library: &'static Library, id: UniqueId, rank: usize, size: usize) -> Result<Self, String> {
        let mut comm: RawComm = std::ptr::null_mut();
        let config = Config::non_blocking();
        // SAFETY: valid arguments.
        let code = unsafe { (library.table.init)(&mut comm, size as c_int, id, rank as c_int, &config) };
        let communicator = Self { library, comm: Mutex::new((!comm.is_null()).then_some(Handle(comm))) };
        communicator.begun(code).map(|()| communicator)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Handle>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self, code: Code) -> Result<(), String> {
        match code {
            Code::SUCCESS | Code::IN_PROGRESS => Ok(()),
            code => Err(self.library.explain(code)),
        }
    }

    /// Begins an operation, or a group of them. Its memory must live until [`Communicator::is_idle`] and the stream say that
    /// it is done, or until it has failed.
    pub fn begin(&self, call: impl FnOnce(&Table, RawComm) -> Code) -> Result<(), String> {
        let comm = self.lock();
        let Some(Handle(comm)) = &*comm else { return Err(aborted()) };
        self.begun(call(&self.library.table, *comm))
    }

    /// Whether NCCL has taken over what was begun last. An error is one of any operation so far, here or on the way.
    pub fn is_idle(&self) -> Result<bool, String> {
        let comm = self.lock();
        let Some(Handle(comm)) = &*comm else { return Err(aborted()) };
        let mut state = Code::SUCCESS;
        // SAFETY: the communicator lives while the lock is held.
        let code = unsafe { (self.library.table.async_error)(*comm, &mut state) };
        self.begun(code)?;
        match state {
            Code::SUCCESS => Ok(true),
            Code::IN_PROGRESS => Ok(false),
            state => Err(self.library.explain(state)),
        }
    }

    /// Ends whatever is in progress, on the device as well; whoever waits for it gets an error. Any thread may call it, and
    /// more than once.
    pub fn abort(&self) {
        let started = Instant::now();
        let mut comm = loop {
            match self.comm.try_lock() {
                Ok(comm) => break comm,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                // A call that should return at once does not: the process ends without it.
                Err(TryLockError::WouldBlock) if started.elapsed() > ENDED_WITHIN => return,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
        };
        if let Some(Handle(comm)) = comm.take() {
            // SAFETY: taken, so nobody uses it after this.
            unsafe { (self.library.table.abort)(comm) };
        }
    }

    /// Ends the communicator in order: all ranks call it when they have nothing in progress. If that takes too long, by
    /// force.
    fn close(&self) {
        if self.begin(|table, comm| unsafe { (table.finalize)(comm) }).is_err() {
            return self.abort();
        }
        let started = Instant::now();
        while started.elapsed() < ENDED_WITHIN {
            match self.is_idle() {
                Ok(true) => {
                    if let Some(Handle(comm)) = self.lock().take() {
                        // SAFETY: taken, and finalized.
                        unsafe { (self.library.table.destroy)(comm) };
                    }
                    return;
                }
                Ok(false) => std::thread::sleep(LOOK_AGAIN),
                Err(_) => break,
            }
        }
        self.abort();
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.close();
    }
}

fn aborted() -> String {
    "NCCL: the communicator was aborted".into()
}
