//! Looking at the machine. Nothing here judges; what cannot be seen is left out.

mod container;
mod folders;
mod gpu;
mod libraries;
mod system;

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::facts::{Clock, Cpu, Facts};
use crate::comm::{Comm, CommError, MpiComm};
use crate::launch::environment_rank;
use crate::trace::offset_to_rank_0;

/// The variables that the checks look at, and with them all that leaves the machine in a report: no other part of the
/// environment does.
pub const VARIABLES: &[&str] = &[
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMIX_VERSION",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_FD",
    "MV2_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "PBS_JOBID",
    "PBS_NODEFILE",
    "PBS_NP",
    "OMPI_MCA_btl_tcp_if_include",
    "OMPI_MCA_oob_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "PMIX_MCA_ptl_base_if_include",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
];

/// What the user asks about.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub threads_per_rank: usize,
    pub run_dir: PathBuf,
    pub cache_dir: PathBuf,
    /// Files that NCCL wrote with `NCCL_DEBUG`.
    pub nccl_logs: Vec<PathBuf>,
}

/// What this process sees by itself: without MPI, which may not start.
pub fn local(request: &Request) -> Facts {
    let environment = |name: &str| std::env::var(name).ok();
    let torch = libraries::torch();
    let nccl = libraries::nccl(&request.nccl_logs);
    Facts {
        rank: environment_rank(&environment),
        size: 1,
        backend: "solo".into(),
        host: system::first_line("/proc/sys/kernel/hostname").unwrap_or_default(),
        machine: system::first_line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        environment: VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), environment(name)?)))
            .collect(),
        mpi: libraries::mpi(),
        torch,
        gpu: gpu::gpu(),
        nccl,
        network: system::network(),
        limits: system::limits(),
        cpu: Cpu { threads_per_rank: request.threads_per_rank, ..system::cpu() },
        clock: Clock { ahead_s: 0.0, is_synchronised: system::is_synchronised() },
        folders: folders::folders(request),
        pbs_hosts: environment("PBS_NODEFILE").map(system::pbs_hosts),
        container: container::container(&environment),
        huge_pages: system::huge_pages(),
    }
}

/// Everybody's facts, on every rank; all ranks call it.
pub fn gather(comm: &dyn Comm, mine: Facts, request: &Request) -> Result<Vec<Facts>, CommError> {
    let mpi = libraries::mpi();
    let thread_level = comm.thread_level().map(|level| format!("{level:?}").to_lowercase());
    let mut mine = Facts {
        rank: comm.rank(),
        size: comm.size(),
        backend: comm.name().into(),
        mpi: super::facts::Mpi { library: MpiComm::library_version(), thread_level, ..mpi },
        ..mine
    };
    mine.clock.ahead_s = seconds_ahead(comm)?;
    folders::find_shared(comm, &mut mine, request)?;
    let failed = |error: serde_json::Error| CommError::Failed {
        operation: "gathering what the ranks see",
        reason: error.to_string(),
    };
    let messages = comm.all_gather_bytes("gather of facts", &serde_json::to_vec(&mine).map_err(failed)?)?;
    messages.iter().map(|message| serde_json::from_slice(message).map_err(failed)).collect()
}

/// How far this wall clock is ahead of rank 0's. The steady clocks' offset is known, so the wall clocks' is too: rank 0
/// reads `w0` when its steady clock shows 0, which is `-offset` on this rank's.
fn seconds_ahead(comm: &dyn Comm) -> Result<f64, CommError> {
    let (origin, wall) = (Instant::now(), SystemTime::now());
    let since_1970 = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let offset_us = offset_to_rank_0(comm, origin)?;
    let all = comm.all_gather_bytes("gather of times", &since_1970.to_le_bytes())?;
    let rank_0 = all[0].first_chunk::<8>().map_or(since_1970, |bytes| u64::from_le_bytes(*bytes));
    Ok((since_1970 as i64 - rank_0 as i64) as f64 / 1e6 - offset_us / 1e6)
}
