//! Collectives over MPI. The calls go through the C interface, because the safe one drops return codes. Each starts a
//! non-blocking operation and looks after it politely until it is done: see [`super::patience`].

mod arguments;
mod start;

use std::cell::Cell;
use std::ffi::{OsStr, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lockstep_record::RunDir;
use mpi::Threading;
use mpi::ffi;

use super::call::{Call, Channel};
use super::check::{self, Lengths, Peers};
use super::commons::Commons;
use super::patience::{Pace, Patience};
use super::watchdog::Watchdog;
use super::{Comm, CommError, Incoming, Outgoing, Region, RegionMut, agree};
use arguments::{count, layout, read, write};
use start::{Finalizer, end_all_ranks};

pub use arguments::describe;
pub use start::abort_if_started;

/// Bytes that travel as one MPI message at most: its counts are 32 bits. Between hosts, `parallel.message_kb` is less.
const MESSAGE_BYTES: usize = 1 << 30;
/// All messages have the same tag: between two ranks they arrive in the order sent.
const TAG: c_int = 0;

/// All ranks of an MPI world, for one thread.
pub struct MpiComm {
    rank: usize,
    size: usize,
    /// Among the ranks that share memory with this one.
    local_rank: usize,
    /// Whether all ranks do.
    one_host: bool,
    communicator: ffi::MPI_Comm,
    pace: Pace,
    threading: Threading,
    /// Held during each call into MPI where the library lets threads take turns only.
    turn: Option<Arc<Mutex<()>>>,
    check_collectives: bool,
    /// Of an exchange, at most: the same on all ranks.
    message_bytes: usize,
    watchdog: Arc<Watchdog>,
    bytes_sent: Cell<u64>,
    /// Of the training thread's. It is dropped after the watchdog, whose thread must ask MPI nothing then.
    _finalizer: Option<Finalizer>,
}

// SAFETY: a communicator's handle may be used from any thread; `turn` keeps threads apart where MPI needs that, and
// `for_another_thread` gives none where MPI wants a single thread.
unsafe impl Send for MpiComm {}

impl MpiComm {
    pub(in crate::comm) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    /// A collective on gradients or parameters.
    pub(in crate::comm) fn data(&self, operation: &'static str, elements: usize) -> Call {
        let bucket = self.watchdog.position().bucket();
        Call { operation, elements, bytes: 4 * elements, dtype: "f32", bucket, channel: Channel::Data }
    }

    /// A collective on messages, of this many bytes from this rank.
    pub(in crate::comm) fn control(&self, operation: &'static str, bytes: usize) -> Call {
        Call { operation, elements: bytes, bytes, dtype: "u8", bucket: None, channel: Channel::Control }
    }

    /// One call into MPI.
    fn call(&self, operation: &'static str, call: impl FnOnce() -> c_int) -> Result<(), CommError> {
        let _turn = self.turn.as_deref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        match call() {
            0 => Ok(()),
            code => Err(CommError::Failed { operation, reason: describe(code) }),
        }
    }

    /// One collective under the watchdog's eye, after the ranks have agreed on it if they are to.
    pub(in crate::comm) fn guarded(
        &self,
        call: Call,
        lengths: Lengths,
        body: impl FnOnce() -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let watch = self.watchdog.watch(call);
        let result = self.check(&call, lengths).and_then(|()| body());
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

    /// One collective of MPI's.
    fn run(
        &self,
        call: Call,
        lengths: Lengths,
        start: impl FnOnce(*mut ffi::MPI_Request) -> c_int,
    ) -> Result<(), CommError> {
        self.guarded(call, lengths, || self.complete(call.operation, start))
    }

    /// Starts one operation and waits for it.
    fn complete(
        &self,
        operation: &'static str,
        start: impl FnOnce(*mut ffi::MPI_Request) -> c_int,
    ) -> Result<(), CommError> {
        // SAFETY: the constant of MPI.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        self.call(operation, || start(&mut request))?;
        self.wait(operation, &mut [request])
    }

    /// All messages of an exchange on their way together.
    fn swap(
        &self,
        operation: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError> {
        let bytes = unsafe { ffi::RSMPI_UINT8_T };
        // All before any: what is on its way must stay where it is.
        let letters = sends.iter().map(|send| Ok((send.to as c_int, send.region.host(operation)?)));
        let letters: Vec<(c_int, &[u8])> = letters.collect::<Result<_, CommError>>()?;
        let places = recvs.iter_mut().map(|recv| Ok((recv.from as c_int, recv.region.host(operation)?)));
        let places: Vec<(c_int, &mut [u8])> = places.collect::<Result<_, CommError>>()?;
        let mut requests = Vec::new();
        let mut post = |start: &dyn Fn(*mut ffi::MPI_Request) -> c_int| {
            // SAFETY: the constant of MPI.
            let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
            self.call(operation, || start(&mut request))?;
            requests.push(request);
            Ok::<(), CommError>(())
        };
        for (from, place) in places {
            for chunk in place.chunks_mut(self.message_bytes) {
                let (place, length) = (write(chunk), chunk.len() as c_int);
                post(&|request| unsafe {
                    ffi::MPI_Irecv(place, length, bytes, from, TAG, self.communicator, request)
                })?;
            }
        }
        for (to, letter) in letters {
            self.bytes_sent.update(|sent| sent + letter.len() as u64);
            for chunk in letter.chunks(self.message_bytes) {
                let (place, length) = (read(chunk), chunk.len() as c_int);
                post(&|request| unsafe {
                    ffi::MPI_Isend(place, length, bytes, to, TAG, self.communicator, request)
                })?;
            }
        }
        self.wait(operation, &mut requests)
    }

    /// An exchange under the watchdog's eye, whatever carries it.
    pub(in crate::comm) fn guarded_exchange<'a>(
        &self,
        operation: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'a>],
        body: impl FnOnce(&mut [Incoming<'a>]) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let send = self.bytes_by_rank(sends.iter().map(|send| (send.to, send.region.len())));
        let receive = self.bytes_by_rank(recvs.iter().map(|recv| (recv.from, recv.region.len())));
        let bytes = sends.iter().map(|send| send.region.len()).sum();
        let call = Call { elements: bytes, bytes, dtype: "u8", ..self.data(operation, 0) };
        let lengths = Lengths::Pairs { send: &send, receive: &receive };
        self.guarded(call, lengths, || body(recvs))
    }

    /// Creates memory that all ranks have in common: the first one a file, which all of them map.
    fn share_memory(&self, elements: usize) -> Result<Result<Commons, String>, CommError> {
        let first = self.rank == 0;
        let file = first.then(|| Commons::create(self.size, elements)).transpose();
        let mut path = Vec::new();
        if let Ok(Some(file)) = &file {
            path.extend_from_slice(file.path().as_os_str().as_bytes());
        }
        let paths = self.all_gather_bytes("set-up of shared memory", &path)?;
        let path = Path::new(OsStr::from_bytes(&paths[0]));
        let opened = match &file {
            Err(error) => Err(error.to_string()),
            Ok(_) => Commons::open(path, self.rank, self.size, elements).map_err(|error| error.to_string()),
        };
        // The file keeps its name until all have opened it.
        let agreed = agree(self, opened.as_ref().map(drop).map_err(Clone::clone))?;
        Ok(agreed.and(opened))
    }

    /// The same ranks once more: see [`Comm::for_another_thread`].
    pub(in crate::comm) fn duplicate(&self) -> Result<Option<Self>, CommError> {
        if self.size == 1 || !matches!(self.threading, Threading::Multiple | Threading::Serialized) {
            return Ok(None);
        }
        let mut communicator = self.communicator;
        let operation = "set-up of communicators";
        self.guarded(self.control(operation, 0), Lengths::Equal, || {
            self.call(operation, || unsafe { ffi::MPI_Comm_dup(self.communicator, &mut communicator) })
        })?;
        let (turn, watchdog) = (self.turn.clone(), Arc::clone(&self.watchdog));
        let bytes_sent = Cell::new(0);
        Ok(Some(Self {
            communicator,
            pace: Pace::Patient,
            turn,
            watchdog,
            bytes_sent,
            _finalizer: None,
            ..*self
        }))
    }

    /// How much goes to each rank, or comes from it, for the check of collectives.
    fn bytes_by_rank(&self, messages: impl Iterator<Item = (usize, usize)>) -> Vec<c_int> {
        let mut bytes = vec![0usize; self.size];
        messages.for_each(|(rank, length)| bytes[rank] += length);
        bytes.into_iter().map(|bytes| c_int::try_from(bytes).unwrap_or(c_int::MAX)).collect()
    }

    /// Until all requests are done. Each that is done is progress to the watchdog.
    fn wait(&self, operation: &'static str, requests: &mut [ffi::MPI_Request]) -> Result<(), CommError> {
        let mut patience = Patience::new(self.pace);
        let mut which = vec![0; requests.len()];
        let mut left = requests.len() as c_int;
        while left > 0 {
            let mut done: c_int = 0;
            // SAFETY: the requests are live or done, and what they read and write is borrowed by the caller of `self`;
            // `which` has room for all.
            self.call(operation, || unsafe {
                ffi::MPI_Testsome(
                    requests.len() as c_int,
                    requests.as_mut_ptr(),
                    &mut done,
                    which.as_mut_ptr(),
                    ffi::RSMPI_STATUSES_IGNORE,
                )
            })?;
            // What was done when it was started counts as inactive, and not as done.
            if done == unsafe { ffi::RSMPI_UNDEFINED } {
                return Ok(());
            }
            if done > 0 {
                left -= done;
                self.watchdog.progressed();
            } else {
                patience.pause();
            }
        }
        Ok(())
    }
}

/// The exchanges of the check travel as the collective itself does.
impl Peers for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn all_gather(&self, mine: &[u8]) -> Result<Vec<u8>, CommError> {
        let mut all = vec![0u8; mine.len() * self.size];
        // SAFETY: the buffers live until the operation is done; a check's messages have one length on all ranks.
        let gather = |request| unsafe {
            let (length, bytes) = (mine.len() as c_int, ffi::RSMPI_UINT8_T);
            let place = write(&mut all);
            ffi::MPI_Iallgather(read(mine), length, bytes, place, length, bytes, self.communicator, request)
        };
        self.complete("check of a collective", gather).map(|()| all)
    }

    fn all_to_all(&self, mine: &[c_int]) -> Result<Vec<c_int>, CommError> {
        let mut all = vec![0 as c_int; self.size];
        // SAFETY: the buffers live until the operation is done; each holds one count a rank.
        let swap = |request| unsafe {
            let count = ffi::RSMPI_INT32_T;
            ffi::MPI_Ialltoall(read(mine), 1, count, write(&mut all), 1, count, self.communicator, request)
        };
        self.complete("check of a collective", swap).map(|()| all)
    }
}

// SAFETY of every call below: `run` and `wait` return only when the operation is done, so the buffers outlive it; they
// are as long as the counts say; MPI is initialised as long as `self` lives. After an error all ranks end.
impl Comm for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn name(&self) -> &'static str {
        "mpi"
    }

    fn for_another_thread(&self) -> Result<Option<Box<dyn Comm + Send>>, CommError> {
        Ok(self.duplicate()?.map(|comm| -> Box<dyn Comm + Send> { Box::new(comm) }))
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
        Some(self.threading)
    }

    fn commons(&self, elements: usize) -> Result<Option<Result<Commons, String>>, CommError> {
        match self.one_host {
            true => self.share_memory(elements).map(Some),
            false => Ok(None),
        }
    }

    fn meet(
        &self,
        operation: &'static str,
        commons: &Commons,
        elements: usize,
        bytes: usize,
    ) -> Result<(), CommError> {
        self.bytes_sent.update(|sent| sent + bytes as u64);
        let call = Call { bytes, ..self.data(operation, elements) };
        self.guarded(call, Lengths::Equal, || {
            let sequence = self.watchdog.sequence(call.channel);
            commons.arrive(&check::signature(&call, sequence, self.watchdog.position().step()));
            let mut patience = Patience::new(self.pace);
            let mut present = 0;
            while present < self.size {
                let now = commons.present();
                match now > present {
                    true => self.watchdog.progressed(),
                    false => patience.pause(),
                }
                present = now;
            }
            // It costs nothing here, whatever `check_collectives` says: a rank that takes the meeting for another one would add up
            // what does not belong together.
            check::compare(&commons.notes())
        })
    }

    fn exchange(
        &self,
        operation: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError> {
        self.guarded_exchange(operation, sends, recvs, |recvs| self.swap(operation, sends, recvs))
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent.get()
    }

    fn all_reduce_native(&self, mut buffer: RegionMut<'_>) -> Result<(), CommError> {
        let operation = "all-reduce";
        let buffer = buffer.host(operation)?;
        let send: Vec<f32> = buffer.as_chunks().0.iter().map(|&number| f32::from_ne_bytes(number)).collect();
        let elements = count(operation, send.len())?;
        self.run(self.data(operation, send.len()), Lengths::Equal, |request| unsafe {
            ffi::MPI_Iallreduce(
                read(&send),
                write(buffer),
                elements,
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                self.communicator,
                request,
            )
        })
    }

    fn reduce_scatter_native(
        &self,
        send: Region<'_>,
        mut recv: RegionMut<'_>,
        counts: &[usize],
    ) -> Result<(), CommError> {
        let operation = "reduce-scatter";
        let (send, recv) = (send.host(operation)?, recv.host(operation)?);
        let elements = counts.iter().sum::<usize>();
        assert_eq!((send.len(), recv.len()), (4 * elements, 4 * counts[self.rank]));
        let (counts, _) = layout(operation, counts)?;
        self.run(self.data(operation, elements), Lengths::Equal, |request| unsafe {
            ffi::MPI_Ireduce_scatter(
                read(send),
                write(recv),
                counts.as_ptr(),
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                self.communicator,
                request,
            )
        })
    }

    fn all_gather_bytes(&self, operation: &'static str, send: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let mine = [count(operation, send.len())?];
        let mut counts = vec![0 as c_int; self.size];
        let lengths_first = self.control(operation, size_of::<c_int>());
        self.run(lengths_first, Lengths::Equal, |request| unsafe {
            ffi::MPI_Iallgather(
                read(&mine),
                1,
                ffi::RSMPI_INT32_T,
                write(&mut counts),
                1,
                ffi::RSMPI_INT32_T,
                self.communicator,
                request,
            )
        })?;
        let lengths: Vec<usize> = counts.iter().map(|&count| count as usize).collect();
        let mut all = vec![0u8; lengths.iter().sum()];
        let (counts, offsets) = layout(operation, &lengths)?;
        let call = self.control(operation, send.len());
        self.run(call, Lengths::PerRank(&counts), |request| unsafe {
            ffi::MPI_Iallgatherv(
                read(send),
                mine[0],
                ffi::RSMPI_UINT8_T,
                write(&mut all),
                counts.as_ptr(),
                offsets.as_ptr(),
                ffi::RSMPI_UINT8_T,
                self.communicator,
                request,
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
        for chunk in bytes.chunks_mut(MESSAGE_BYTES) {
            self.run(self.control("broadcast", chunk.len()), Lengths::Equal, |request| unsafe {
                ffi::MPI_Ibcast(
                    write(chunk),
                    chunk.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    root as c_int,
                    self.communicator,
                    request,
                )
            })?;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        let barrier = self.control("barrier", 0);
        self.run(barrier, Lengths::Equal, |request| unsafe { ffi::MPI_Ibarrier(self.communicator, request) })
    }

    fn abort(&self, exit_code: i32) -> ! {
        end_all_ranks(exit_code);
        std::process::exit(exit_code)
    }
}
