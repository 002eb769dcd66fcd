//! Joining the world. The communicator is the truth about rank and size; what the launcher left in the environment
//! only says whether to start MPI, and cross-checks it.

use lockstep_record::exit;

use super::Failure;
use crate::comm::nccl::{Memories, NcclComm};
use crate::comm::{Comm, MpiComm, SoloComm};
use crate::config::schema::{Backend, Parallel};

/// A process environment, so that decisions about it can be tested.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Variables in which launchers say how many ranks they started, the most telling first.
const SIZES: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];
/// Variables in which launchers number their processes.
const RANKS: [&str; 5] =
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"];

/// How many ranks the launcher says it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    size: usize,
    variable: &'static str,
}

fn claim(env: Env) -> Option<Claim> {
    let claim = |variable| Some(Claim { size: env(variable)?.trim().parse().ok()?, variable });
    SIZES.into_iter().find_map(claim)
}

/// This process's number as the launcher counts: who prints before there is a world.
pub fn environment_rank(env: Env) -> usize {
    RANKS.into_iter().find_map(|variable| env(variable)?.trim().parse().ok()).unwrap_or(0)
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Solo,
    Mpi,
    Nccl,
}

fn choose(backend: Backend, memories: Memories, env: Env) -> Choice {
    let is_launched = claim(env).is_some() || env("PMIX_RANK").is_some();
    match (backend, memories) {
        (Backend::Solo, _) => Choice::Solo,
        (Backend::Mpi, _) => Choice::Mpi,
        (Backend::Nccl, _) => Choice::Nccl,
        (Backend::Auto, _) if !is_launched => Choice::Solo,
        (Backend::Auto, Memories::Device) => Choice::Nccl,
        (Backend::Auto, Memories::Host) => Choice::Mpi,
    }
}

/// What is wrong if the world has not the size that the launcher promised.
pub fn contradiction(size: usize, backend: &str, env: Env) -> Option<String> {
    let Claim { size: claimed, variable } = claim(env).filter(|claim| claim.size != size)?;
    Some(format!(
        "the launcher started {claimed} ranks ({variable}={claimed}), but this process is in a world of {size} ({backend})"
    ))
}

/// Whether the world has the size that the launcher promised.
fn cross_check(size: usize, backend: &str, env: Env) -> Result<(), String> {
    contradiction(size, backend, env).map_or(Ok(()), |contradiction| {
        Err(format!(
            "{contradiction}: the program's MPI does not speak to that launcher, or parallel.backend is solo. Start it \
             with the mpirun of the MPI that it was built with ({}), under Slurm with `srun --mpi=pmix`; in a container, \
             use the same MPI version inside and outside (`lockstep doctor` says more)",
            MpiComm::library_version()
        ))
    })
}

/// Joins the world that this process was started in, whatever size it has. `memories` says where gradients lie.
pub fn join_unchecked(parallel: &Parallel, memories: Memories, env: Env) -> Result<Box<dyn Comm>, Failure> {
    let mpi = || MpiComm::start(parallel).map_err(|error| Failure::alone(exit::BOOTSTRAP, error));
    Ok(match choose(parallel.backend, memories, env) {
        Choice::Solo => Box::new(SoloComm),
        Choice::Mpi => Box::new(mpi()?),
        Choice::Nccl => Box::new(NcclComm::over(mpi()?, memories)),
    })
}

/// Joins the world that this process was started in, if it is the one that the launcher promised.
pub fn join(parallel: &Parallel, memories: Memories, env: Env) -> Result<Box<dyn Comm>, Failure> {
    let comm = join_unchecked(parallel, memories, env)?;
    cross_check(comm.size(), comm.name(), env).map_err(|message| Failure::alone(exit::BOOTSTRAP, message))?;
    Ok(comm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_launcher_brings_mpi_and_nothing_else_does() {
        let host = |backend, env: Env| choose(backend, Memories::Host, env);
        assert_eq!(host(Backend::Auto, &env(&[])), Choice::Solo);
        assert_eq!(host(Backend::Auto, &env(&[("OMPI_COMM_WORLD_SIZE", "1")])), Choice::Mpi);
        assert_eq!(host(Backend::Auto, &env(&[("PMIX_RANK", "0")])), Choice::Mpi);
        assert_eq!(host(Backend::Solo, &env(&[("PMI_SIZE", "2")])), Choice::Solo);
        // A batch script's allocation is not a launcher: SLURM_NTASKS alone says nothing.
        assert_eq!(host(Backend::Auto, &env(&[("SLURM_NTASKS", "4")])), Choice::Solo);
    }

    #[test]
    fn ranks_on_gpus_take_nccl_unless_told_otherwise() {
        let launched = env(&[("PMIX_RANK", "0")]);
        let device = |backend, env: Env| choose(backend, Memories::Device, env);
        assert_eq!(device(Backend::Auto, &launched), Choice::Nccl);
        assert_eq!(device(Backend::Mpi, &launched), Choice::Mpi);
        assert_eq!(device(Backend::Auto, &env(&[])), Choice::Solo);
        assert_eq!(choose(Backend::Nccl, Memories::Host, &launched), Choice::Nccl);
    }

    #[test]
    fn a_world_of_another_size_than_promised_is_refused() {
        let four = env(&[("OMPI_COMM_WORLD_SIZE", "4"), ("SLURM_STEP_NUM_TASKS", "2")]);
        assert_eq!(claim(&four), Some(Claim { size: 4, variable: "OMPI_COMM_WORLD_SIZE" }));
        assert_eq!(cross_check(4, "mpi", &four), Ok(()));
        let message = cross_check(1, "mpi", &four).unwrap_err();
        assert!(
            message.contains("OMPI_COMM_WORLD_SIZE=4") && message.contains("srun --mpi=pmix"),
            "{message}"
        );
    }

    #[test]
    fn the_first_process_prints() {
        assert_eq!(environment_rank(&env(&[("OMPI_COMM_WORLD_RANK", "3")])), 3);
        assert_eq!(environment_rank(&env(&[])), 0);
    }
}
