//! How ranks exchange data: one trait, an implementation without communication, one over MPI, and one over NCCL and MPI.

mod call;
mod check;
mod commons;
mod doing;
mod flight;
mod inquiry;
mod mpi;
pub mod nccl;
mod patience;
mod region;
mod side_channel;
mod solo;
mod watchdog;

#[cfg(test)]
pub use self::commons::in_one_process as commons_in_one_process;
pub use self::mpi::MpiComm;
/// The level of thread support that an MPI gives.
pub use ::mpi::Threading;
pub use commons::Commons;
pub use doing::ranks_text;
use lockstep_record::RunDir;
pub use region::{Region, RegionMut};
pub use solo::SoloComm;
use tch::Device;

use crate::grad::home::Home;
use crate::torch::TorchError;

/// A collective that failed on this rank.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    #[error("{operation}: {reason}")]
    Failed { operation: &'static str, reason: String },
    #[error(
        "{operation}: {elements} elements in one message, but MPI counts to {}; lower parallel.bucket_mb",
        i32::MAX
    )]
    TooLarge { operation: &'static str, elements: usize },
    /// The way to the other ranks is broken, here or elsewhere: nothing can be sent any more.
    #[error("{operation}: {reason}")]
    Broken { operation: &'static str, reason: String },
    /// All ranks have this error, before anything was connected: something is missing or does not fit.
    #[error("{message}")]
    Refused { message: String },
    /// All ranks have this error, and no data have moved.
    #[error("{message}\nNo data have moved; this is a bug, found before it could do harm")]
    Mismatch { message: String },
    /// What is done with a bucket before it travels, or after.
    #[error(transparent)]
    Arithmetic(#[from] TorchError),
}

/// A message to another rank.
pub struct Outgoing<'a> {
    pub to: usize,
    pub region: Region<'a>,
}

/// A place for what another rank sends.
pub struct Incoming<'a> {
    pub from: usize,
    pub region: RegionMut<'a>,
}

/// What the strategies are made of. All ranks make the same calls in the same order; each call returns when this
/// rank's part is done.
pub trait Comm {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// Among the ranks of this machine, from 0: which of its devices is this rank's.
    fn local_rank(&self) -> usize {
        0
    }

    /// As the run record spells it: `solo`, `mpi`, `nccl`, `nccl-double`.
    fn name(&self) -> &'static str;

    /// Where buckets should lie if the model computes on `device`: only from and to there does this move them.
    fn home(&self, _device: Device) -> Home {
        Home::Host
    }

    /// The same ranks once more, for a communication thread: what is called there and here does not mix. None where
    /// there is nobody to talk to, or where the library lets only one thread talk.
    fn for_another_thread(&self) -> Result<Option<Box<dyn Comm + Send>>, CommError>;

    /// Loads what gradients and parameters move through, where that is not MPI itself, and gives each rank its device; all
    /// ranks call it first.
    fn prepare(&self) -> Result<(), CommError> {
        Ok(())
    }

    /// Connects what gradients and parameters move through, where that is not MPI itself; all ranks call it, after
    /// [`Comm::record_to`] and before the first step.
    fn connect(&self) -> Result<(), CommError> {
        Ok(())
    }

    /// Of the NCCL that data move through, if they do.
    fn nccl(&self) -> Option<nccl::NcclFacts> {
        None
    }

    /// The training begins a step. This and [`Comm::at_bucket`] are for messages and the flight recorder only.
    fn at_step(&self, _step: u64) {}

    /// What moves from now on outside of [`Comm::all_gather_bytes`], [`Comm::broadcast`] and [`Comm::barrier`] is about
    /// this bucket.
    fn at_bucket(&self, _bucket: usize) {}

    /// Where this rank's flight recorder is written if the run breaks; all ranks call it, before the first step.
    fn record_to(&self, _run: &RunDir) {}

    /// Memory for this many fp32 numbers that all ranks see; all ranks call it. None where they are not all on one host; an
    /// error in words, the same one on all ranks, where it cannot be had.
    fn commons(&self, _elements: usize) -> Result<Option<Result<Commons, String>>, CommError> {
        Ok(None)
    }

    /// Until all ranks have come here: what each has written to the commons before, all can read then. A collective on
    /// `elements` numbers, the same on all ranks, for which this rank would otherwise have sent `bytes`.
    fn meet(
        &self,
        operation: &'static str,
        _commons: &Commons,
        _elements: usize,
        _bytes: usize,
    ) -> Result<(), CommError> {
        Err(CommError::Failed { operation, reason: "these ranks share no memory".into() })
    }

    /// How freely threads may use MPI; none without MPI.
    fn thread_level(&self) -> Option<Threading> {
        None
    }

    /// Sends and receives at once, all of it on its way together. What a rank sends to another arrives in the order
    /// sent. Messages to oneself are not allowed. `operation` is what this is called in messages.
    fn exchange(
        &self,
        operation: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError>;

    /// Bytes that this rank has sent in [`Comm::exchange`] so far, or would have sent but for [`Comm::meet`].
    fn bytes_sent(&self) -> u64;

    /// Sums fp32 numbers over all ranks, in place, in an order of the library's choice.
    fn all_reduce_native(&self, buffer: RegionMut<'_>) -> Result<(), CommError>;

    /// Sums fp32 numbers over all ranks in an order of the library's choice; rank r gets `counts[r]` of them.
    fn reduce_scatter_native(
        &self,
        send: Region<'_>,
        recv: RegionMut<'_>,
        counts: &[usize],
    ) -> Result<(), CommError>;

    /// Everybody's message, in rank order. Lengths may differ. `what`, of at most 24 bytes, tells this gather from others: in
    /// messages, in the flight recorder, and where `parallel.check_collectives` is on.
    fn all_gather_bytes(&self, what: &'static str, send: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;

    /// Rank `root`'s bytes to everybody.
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError>;

    fn barrier(&self) -> Result<(), CommError>;

    /// Ends all ranks at once with this exit code.
    fn abort(&self, exit_code: i32) -> !;
}

/// The first error of any rank, as `rank r: message`, for everybody: so that all ranks leave together, and one of
/// them can say why.
pub fn agree(comm: &dyn Comm, mine: Result<(), String>) -> Result<Result<(), String>, CommError> {
    let mut message = vec![u8::from(mine.is_err())];
    message.extend(mine.err().unwrap_or_default().into_bytes());
    let all = comm.all_gather_bytes("agreement", &message)?;
    let failed = all.iter().enumerate().find(|(_, message)| message.first() == Some(&1));
    Ok(match failed {
        None => Ok(()),
        Some((rank, message)) => Err(format!("rank {rank}: {}", String::from_utf8_lossy(&message[1..]))),
    })
}

/// Ends all ranks of the MPI world, if there is one: for a process that cannot go on and holds no communicator.
pub fn abort_world(exit_code: i32) {
    mpi::abort_if_started(exit_code);
}
