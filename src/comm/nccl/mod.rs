//! Ranks that exchange data over NCCL, and everything else over MPI.
//!
//! MPI starts the world, carries messages between the hosts' memories (losses, digests, checkpoints, what the ranks agree
//! on) and ends all ranks; gradients and parameters take NCCL, from the buckets on one device into those on another. There is one NCCL communicator, and one thread at a time
//! uses it: the communication thread, once [`Comm::for_another_thread`] has made one. What the training thread then still
//! has to exchange goes over MPI, so that no two threads can reach NCCL in different orders on different ranks.

mod abi;
mod bootstrap;
mod communicator;
mod library;
mod log;
mod memory;
mod plane;
mod seat;
mod self_test;

use std::cell::Cell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lockstep_record::RunDir;
use mpi::Threading;
use tch::Device;

use super::call::{Call, Channel};
use super::check::Lengths;
use super::mpi::MpiComm;
use super::patience::Pace;
use super::{Comm, CommError, Incoming, Outgoing, Region, RegionMut};
use crate::grad::home::Home;
use abi::DataType;
use bootstrap::{give_out, shared, telling, told, usable};
use memory::{DeviceMemory, HostMemory, Memory};
use plane::DataPlane;

pub use bootstrap::Memories;
pub use library::{Library, LoadError, NAME as LIBRARY_NAME, loaded, version_text};
pub use log::{NcclLog, paths as log_paths, prepare_log, read as read_log};
pub use seat::Seat;
pub use self_test::Trial;

/// What the run record and `lockstep doctor` say of NCCL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NcclFacts {
    /// `2.29.7`, with the words of a double if it is one.
    pub version: String,
    /// The file that was loaded.
    pub library: String,
    /// Ways that data take, from NCCL's log, such as `P2P`, `SHM` or `NET/IB`; empty where the log does not tell.
    pub transports: Vec<String>,
}

/// All ranks of an MPI world, for one thread.
pub struct NcclComm {
    /// Absent before [`Comm::prepare`]. It is dropped before MPI, which started it.
    plane: OnceLock<Arc<DataPlane>>,
    mpi: MpiComm,
    memories: Memories,
    /// Whether this thread is the one that uses NCCL.
    has_plane: Cell<bool>,
    pace: Pace,
    bytes_sent: Cell<u64>,
    transports: Mutex<Vec<String>>,
}

impl NcclComm {
    /// Of all ranks that MPI has started. NCCL is loaded by [`Comm::prepare`] and connected by [`Comm::connect`].
    pub fn over(mpi: MpiComm, memories: Memories) -> Self {
        Self {
            mpi,
            memories,
            plane: OnceLock::new(),
            has_plane: Cell::new(true),
            pace: Pace::Eager,
            bytes_sent: Cell::new(0),
            transports: Mutex::default(),
        }
    }

    /// Loads NCCL, and gives each rank its GPU.
    fn load(&self) -> Result<DataPlane, CommError> {
        let (mpi, memories) = (&self.mpi, self.memories);
        let loaded = Library::load().map_err(|error| error.to_string());
        let library = shared(mpi, loaded.and_then(|library| usable(library, memories).map(|()| library)))?;
        let visible = match &library.double {
            Some(double) => double.devices,
            None => Some(crate::torch::cuda_devices()),
        };
        let device = give_out(mpi, visible)?;
        // `usable` has seen to it that over a double the model computes on the CPU, and over NCCL on a GPU.
        let memory: Result<Box<dyn Memory>, String> = match &library.double {
            Some(double) => Ok(Box::new(HostMemory::of(double))),
            None => DeviceMemory::new(device)
                .map(|memory| -> Box<dyn Memory> { Box::new(memory) })
                .map_err(|error| error.to_string()),
        };
        Ok(DataPlane::new(library, mpi.rank(), mpi.size(), shared(mpi, memory)?))
    }

    fn plane(&self, operation: &'static str) -> Result<&DataPlane, CommError> {
        let missing =
            || CommError::Failed { operation, reason: "NCCL is not loaded yet; this is a bug".into() };
        self.plane.get().map(|plane| &**plane).ok_or_else(missing)
    }

    /// Whether data take NCCL on this thread.
    fn uses_nccl(&self) -> bool {
        self.has_plane.get() && self.plane.get().is_some_and(|plane| plane.is_connected())
    }

    /// A collective on data, over NCCL under the watchdog's eye.
    fn guarded(
        &self,
        call: Call,
        lengths: Lengths,
        body: impl FnOnce(&DataPlane) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        self.mpi.guarded(call, lengths, || body(self.plane(call.operation)?))
    }

    /// Sums and messages with known answers: a library that cannot do those must not begin a training. They also make NCCL
    /// connect all pairs, and log how.
    fn try_out(&self, plane: &DataPlane) -> Result<(), CommError> {
        let operation = "trial of NCCL";
        let (rank, size) = (self.rank(), self.size());
        let mut sum = [0f32; 2];
        let mine = [rank as f32 + 1.0; 2];
        plane.all_reduce(self.pace, DataType::Float32, Region::of(&mine), RegionMut::of(&mut sum))?;
        let expected = (size * (size + 1) / 2) as f32;
        let own = (rank as u64).to_le_bytes();
        let mut others = vec![[0u8; 8]; size];
        let sends: Vec<Outgoing> = (0..size)
            .filter(|&to| to != rank)
            .map(|to| Outgoing { to, region: Region::Host(&own) })
            .collect();
        let mut recvs: Vec<Incoming> = others
            .iter_mut()
            .enumerate()
            .filter(|(from, _)| *from != rank)
            .map(|(from, place)| Incoming { from, region: RegionMut::Host(place) })
            .collect();
        plane.exchange(operation, self.pace, &sends, &mut recvs)?;
        others[rank] = own;
        let names: Vec<u64> = others.into_iter().map(u64::from_le_bytes).collect();
        if sum != [expected; 2] || names != (0..size as u64).collect::<Vec<_>>() {
            let reason = format!(
                "it gave the sum {sum:?} instead of {expected} twice, and rank numbers {names:?}: the library, a GPU or a \
                 link is faulty; `lockstep doctor --nccl-test` looks closer"
            );
            return Err(CommError::Broken { operation, reason });
        }
        Ok(())
    }
}

impl Comm for NcclComm {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn size(&self) -> usize {
        self.mpi.size()
    }

    fn local_rank(&self) -> usize {
        self.mpi.local_rank()
    }

    fn name(&self) -> &'static str {
        match self.plane.get().and_then(|plane| plane.library().double.as_ref()) {
            None => "nccl",
            Some(_) => "nccl-double",
        }
    }

    /// NCCL moves the memory of GPUs, and its double that of the CPU as if it were one's.
    fn home(&self, device: Device) -> Home {
        Home::Device(device)
    }

    fn for_another_thread(&self) -> Result<Option<Box<dyn Comm + Send>>, CommError> {
        let Some(mpi) = self.mpi.duplicate()? else { return Ok(None) };
        self.has_plane.set(false);
        let other = Self { plane: self.plane.clone(), pace: Pace::Patient, ..Self::over(mpi, self.memories) };
        Ok(Some(Box::new(other)))
    }

    fn prepare(&self) -> Result<(), CommError> {
        if self.plane.get().is_some() {
            return Ok(());
        }
        let plane = Arc::new(self.load()?);
        let ended = Arc::downgrade(&plane);
        self.mpi.watchdog().before_the_end(move || {
            if let Some(plane) = ended.upgrade() {
                plane.abort();
            }
        });
        let _ = self.plane.set(plane);
        Ok(())
    }

    fn connect(&self) -> Result<(), CommError> {
        let operation = "set-up of NCCL";
        let plane = self.plane(operation)?;
        if plane.is_connected() {
            return Ok(());
        }
        let mine = match self.rank() {
            0 => telling(plane.library().unique_id()),
            _ => Vec::new(),
        };
        let all = self.mpi.all_gather_bytes("gather of the unique id", &mine)?;
        let id = told(&all[0]).map_err(|message| CommError::Refused { message })?;
        let call =
            Call { operation, elements: 0, bytes: 0, dtype: "u8", bucket: None, channel: Channel::Data };
        self.guarded(call, Lengths::Equal, |plane| {
            plane.connect(operation, id)?;
            self.try_out(plane)
        })?;
        *self.transports.lock().unwrap_or_else(PoisonError::into_inner) = log::transports();
        Ok(())
    }

    fn nccl(&self) -> Option<NcclFacts> {
        let library = self.plane.get()?.library();
        Some(NcclFacts {
            version: library.description(),
            library: library.path.display().to_string(),
            transports: self.transports.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    fn at_step(&self, step: u64) {
        self.mpi.at_step(step);
    }

    fn at_bucket(&self, bucket: usize) {
        self.mpi.at_bucket(bucket);
    }

    fn record_to(&self, run: &RunDir) {
        self.mpi.record_to(run);
    }

    fn thread_level(&self) -> Option<Threading> {
        self.mpi.thread_level()
    }

    fn exchange(
        &self,
        operation: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError> {
        if !self.uses_nccl() {
            return self.mpi.exchange(operation, sends, recvs);
        }
        let bytes: usize = sends.iter().map(|send| send.region.len()).sum();
        self.bytes_sent.update(|sent| sent + bytes as u64);
        self.mpi.guarded_exchange(operation, sends, recvs, |recvs| {
            self.plane(operation)?.exchange(operation, self.pace, sends, recvs)
        })
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent.get() + self.mpi.bytes_sent()
    }

    fn all_reduce_native(&self, buffer: RegionMut<'_>) -> Result<(), CommError> {
        if !self.uses_nccl() {
            return self.mpi.all_reduce_native(buffer);
        }
        let copy;
        let send = match &buffer {
            // Both the same: NCCL then works in place.
            RegionMut::Device(memory) => Region::Device(*memory),
            RegionMut::Host(bytes) => {
                copy = bytes.to_vec();
                Region::Host(&copy)
            }
        };
        self.guarded(self.mpi.data("all-reduce", send.len() / 4), Lengths::Equal, |plane| {
            plane.all_reduce(self.pace, DataType::Float32, send, buffer)
        })
    }

    fn reduce_scatter_native(
        &self,
        send: Region<'_>,
        recv: RegionMut<'_>,
        counts: &[usize],
    ) -> Result<(), CommError> {
        if !self.uses_nccl() {
            return self.mpi.reduce_scatter_native(send, recv, counts);
        }
        let elements = counts.iter().sum::<usize>();
        assert_eq!((send.len(), recv.len()), (4 * elements, 4 * counts[self.rank()]));
        self.guarded(self.mpi.data("reduce-scatter", elements), Lengths::Equal, |plane| {
            plane.reduce_scatter(self.pace, send, recv, counts)
        })
    }

    fn all_gather_bytes(&self, what: &'static str, send: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.mpi.all_gather_bytes(what, send)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        if !self.uses_nccl() {
            return self.mpi.broadcast(root, bytes);
        }
        self.guarded(self.mpi.control("broadcast", bytes.len()), Lengths::Equal, |plane| {
            plane.broadcast(self.pace, root, RegionMut::Host(bytes))
        })
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.mpi.barrier()
    }

    fn abort(&self, exit_code: i32) -> ! {
        if let Some(plane) = self.plane.get() {
            plane.abort();
        }
        self.mpi.abort(exit_code)
    }
}
