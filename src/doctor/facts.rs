//! What each rank sees of its machine: plain data, so that checks are functions of them, and so that they travel to rank 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::comm::nccl::NcclLog;

/// One rank's view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub rank: usize,
    pub size: usize,
    /// `solo` or `mpi`.
    pub backend: String,
    /// The host's name. Containers and network namespaces on one machine have their own.
    pub host: String,
    /// Differs between machines, and between two boots of one; not between containers of one.
    pub machine: String,
    /// The variables that decide something here, those of [`crate::doctor::VARIABLES`].
    pub environment: BTreeMap<String, String>,
    pub mpi: Mpi,
    pub torch: Torch,
    pub gpu: Gpu,
    pub nccl: Nccl,
    pub network: Network,
    pub limits: Limits,
    pub cpu: Cpu,
    pub clock: Clock,
    pub folders: Vec<Folder>,
    /// Hosts in the file that `PBS_NODEFILE` names; an error where it cannot be read.
    pub pbs_hosts: Option<Result<Vec<String>, String>>,
    pub container: Option<Container>,
    /// The system's setting for transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
}

/// The MPI library.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mpi {
    /// For example `Open MPI v4.1.4`.
    pub library: String,
    /// `multiple`, `serialized`, …; none without MPI.
    pub thread_level: Option<String>,
    /// Version of the PMIx library in this process, if one is loaded. The launcher's is in `PMIX_VERSION`.
    pub pmix: Option<String>,
}

/// libtorch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Torch {
    pub version: String,
    /// The CUDA that it was built for, for example `13.0`.
    pub cuda: Option<String>,
    /// Whether its CUDA half, `libtorch_cuda.so`, lies beside it.
    pub has_cuda_library: bool,
    /// Instruction set of its CPU kernels, for example `AVX512`.
    pub cpu_capability: String,
}

/// GPUs and their driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Version of the driver in the kernel, also where its libraries are missing.
    pub driver: Option<String>,
    /// Newest CUDA that the driver runs, for example `13.0`; none where `libnvidia-ml.so.1` does not answer.
    pub driver_cuda: Option<String>,
    /// GPUs of the host that this process may open.
    pub devices: Option<usize>,
}

/// NVIDIA's library of collectives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nccl {
    pub path: Option<String>,
    /// For example `2.29.7`.
    pub version: Option<String>,
    /// What a library that stands in for NCCL in tests says of itself.
    pub double: Option<String>,
    /// Why the library that was found, or that the environment names, cannot be used.
    pub problem: Option<String>,
    pub logs: Vec<NcclLog>,
}

/// Network interfaces and adapters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub interfaces: Vec<Interface>,
    /// Adapters with remote memory access (InfiniBand, RoCE).
    pub rdma: Vec<String>,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub is_up: bool,
    pub is_loopback: bool,
    /// IPv4, with the length of the network's prefix.
    pub ipv4: Vec<(std::net::Ipv4Addr, u8)>,
    /// IPv6 that is not only of the link.
    pub ipv6: Vec<std::net::Ipv6Addr>,
}

/// Limits of this process and of shared memory. None means without limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub memlock_bytes: Option<u64>,
    pub open_files: Option<u64>,
    pub file_bytes: Option<u64>,
    pub address_space_bytes: Option<u64>,
    pub shm: Option<SharedMemory>,
}

/// `/dev/shm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SharedMemory {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// This user's files of MPI and NCCL that no process seen here has mapped.
    pub leftover_files: usize,
    pub leftover_bytes: u64,
}

/// Cores and threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// `run.threads_per_rank`.
    pub threads_per_rank: usize,
    /// Cores that the machine has running.
    pub online: usize,
    /// Cores that this process may run on.
    pub mask: Vec<usize>,
    /// As many as it may keep busy: the mask, or less where a control group grants less time.
    pub usable: usize,
}

/// The wall clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// Seconds that this clock is ahead of rank 0's.
    pub ahead_s: f64,
    /// Whether the kernel says that something keeps it right.
    pub is_synchronised: Option<bool>,
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Runs,
    Temporary,
    Cache,
}

impl Purpose {
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "run directory",
            Self::Temporary => "temporary folder",
            Self::Cache => "cache",
        }
    }
}

/// A folder that a training writes to, or the nearest one above it that exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Folder {
    pub purpose: Purpose,
    pub path: String,
    pub trial: Trial,
    pub free_bytes: Option<u64>,
    pub free_files: Option<u64>,
    /// Whether a file that rank 0 made there is seen here; none where that was not asked.
    pub is_shared: Option<bool>,
}

/// What came of writing to a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    Written,
    /// No space, or a quota.
    Full(String),
    Refused(String),
}

/// The container that this process runs in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// `apptainer`, `docker`, ….
    pub kind: String,
    /// Name or path, where it is known.
    pub image: Option<String>,
    pub digest: Option<String>,
}

impl Facts {
    /// A variable of this rank's environment.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).cloned()
    }

    /// Ranks with the same answer share a host's `/dev/shm` and network.
    pub fn host_key(&self) -> (&str, &str) {
        (&self.machine, &self.host)
    }

    /// As if no launcher had started this process: for a report on what it sees without MPI.
    pub fn without_launcher(mut self) -> Self {
        let size_or_rank = |name: &str| name.ends_with("_SIZE") || name.ends_with("_RANK");
        let of_step = |name: &str| matches!(name, "SLURM_STEP_NUM_TASKS" | "SLURM_PROCID" | "SLURM_STEP_ID");
        self.environment.retain(|name, _| !size_or_rank(name) && !of_step(name));
        self.rank = 0;
        self
    }

    pub fn has_gpu(&self) -> bool {
        self.gpu.devices.is_some_and(|count| count > 0)
    }
}
