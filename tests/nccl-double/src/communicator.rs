//! A communicator: a thread that does one group of operations after the other, and the state that callers ask for.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::abi::{Code, Error, IN_PROGRESS, INVALID_ARGUMENT, SUCCESS, SYSTEM_ERROR, UniqueId};
use crate::fault::Fault;
use crate::last_error;
use crate::log;
use crate::mesh::{Mesh, Transfer};
use crate::operation::{Messages, Operation, copy_to_self};
use crate::stream::{self, Delivery};

const MAGIC: u64 = 0x0d0b_1e0f_2ecc_1234;
/// Of the messages that end a communicator.
const FINALIZE: [u8; 8] = [7, 0, 0, 0, 0, 0, 0, 0];

/// What `ncclComm_t` points at.
pub struct Communicator {
    magic: u64,
    pub rank: usize,
    pub ranks: usize,
    pub is_blocking: bool,
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    is_finalized: bool,
}

struct Shared {
    state: Mutex<Code>,
    changed: Condvar,
    stop: AtomicBool,
}

enum Job {
    Group(Vec<Operation>),
    Finalize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Code> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, result: Result<(), Error>) {
        let code = match result {
            Ok(()) => SUCCESS,
            Err(error) => {
                log::warn(&error.message);
                last_error::set(&error.message);
                error.code
            }
        };
        *self.state() = code;
        self.changed.notify_all();
    }
}

impl Communicator {
    /// Starts to connect the ranks.
    pub fn start(id: UniqueId, rank: usize, ranks: usize, is_blocking: bool) -> Result<Self, Error> {
        let fault = Fault::of_environment(rank).map_err(|message| Error::new(INVALID_ARGUMENT, message))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(IN_PROGRESS),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let (jobs, inbox) = channel();
        let worker = Worker { rank, ranks, fault, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("nccl-double".into())
            .spawn(move || worker.run(&id, &inbox))
            .map_err(|error| Error::new(SYSTEM_ERROR, error.to_string()))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Self { magic: MAGIC, rank, ranks, is_blocking, shared, jobs, thread, is_finalized: false })
    }

    pub fn is_valid(&self) -> bool {
        self.magic == MAGIC
    }

    pub fn state(&self) -> Code {
        *self.shared.state()
    }

    /// Gives the thread a group of operations, to be done together.
    pub fn submit(&self, operations: Vec<Operation>) -> Result<(), Error> {
        let streams: Vec<usize> = operations.iter().map(|operation| operation.stream).collect();
        streams.iter().for_each(|&stream| stream::begin(stream));
        self.hand_over(Job::Group(operations)).inspect_err(|_| end_all(&streams))
    }

    fn hand_over(&self, job: Job) -> Result<(), Error> {
        let mut state = self.shared.state();
        match *state {
            SUCCESS => *state = IN_PROGRESS,
            IN_PROGRESS => {
                let message =
                    "Attempt to use communicator before the previous operation returned ncclSuccess";
                return Err(Error::new(INVALID_ARGUMENT, message));
            }
            code => return Err(Error::new(code, "the communicator has failed")),
        }
        let gone = || Error::new(SYSTEM_ERROR, "the communicator's thread has ended");
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(gone)
    }

    /// Waits until nothing is in progress, for callers of a blocking communicator.
    pub fn wait(&self) -> Code {
        let mut state = self.shared.state();
        while *state == IN_PROGRESS {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state
    }

    pub fn finalize(&mut self) -> Result<(), Error> {
        self.is_finalized = true;
        self.hand_over(Job::Finalize)
    }

    /// In order: a communicator that was not finalized is now.
    pub fn destroy(mut self) -> Code {
        if !self.is_finalized && self.state() == SUCCESS && self.finalize().is_ok() {
            self.wait();
        }
        self.wait_if_finalizing()
    }

    fn wait_if_finalizing(&self) -> Code {
        match self.is_finalized {
            true => self.wait(),
            false => SUCCESS,
        }
    }

    /// Ends whatever is in progress.
    pub fn abort(self) {
        drop(self);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.magic = 0;
        self.shared.stop.store(true, Relaxed);
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread.
struct Worker {
    rank: usize,
    ranks: usize,
    fault: Option<Fault>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self, id: &UniqueId, inbox: &Receiver<Job>) {
        let stop = &self.shared.stop;
        let mesh = match Mesh::connect(id, self.rank, self.ranks, stop) {
            Ok(mesh) => mesh,
            Err(error) => return self.shared.settle(Err(error)),
        };
        for peer in (0..self.ranks).filter(|&peer| peer != self.rank) {
            log::info(&format!("Channel 00/0 : {}[0] -> {peer}[0] via SHM/double", self.rank));
        }
        self.shared.settle(Ok(()));
        for (job, number) in inbox.iter().zip(1u64..) {
            let result = match job {
                Job::Group(operations) => match self.strike(number, &mesh) {
                    Struck::Nothing => {
                        self.execute(&mesh, &operations, self.fault == Some(Fault::Wrong(number)))
                    }
                    Struck::Error(error) => {
                        end_all(&operations.iter().map(|operation| operation.stream).collect::<Vec<_>>());
                        Err(error)
                    }
                    // The caller sees its operation in progress for ever, or until it aborts.
                    Struck::Gone => continue,
                },
                Job::Finalize => self.say_good_bye(&mesh),
            };
            self.shared.settle(result);
        }
    }

    fn strike(&self, number: u64, mesh: &Mesh) -> Struck {
        match self.fault {
            Some(Fault::Lost(at)) if number >= at => {
                mesh.hang_up();
                Struck::Gone
            }
            Some(Fault::Silent(at)) if number >= at => Struck::Gone,
            Some(Fault::Error(at)) if number == at => Struck::Error(Error::new(
                SYSTEM_ERROR,
                "NET/double : Got completion from peer with status=12",
            )),
            Some(Fault::Slow(by)) => {
                std::thread::sleep(by);
                Struck::Nothing
            }
            _ => Struck::Nothing,
        }
    }

    /// Does a group, and lets its streams know.
    fn execute(&self, mesh: &Mesh, operations: &[Operation], wrongly: bool) -> Result<(), Error> {
        // SAFETY: whoever called keeps the memory until the stream is done.
        let mut apart: Vec<Vec<u8>> = operations
            .iter()
            .map(|operation| unsafe { operation.place_apart(self.rank, self.ranks) })
            .collect();
        let moved = |(operation, place): (&Operation, &mut Vec<u8>)| match operation.stream {
            stream::DEFAULT => *operation,
            _ => Operation { receive: place.as_mut_ptr() as usize, ..*operation },
        };
        let moved: Vec<Operation> = operations.iter().zip(&mut apart).map(moved).collect();
        let result = self.exchange(mesh, &moved, wrongly);
        for (operation, bytes) in operations.iter().zip(apart) {
            let delivery = Delivery { address: operation.receive, bytes };
            stream::end(operation.stream, result.is_ok().then_some(delivery));
        }
        result
    }

    /// Messages and arithmetic of a group.
    fn exchange(&self, mesh: &Mesh, operations: &[Operation], wrongly: bool) -> Result<(), Error> {
        let messages: Vec<Messages> =
            operations.iter().map(|operation| operation.messages(self.rank, self.ranks)).collect();
        let sends: Vec<Transfer> = messages.iter().flat_map(|messages| messages.sends.clone()).collect();
        let receives: Vec<Transfer> =
            messages.iter().flat_map(|messages| messages.receives.clone()).collect();
        mesh.exchange(&sends, &receives, &self.shared.stop)?;
        if let Some(message) = receives.iter().find(|message| wrongly && message.bytes > 2) {
            // SAFETY: received just now, so the memory is there. In fp32 a bit of the fraction.
            unsafe { *((message.address + 2) as *mut u8) ^= 1 };
        }
        // SAFETY: whoever called keeps the memory until the state says that the operation is done.
        unsafe {
            copy_to_self(operations, self.rank)?;
            for (operation, messages) in operations.iter().zip(&messages) {
                operation.finish(messages, self.rank, self.ranks);
            }
        }
        Ok(())
    }

    /// Nobody leaves before all have finished.
    fn say_good_bye(&self, mesh: &Mesh) -> Result<(), Error> {
        let others = (0..self.ranks).filter(|&peer| peer != self.rank);
        let message = |peer| Transfer { peer, call: FINALIZE, address: 0, bytes: 0 };
        let messages: Vec<Transfer> = others.map(message).collect();
        mesh.exchange(&messages, &messages, &self.shared.stop)
    }
}

/// Nothing is delivered.
fn end_all(streams: &[usize]) {
    streams.iter().for_each(|&stream| stream::end(stream, None));
}

enum Struck {
    Nothing,
    Error(Error),
    Gone,
}
