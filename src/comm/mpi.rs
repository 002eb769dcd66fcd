//! Collectives over MPI. The calls go through the C interface, because the safe one drops return codes.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use lockstep_record::RunDir;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator;

use super::call::{Call, Channel};
use super::check::{self, Lengths, Peers};
use super::side_channel::SideChannel;
use super::watchdog::Watchdog;
use super::{Comm, CommError};
use crate::mutate::{Mutation, active};

/// All ranks of an MPI world. MPI is finalised when it is dropped.
pub struct MpiComm {
    rank: usize,
    size: usize,
    threads: Threading,
    check_collectives: bool,
    watchdog: Watchdog,
    _universe: Universe,
}

impl MpiComm {
    /// Starts MPI. `timeout` is the longest that a collective may take; `check_collectives` makes the ranks compare
    /// each of them before data move.
    pub fn start(timeout: Duration, check_collectives: bool) -> Result<Self, CommError> {
        let failed = |reason: String| CommError::Failed { operation: "MPI_Init", reason };
        let asked = if active(Mutation::FunneledThreads) { Threading::Funneled } else { Threading::Multiple };
        let (universe, threads) = mpi::initialize_with_threading(asked)
            .ok_or_else(|| failed("MPI was already initialised".into()))?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        // SAFETY: MPI is initialised; errors then come back as return codes instead of ending the process.
        unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
        let watchdog =
            Watchdog::start(rank, size, timeout, end_all_ranks).map_err(|error| failed(error.to_string()))?;
        let comm = Self { rank, size, threads, check_collectives, watchdog, _universe: universe };
        if threads >= Threading::Multiple {
            let _watch = comm.watchdog.watch(comm.control("set-up of communicators", &[]));
            comm.watchdog.connect(SideChannel::duplicate(rank, size)?);
        }
        Ok(comm)
    }

    /// Name and version of the MPI library, for example `Open MPI v4.1.4`.
    pub fn library_version() -> String {
        let text = mpi::environment::library_version().unwrap_or_default();
        text.split(',').next().unwrap_or_default().trim().to_owned()
    }

    /// A collective on gradients or parameters.
    fn data(&self, operation: &'static str, send: &[f32]) -> Call {
        let bucket = self.watchdog.position().bucket();
        let bytes = size_of_val(send);
        Call { operation, elements: send.len(), bytes, dtype: "f32", bucket, channel: Channel::Data }
    }

    /// A collective on messages.
    fn control(&self, operation: &'static str, send: &[u8]) -> Call {
        let bytes = send.len();
        Call { operation, elements: bytes, bytes, dtype: "u8", bucket: None, channel: Channel::Control }
    }

    /// Runs one collective under the watchdog's eye, after the ranks have agreed on it if they are to.
    fn call(&self, call: Call, lengths: Lengths, run: impl FnOnce() -> c_int) -> Result<(), CommError> {
        let watch = self.watchdog.watch(call);
        let result = self.check(&call, lengths).and_then(|()| checked(call.operation, run()));
        if result.is_err() {
            watch.fail();
        }
        result
    }

    fn check(&self, call: &Call, lengths: Lengths) -> Result<(), CommError> {
        if !self.check_collectives {
            return Ok(());
        }
        let sequence = self.watchdog.sequence(call.channel);
        check::check(self, call, sequence, self.watchdog.position().step(), lengths)
    }
}

/// The exchanges of the check travel as the collective itself does.
impl Peers for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn all_gather(&self, mine: &[u8]) -> Result<Vec<u8>, CommError> {
        let mut all = vec![0u8; mine.len() * self.size];
        let (length, bytes) = (mine.len() as c_int, unsafe { ffi::RSMPI_UINT8_T });
        // SAFETY: the buffers live across the call; a check's messages have one length on all ranks.
        let code = unsafe {
            ffi::MPI_Allgather(
                read(mine),
                length,
                bytes,
                write(&mut all),
                length,
                bytes,
                ffi::RSMPI_COMM_WORLD,
            )
        };
        checked("check of a collective", code).map(|()| all)
    }

    fn all_to_all(&self, mine: &[c_int]) -> Result<Vec<c_int>, CommError> {
        let mut all = vec![0 as c_int; self.size];
        let count = unsafe { ffi::RSMPI_INT32_T };
        // SAFETY: the buffers live across the call; each holds one count a rank.
        let code = unsafe {
            ffi::MPI_Alltoall(read(mine), 1, count, write(&mut all), 1, count, ffi::RSMPI_COMM_WORLD)
        };
        checked("check of a collective", code).map(|()| all)
    }
}

/// The return code of an MPI function as a result.
fn checked(operation: &'static str, code: c_int) -> Result<(), CommError> {
    match code {
        0 => Ok(()),
        code => Err(CommError::Failed { operation, reason: describe(code) }),
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

/// MPI's own words for an error.
pub fn describe(code: c_int) -> String {
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

/// Where MPI reads from. Rust's empty slice of bytes lies at address 1, which is Open MPI's MPI_IN_PLACE,
/// so an empty slice is given another address.
fn read<T>(slice: &[T]) -> *const c_void {
    match slice.is_empty() {
        true => std::ptr::dangling::<u64>().cast(),
        false => slice.as_ptr().cast(),
    }
}

/// Where MPI writes to; see [`read`].
fn write<T>(slice: &mut [T]) -> *mut c_void {
    match slice.is_empty() {
        true => std::ptr::dangling_mut::<u64>().cast(),
        false => slice.as_mut_ptr().cast(),
    }
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

    fn at_step(&self, step: u64) {
        self.watchdog.position().at_step(step);
    }

    fn at_bucket(&self, bucket: usize) {
        self.watchdog.position().at_bucket(bucket);
    }

    fn record_to(&self, run: &RunDir) {
        self.watchdog.record_to(run);
    }

    fn thread_level(&self) -> Option<Threading> {
        Some(self.threads)
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
        let lengths = Lengths::Pairs { send: &send_counts, receive: &recv_counts };
        self.call(self.data(operation, send), lengths, || unsafe {
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
        self.call(self.data(operation, send), Lengths::PerRank(&counts), || unsafe {
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
        self.call(self.data(operation, &send), Lengths::Equal, || unsafe {
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
        self.call(self.data(operation, send), Lengths::Equal, || unsafe {
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
        let prefix = size_of::<c_int>();
        let lengths_first = Call { elements: prefix, bytes: prefix, ..self.control(operation, send) };
        self.call(lengths_first, Lengths::Equal, || unsafe {
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
        self.call(self.control(operation, send), Lengths::PerRank(&counts), || unsafe {
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
            self.call(self.control("broadcast", chunk), Lengths::Equal, || unsafe {
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
        let barrier = self.control("barrier", &[]);
        self.call(barrier, Lengths::Equal, || unsafe { ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD) })
    }

    fn abort(&self, exit_code: i32) -> ! {
        end_all_ranks(exit_code);
        std::process::exit(exit_code)
    }
}
