//! Collectives over MPI. The calls go through the C interface, because the safe one drops return codes.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator;

use super::watchdog::Watchdog;
use super::{Comm, CommError};

/// All ranks of an MPI world. MPI is finalised when it is dropped.
pub struct MpiComm {
    rank: usize,
    size: usize,
    watchdog: Watchdog,
    _universe: Universe,
}

impl MpiComm {
    /// Starts MPI. `timeout` is the longest that a collective may take.
    pub fn start(timeout: Duration) -> Result<Self, CommError> {
        let failed = |reason: String| CommError::Failed { operation: "MPI_Init", reason };
        let (universe, _) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or_else(|| failed("MPI was already initialised".into()))?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        // SAFETY: MPI is initialised; errors then come back as return codes instead of ending the process.
        unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
        let watchdog =
            Watchdog::start(rank, timeout, end_all_ranks).map_err(|error| failed(error.to_string()))?;
        Ok(Self { rank, size, watchdog, _universe: universe })
    }

    /// Name and version of the MPI library, for example `Open MPI v4.1.4`.
    pub fn library_version() -> String {
        let text = mpi::environment::library_version().unwrap_or_default();
        text.split(',').next().unwrap_or_default().trim().to_owned()
    }

    fn call(&self, operation: &'static str, call: impl FnOnce() -> c_int) -> Result<(), CommError> {
        let _watch = self.watchdog.watch(operation);
        match call() {
            0 => Ok(()),
            code => Err(CommError::Failed { operation, reason: describe(code) }),
        }
    }
}

fn end_all_ranks(exit_code: i32) {
    // SAFETY: callable from any thread: MPI was started with MPI_THREAD_MULTIPLE, and nothing follows it.
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

fn describe(code: c_int) -> String {
    let mut text = [0u8; 1024];
    let mut length: c_int = 0;
    // SAFETY: the buffer is larger than any MPI library's MPI_MAX_ERROR_STRING.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    String::from_utf8_lossy(&text[..length.clamp(0, 1023) as usize]).into_owned()
}

/// MPI's counts and displacements of messages that lie back to back.
fn layout(
    operation: &'static str,
    counts: &[usize],
    buffer: usize,
) -> Result<(Vec<c_int>, Vec<c_int>), CommError> {
    let total: usize = counts.iter().sum();
    assert_eq!(total, buffer, "{operation}: counts and buffer disagree");
    if total > i32::MAX as usize {
        return Err(CommError::TooLarge { operation, elements: total });
    }
    let offsets = counts.iter().scan(0, |end, &count| {
        let start = *end;
        *end += count as c_int;
        Some(start)
    });
    Ok((counts.iter().map(|&count| count as c_int).collect(), offsets.collect()))
}

fn read<T>(slice: &[T]) -> *const c_void {
    slice.as_ptr().cast()
}

fn write<T>(slice: &mut [T]) -> *mut c_void {
    slice.as_mut_ptr().cast()
}

// SAFETY of every call below: the buffers live across the (blocking) call and are as long as the counts say, which
// `layout` has checked; MPI is initialised as long as `self` lives.
impl Comm for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn name(&self) -> &'static str {
        "mpi"
    }

    fn all_to_all(
        &self,
        send: &[f32],
        send_counts: &[usize],
        recv: &mut [f32],
        recv_counts: &[usize],
    ) -> Result<(), CommError> {
        let operation = "all-to-all";
        let (send_counts, send_offsets) = layout(operation, send_counts, send.len())?;
        let (recv_counts, recv_offsets) = layout(operation, recv_counts, recv.len())?;
        self.call(operation, || unsafe {
            ffi::MPI_Alltoallv(
                read(send),
                send_counts.as_ptr(),
                send_offsets.as_ptr(),
                ffi::RSMPI_FLOAT,
                write(recv),
                recv_counts.as_ptr(),
                recv_offsets.as_ptr(),
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn all_gather(&self, send: &[f32], recv: &mut [f32], counts: &[usize]) -> Result<(), CommError> {
        let operation = "all-gather";
        let (counts, offsets) = layout(operation, counts, recv.len())?;
        self.call(operation, || unsafe {
            ffi::MPI_Allgatherv(
                read(send),
                send.len() as c_int,
                ffi::RSMPI_FLOAT,
                write(recv),
                counts.as_ptr(),
                offsets.as_ptr(),
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn all_reduce_native(&self, buffer: &mut [f32]) -> Result<(), CommError> {
        let operation = "all-reduce";
        let (counts, _) = layout(operation, &[buffer.len()], buffer.len())?;
        let send = buffer.to_vec();
        self.call(operation, || unsafe {
            ffi::MPI_Allreduce(
                read(&send),
                write(buffer),
                counts[0],
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn reduce_scatter_native(
        &self,
        send: &[f32],
        recv: &mut [f32],
        counts: &[usize],
    ) -> Result<(), CommError> {
        let operation = "reduce-scatter";
        let (counts, _) = layout(operation, counts, send.len())?;
        self.call(operation, || unsafe {
            ffi::MPI_Reduce_scatter(
                read(send),
                write(recv),
                counts.as_ptr(),
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn all_gather_bytes(&self, send: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let operation = "all-gather of messages";
        let (mine, _) = layout(operation, &[send.len()], send.len())?;
        let mut counts = vec![0 as c_int; self.size];
        self.call(operation, || unsafe {
            ffi::MPI_Allgather(
                read(&mine),
                1,
                ffi::RSMPI_INT32_T,
                write(&mut counts),
                1,
                ffi::RSMPI_INT32_T,
                ffi::RSMPI_COMM_WORLD,
            )
        })?;
        let lengths: Vec<usize> = counts.iter().map(|&count| count as usize).collect();
        let mut all = vec![0u8; lengths.iter().sum()];
        let (counts, offsets) = layout(operation, &lengths, all.len())?;
        self.call(operation, || unsafe {
            ffi::MPI_Allgatherv(
                read(send),
                mine[0],
                ffi::RSMPI_UINT8_T,
                write(&mut all),
                counts.as_ptr(),
                offsets.as_ptr(),
                ffi::RSMPI_UINT8_T,
                ffi::RSMPI_COMM_WORLD,
            )
        })?;
        let mut rest = all.as_slice();
        let message = |length: &usize| {
            let (head, tail) = rest.split_at(*length);
            rest = tail;
            head.to_vec()
        };
        Ok(lengths.iter().map(message).collect())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        const CHUNK: usize = 1 << 30;
        for chunk in bytes.chunks_mut(CHUNK) {
            self.call("broadcast", || unsafe {
                ffi::MPI_Bcast(
                    write(chunk),
                    chunk.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    root as c_int,
                    ffi::RSMPI_COMM_WORLD,
                )
            })?;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.call("barrier", || unsafe { ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD) })
    }

    fn abort(&self, exit_code: i32) -> ! {
        end_all_ranks(exit_code);
        std::process::exit(exit_code)
    }
}
