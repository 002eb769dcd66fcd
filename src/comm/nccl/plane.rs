//! The operations on data: begun on NCCL's communicator, and waited for under the watchdog's eye.

use std::ffi::c_int;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::abi::{Code, DataType, RawComm, RawStream, SUM, Table, UniqueId};
use super::communicator::Communicator;
use super::library::Library;
use super::memory::{Memory, Placed};
use crate::comm::patience::{Pace, Patience};
use crate::comm::{CommError, Incoming, Outgoing, Region, RegionMut};
use crate::mutate::{Mutation, active_from, active_in, strikes};

/// This rank's way to the others. One thread at a time has operations in progress; any may abort them.
pub struct DataPlane {
    library: &'static Library,
    rank: usize,
    size: usize,
    memory: Mutex<Box<dyn Memory>>,
    communicator: OnceLock<Communicator>,
}

/// Messages between ranks, by the number of the place that [`Memory::place`] gave each: to whom or from whom, and how many
/// bytes.
type Letters = Vec<(c_int, usize)>;

impl DataPlane {
    pub fn new(library: &'static Library, rank: usize, size: usize, memory: Box<dyn Memory>) -> Self {
        Self { library, rank, size, memory: Mutex::new(memory), communicator: OnceLock::new() }
    }

    pub fn library(&self) -> &'static Library {
        self.library
    }

    pub fn is_connected(&self) -> bool {
        self.communicator.get().is_some()
    }

    /// Connects this rank with the others, which do the same; all have the same id.
    pub fn connect(&self, operation: &'static str, id: UniqueId) -> Result<(), CommError> {
        let communicator = Communicator::start(self.library, id, self.rank, self.size)
            .map_err(|reason| CommError::Broken { operation, reason })?;
        let communicator = self.communicator.get_or_init(|| communicator);
        let mut patience = Patience::new(Pace::Eager);
        while !communicator.is_idle().map_err(|reason| self.broken(operation, reason))? {
            patience.pause();
        }
        Ok(())
    }

    /// Ends whatever is in progress; see [`Communicator::abort`].
    pub fn abort(&self) {
        if let Some(communicator) = self.communicator.get() {
            communicator.abort();
        }
    }

    fn broken(&self, operation: &'static str, reason: String) -> CommError {
        self.abort();
        CommError::Broken { operation, reason }
    }

    /// One operation, or one group, from the memory of `sends` to that of `receives`; returns when it is done. What it finds
    /// there is what the same stream did before, and what comes after on that stream finds the result. The stream would order
    /// them without this thread's waiting, too; but somebody has to look for NCCL's asynchronous errors meanwhile, and with a
    /// wait there is nothing to get wrong.
    fn run(
        &self,
        operation: &'static str,
        pace: Pace,
        sends: &[Region<'_>],
        receives: &mut [RegionMut<'_>],
        call: impl FnOnce(&Table, RawComm, RawStream, &Placed) -> Code,
    ) -> Result<(), CommError> {
        let broken = |reason: String| self.broken(operation, reason);
        let Some(communicator) = self.communicator.get() else {
            return Err(broken("NCCL is not connected yet; this is a bug".into()));
        };
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let placed = memory.place(sends, receives).map_err(|error| broken(error.to_string()))?;
        let stream = memory.stream().map_err(|error| broken(error.to_string()))?;
        communicator.begin(|table, comm| call(table, comm, stream, &placed)).map_err(&broken)?;
        let mut patience = Patience::new(pace);
        // First NCCL has put the operation on the stream, then the stream has done it; meanwhile either may fail.
        while !(communicator.is_idle().map_err(&broken)?
            && (active_from(Mutation::StreamNotAwaited, 3)
                || memory.is_done().map_err(|error| broken(error.to_string()))?))
        {
            patience.pause();
        }
        memory.fetch(receives).map_err(|error| broken(error.to_string()))?;
        self.plant(&**memory, receives);
        Ok(())
    }

    /// A wrong answer on one rank, if that bug is on: a bit of the fraction of what is fp32, where the host can reach it.
    fn plant(&self, memory: &dyn Memory, receives: &mut [RegionMut<'_>]) {
        if strikes(Mutation::WrongAnswer, self.rank, self.size) && active_in(Mutation::WrongAnswer, 3) {
            let bytes = receives.iter_mut().filter_map(|receive| memory.bytes_mut(receive)?.get_mut(2));
            bytes.for_each(|byte| *byte ^= 1);
        }
    }

    /// Sends and receives at once, as [`crate::comm::Comm::exchange`].
    pub fn exchange(
        &self,
        operation: &'static str,
        pace: Pace,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError> {
        let from: Vec<Region> = sends.iter().map(|send| send.region).collect();
        let letters: Letters = sends.iter().map(|send| (send.to as c_int, send.region.len())).collect();
        let answers: Letters = recvs.iter().map(|recv| (recv.from as c_int, recv.region.len())).collect();
        let mut to: Vec<RegionMut> = recvs.iter_mut().map(|recv| recv.region.reborrow()).collect();
        self.run(operation, pace, &from, &mut to, |table, comm, stream, placed| {
            let send = |(&at, &(to, bytes)): (&_, &(c_int, usize))| unsafe {
                (table.send)(at, bytes, DataType::Uint8, to, comm, stream)
            };
            let receive = |(&at, &(from, bytes)): (&_, &(c_int, usize))| unsafe {
                (table.receive)(at, bytes, DataType::Uint8, from, comm, stream)
            };
            // What one of a group's calls says is said by its end, too.
            group(table, || {
                placed.receives.iter().zip(&answers).for_each(|place| _ = receive(place));
                placed.sends.iter().zip(&letters).for_each(|place| _ = send(place));
            })
        })
    }

    /// Sums over all ranks in NCCL's order. `send` and `receive` hold elements of this type.
    pub fn all_reduce(
        &self,
        pace: Pace,
        data_type: DataType,
        send: Region<'_>,
        receive: RegionMut<'_>,
    ) -> Result<(), CommError> {
        let count = receive.len() / width(data_type);
        self.run("all-reduce", pace, &[send], &mut [receive], |table, comm, stream, placed| unsafe {
            (table.all_reduce)(placed.sends[0], placed.receives[0], count, data_type, SUM, comm, stream)
        })
    }

    /// The same, but each rank gets `counts[rank]` of the elements: one call where all get as many, else a group of
    /// reductions, one a rank.
    pub fn reduce_scatter(
        &self,
        pace: Pace,
        send: Region<'_>,
        receive: RegionMut<'_>,
        counts: &[usize],
    ) -> Result<(), CommError> {
        let kind = DataType::Float32;
        let even = counts.iter().all(|count| *count == counts[0]);
        self.run("reduce-scatter", pace, &[send], &mut [receive], |table, comm, stream, placed| {
            let (mut send, receive) = (placed.sends[0].cast::<f32>(), placed.receives[0]);
            if even {
                return unsafe {
                    (table.reduce_scatter)(send.cast(), receive, counts[0], kind, SUM, comm, stream)
                };
            }
            group(table, || {
                for (root, &count) in counts.iter().enumerate() {
                    // Only the root's place is written to.
                    unsafe {
                        (table.reduce)(send.cast(), receive, count, kind, SUM, root as c_int, comm, stream)
                    };
                    send = send.wrapping_add(count);
                }
            })
        })
    }

    /// Every rank's bytes, which are equally many, in rank order.
    pub fn all_gather(&self, pace: Pace, send: Region<'_>, receive: RegionMut<'_>) -> Result<(), CommError> {
        self.run("all-gather", pace, &[send], &mut [receive], |table, comm, stream, placed| unsafe {
            let (from, to) = (placed.sends[0], placed.receives[0]);
            (table.all_gather)(from, to, send.len(), DataType::Uint8, comm, stream)
        })
    }

    /// Rank `root`'s bytes to everybody.
    pub fn broadcast(&self, pace: Pace, root: usize, mut bytes: RegionMut<'_>) -> Result<(), CommError> {
        let send = bytes.host("broadcast")?.to_vec();
        self.run(
            "broadcast",
            pace,
            &[Region::Host(&send)],
            &mut [bytes],
            |table, comm, stream, placed| unsafe {
                let (from, to) = (placed.sends[0], placed.receives[0]);
                (table.broadcast)(from, to, send.len(), DataType::Uint8, root as c_int, comm, stream)
            },
        )
    }
}

fn width(data_type: DataType) -> usize {
    match data_type {
        DataType::Uint8 => 1,
        DataType::Float16 | DataType::Bfloat16 => 2,
        DataType::Float32 => 4,
    }
}

/// Calls that begin together. NCCL wants each start of a group to have its end, whatever comes between.
fn group(table: &Table, calls: impl FnOnce()) -> Code {
    // SAFETY: plain calls.
    unsafe {
        let code = (table.group_start)();
        if code != Code::SUCCESS {
            return code;
        }
        calls();
        (table.group_end)()
    }
}
