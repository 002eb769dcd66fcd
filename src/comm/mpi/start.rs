//! MPI's beginning and end.

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::Arc;
use std::time::Duration;

use mpi::Threading;
use mpi::ffi;
use mpi::topology::Communicator;

use super::{MESSAGE_BYTES, MpiComm};
use crate::comm::CommError;
use crate::comm::patience::Pace;
use crate::comm::side_channel::SideChannel;
use crate::comm::watchdog::Watchdog;
use crate::config::schema::{MpiThreads, Parallel};

/// Bytes in the KiB of `parallel.message_kb`.
const KIB: usize = 1024;

impl MpiComm {
    /// Starts MPI as the configuration says.
    pub fn start(parallel: &Parallel) -> Result<Self, CommError> {
        let timeout = Duration::from_secs_f64(parallel.timeout_s);
        let wanted = match parallel.mpi_threads {
            MpiThreads::Multiple => Threading::Multiple,
            MpiThreads::Serialized => Threading::Serialized,
            MpiThreads::Funneled => Threading::Funneled,
        };
        let failed = |reason: String| CommError::Failed { operation: "MPI_Init", reason };
        let (universe, threading) = mpi::initialize_with_threading(wanted)
            .ok_or_else(|| failed("MPI was already initialised".into()))?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        // `Finalizer` does its work instead, because the universe cannot be sent to another thread.
        std::mem::forget(universe);
        // SAFETY: MPI is initialised; errors then come back as return codes instead of ending the process.
        unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
        let watchdog =
            Watchdog::start(rank, size, timeout, end_all_ranks).map_err(|error| failed(error.to_string()))?;
        // Some libraries give more than was asked for.
        let threading = if (wanted as u8) < threading as u8 { wanted } else { threading };
        let mut comm = Self {
            rank,
            size,
            local_rank: 0,
            one_host: false,
            // SAFETY: MPI is initialised.
            communicator: unsafe { ffi::RSMPI_COMM_WORLD },
            pace: Pace::Eager,
            threading,
            turn: (threading == Threading::Serialized).then(Arc::default),
            check_collectives: parallel.check_collectives,
            message_bytes: MESSAGE_BYTES,
            watchdog: Arc::new(watchdog),
            bytes_sent: Cell::new(0),
            _finalizer: Some(Finalizer),
        };
        let (local_rank, local_size) = comm.place_on_host()?;
        comm.local_rank = local_rank;
        comm.one_host = local_size == size;
        // Some ranks cannot share memory.
        if local_size < size {
            comm.message_bytes = parallel.message_kb * KIB;
        }
        if threading == Threading::Multiple {
            let _watch = comm.watchdog.watch(comm.control("set-up of communicators", 0));
            comm.watchdog.connect(SideChannel::duplicate(rank, size)?);
        }
        Ok(comm)
    }

    /// Name and version of the MPI library, for example `Open MPI v4.1.4`.
    pub fn library_version() -> String {
        let text = mpi::environment::library_version().unwrap_or_default();
        text.split(',').next().unwrap_or_default().trim().to_owned()
    }

    /// This rank's number among those that can share memory with it, and how many those are. All ranks call it.
    fn place_on_host(&self) -> Result<(usize, usize), CommError> {
        let operation = "set-up of communicators";
        let _watch = self.watchdog.watch(self.control(operation, 0));
        // SAFETY: MPI is initialised; the new communicator is given back before the function returns.
        unsafe {
            let (mut host, mut rank, mut ranks): (_, c_int, c_int) = (self.communicator, 0, 0);
            let kind = ffi::RSMPI_COMM_TYPE_SHARED;
            self.call(operation, || {
                ffi::MPI_Comm_split_type(self.communicator, kind, 0, ffi::RSMPI_INFO_NULL, &mut host)
            })?;
            self.call(operation, || ffi::MPI_Comm_rank(host, &mut rank))?;
            self.call(operation, || ffi::MPI_Comm_size(host, &mut ranks))?;
            self.call(operation, || ffi::MPI_Comm_free(&mut host))?;
            Ok((rank as usize, ranks as usize))
        }
    }
}

/// Finalises MPI when it is dropped.
pub(super) struct Finalizer;

impl Drop for Finalizer {
    fn drop(&mut self) {
        // SAFETY: MPI was initialised, and the communication thread has been joined.
        unsafe { ffi::MPI_Finalize() };
    }
}

pub(super) fn end_all_ranks(exit_code: i32) {
    // SAFETY: MPI is initialised, and nothing follows. Less than MPI_THREAD_MULTIPLE would not allow it from every thread,
    // but the alternative is to hang.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, exit_code) };
}

/// Ends all ranks if MPI runs.
pub fn abort_if_started(exit_code: i32) {
    let (mut started, mut finished): (c_int, c_int) = (0, 0);
    // SAFETY: both questions may be asked at any time.
    unsafe {
        ffi::MPI_Initialized(&mut started);
        ffi::MPI_Finalized(&mut finished);
    }
    if started != 0 && finished == 0 {
        end_all_ranks(exit_code);
    }
}
