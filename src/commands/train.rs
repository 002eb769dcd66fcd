//! `lockstep train`: from the command line to a finished run record.

use std::time::Instant;

use lockstep_record::{Ended, RunDir, exit};

use super::config::resolve;
use super::{manifest, plan, resume};
use crate::cli::{Exchanged, Train};
use crate::comm::nccl::{Memories, prepare_log};
use crate::comm::{Comm, CommError, Threading};
use crate::config::env::CUBLAS_WORKSPACE;
use crate::config::schema::{Backend, Precision};
use crate::config::{Config, Resolved};
use crate::launch::{
    Compute, Failure, StopRequest, end_all_ranks_on_panic, environment_rank, join, together, visible_gpus,
};
use crate::metrics::{Recorder, start_logging};
use crate::perturb;
use crate::session::Session;
use crate::telemetry;
use crate::torch::set_cuda_repeatable;
use crate::trace::offset_to_rank_0;
use crate::train::{self, Course};

/// Runs `lockstep train`.
pub fn train(arguments: &Train) -> i32 {
    end_all_ranks_on_panic();
    plant(arguments);
    let environment = |name: &str| std::env::var(name).ok();
    let resolved =
        match resolve(&arguments.source).and_then(|resolved| resolved.validate().map(|()| resolved)) {
            Ok(resolved) => resolved,
            Err(error) => {
                // There is no world yet; every rank sees the same files, and one of them speaks.
                if environment_rank(&environment) == 0 {
                    eprintln!("lockstep: {error}");
                }
                return exit::USAGE;
            }
        };
    let compute = Compute::choose(resolved.config.run.device, &visible_gpus);
    if compute == Ok(Compute::Cuda) {
        // SAFETY: no thread of ours has been started yet, and cuBLAS reads it when it is first used.
        unsafe { fix_cublas_workspace(resolved.config.run.deterministic) };
    }
    // Where CUDA is missing, the ranks say so together.
    let memories = compute.as_ref().map_or(Memories::Device, |compute| compute.memories());
    if memories == Memories::Device || resolved.config.parallel.backend == Backend::Nccl {
        // SAFETY: no thread has been started yet.
        unsafe { prepare_log(&run_dir(arguments, &resolved.config)) };
    }
    match join(&resolved.config.parallel, memories, &environment) {
        Ok(comm) => conclude(&*comm, run(&*comm, &resolved, arguments, compute)),
        Err(failure) => {
            eprintln!("lockstep: {}", failure.message);
            crate::comm::abort_world(failure.exit_code);
            failure.exit_code
        }
    }
}

#[cfg(feature = "mutations")]
fn plant(arguments: &Train) {
    if let Some(mutation) = arguments.mutate {
        crate::mutate::activate(mutation);
    }
}

#[cfg(not(feature = "mutations"))]
fn plant(_: &Train) {}

/// Prints a failure once, and ends the ranks that do not know of it.
fn conclude(comm: &dyn Comm, result: Result<i32, Failure>) -> i32 {
    let failure = match result {
        Ok(exit_code) => return exit_code,
        Err(failure) => failure,
    };
    tracing::error!(exit_code = failure.exit_code, "{}", failure.message);
    if failure.shared {
        if comm.rank() == 0 {
            eprintln!("lockstep: {}", failure.message);
        }
        // Rank 0's message is out before any rank leaves: a launcher may end the job at the first exit.
        let _ = comm.barrier();
        return failure.exit_code;
    }
    eprintln!("lockstep: rank {}: {}", comm.rank(), failure.message);
    comm.abort(failure.exit_code)
}

/// Returns the exit code.
fn run(
    comm: &dyn Comm,
    resolved: &Resolved,
    arguments: &Train,
    compute: Result<Compute, String>,
) -> Result<i32, Failure> {
    let config = &resolved.config;
    let compute = together(comm, exit::BOOTSTRAP, compute)?;
    comm.prepare()?;
    resolved.validate_world(comm.size())?;
    prepare_libtorch(config.run.threads_per_rank, config.run.deterministic)?;
    if compute == Compute::Cuda {
        set_cuda_repeatable(config.run.deterministic, false)?;
    }
    let device = compute.device(comm.local_rank());
    let mut session = Session::build(config, comm, arguments.comm == Exchanged::None, device)?;
    session.perturbation = arguments.perturb;
    if arguments.dry_run {
        if comm.rank() == 0 {
            print!("{}", plan::describe(&session)?);
        }
        return Ok(exit::OK);
    }
    execute(session, arguments)
}

/// Trains, and writes the run record.
fn execute(mut session: Session, arguments: &Train) -> Result<i32, Failure> {
    let (comm, config) = (session.comm, session.config);
    let run_dir = run_dir(arguments, config);
    let stop_request = together(comm, exit::INTERNAL, StopRequest::listen())?;
    let lock = resume::claim(comm, &run_dir, arguments.resume.is_some())?;
    together(comm, exit::INTERNAL, start_logging(&run_dir, comm.rank()))?;
    comm.record_to(&run_dir);
    comm.connect().map_err(not_connected)?;
    warn_of_threads(comm);
    session.telemetry =
        telemetry::of_rank(session.device, &run_dir, comm.rank(), config.record.telemetry_every_s);
    if arguments.trace {
        open_trace(&session, &run_dir)?;
    }
    if let Some(name) = &session.compression {
        tracing::warn!(
            "parallel.compression: {name}: the result is an approximation that depends on the number of ranks"
        );
    }
    if let Some(perturbation) = &session.perturbation {
        tracing::warn!("--perturb {perturbation}: values are moved on purpose, to see how far the run moves");
    }
    if config.precision == Precision::Fp16 && session.device == tch::Device::Cpu {
        tracing::warn!(
            "precision: fp16 on a CPU: most processors compute it by way of fp32, many times slower; bf16 needs no loss scale, too"
        );
    }
    session.corpus.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    if session.overlap_is_missing() {
        tracing::warn!(
            "this MPI, or parallel.mpi_threads, lets a single thread communicate: it follows backward instead of \
             overlapping it"
        );
    }
    if let Some(reason) = &session.unshared {
        tracing::warn!(
            "the ranks have no memory in common, and send their gradients: {reason}. Make /dev/shm larger (docker run \
             --shm-size, or --ipc=host), or set parallel.shared_memory: false"
        );
    }
    let start = resume::start(&mut session, &run_dir, arguments.resume.as_deref())?;
    let course = Course::new(config, start.step, arguments.stop_after, stop_request)?;
    let course = course.capturing(&arguments.capture)?;
    let segment = manifest::segment(&session, &start)?;
    let recorder = lock
        .map(|lock| {
            let manifest = start.manifest.clone().unwrap_or_else(|| manifest::manifest(&session));
            let yaml = config.to_yaml().unwrap_or_default();
            Recorder::open(&run_dir, lock, manifest, segment, &yaml)
        })
        .transpose();
    let mut recorder = together(comm, exit::INTERNAL, recorder)?;
    if start.step == 0 {
        record_start(&mut session, &run_dir, recorder.as_mut())?;
    }
    let ending = train::run(&mut session, &run_dir, recorder.as_mut(), &course)?;
    let ended = Ended { step: ending.step, outcome: ending.outcome, unix_s: manifest::unix_s() };
    let finished = recorder.map(|recorder| recorder.finish(ended)).transpose();
    together(comm, exit::INTERNAL, finished)?;
    if comm.rank() == 0 {
        eprintln!("{}", plan::closing_line(&ending, &run_dir));
    }
    Ok(ending.exit_code())
}

/// Where the run record goes.
fn run_dir(arguments: &Train, config: &Config) -> RunDir {
    RunDir::new(arguments.run_dir.clone().unwrap_or_else(|| config.run.dir.join(&config.run.name)))
}

/// What breaks before there is a world has broken the start.
fn not_connected(error: CommError) -> Failure {
    let failure = Failure::from(error);
    Failure { exit_code: exit::BOOTSTRAP, ..failure }
}

/// All ranks begin their traces on rank 0's clock.
fn open_trace(session: &Session, run_dir: &RunDir) -> Result<(), Failure> {
    let (comm, origin) = (session.comm, Instant::now());
    let offset_us = offset_to_rank_0(comm, origin)?;
    let path = run_dir.rank_trace(comm.rank());
    // Of an earlier execution, which may have had more ranks.
    let cleared = match comm.rank() {
        0 if run_dir.traces().exists() => std::fs::remove_dir_all(run_dir.traces()),
        _ => Ok(()),
    };
    together(comm, exit::INTERNAL, cleared)?;
    let opened = std::fs::create_dir_all(run_dir.traces())
        .and_then(|()| session.trace.open(&path, comm.rank(), &manifest::hostname(), origin, offset_us))
        .map_err(|error| format!("cannot begin the trace {}: {error}", path.display()));
    together(comm, exit::INTERNAL, opened)
}

/// An MPI that gives less than was asked for costs something.
fn warn_of_threads(comm: &dyn Comm) {
    if let Some(level) = comm.thread_level().filter(|level| *level < Threading::Multiple) {
        tracing::warn!(
            "MPI's thread level is {level:?}, not Multiple (parallel.mpi_threads, or what this MPI was built for): after \
             a time-out the watchdog cannot ask the other ranks what they are doing"
        );
    }
}

/// The initial state, before any step.
fn record_start(session: &mut Session, run: &RunDir, recorder: Option<&mut Recorder>) -> Result<(), Failure> {
    perturb::parameters(session, 0)?;
    let lines = train::initial_digests(session)?;
    if let Some(recorder) = recorder {
        recorder.digests(&lines)?;
    }
    match session.config.checkpoint.at_start {
        true => train::save_checkpoint(session, run, 0),
        false => Ok(()),
    }
}

/// cuBLAS repeats its bits only with a workspace of fixed size (NVIDIA's manual, "Results Reproducibility").
///
/// # Safety
/// No other thread reads the environment meanwhile.
unsafe fn fix_cublas_workspace(deterministic: bool) {
    if deterministic && std::env::var_os(CUBLAS_WORKSPACE).is_none() {
        // SAFETY: as the caller promises.
        unsafe { std::env::set_var(CUBLAS_WORKSPACE, ":4096:8") };
    }
}

/// Threads and kernels decide bits, so both are set before the first tensor is made.
fn prepare_libtorch(threads: usize, deterministic: bool) -> Result<(), Failure> {
    let count = i32::try_from(threads).unwrap_or(i32::MAX);
    tch::set_num_threads(count);
    tch::set_num_interop_threads(1);
    crate::torch::keep_freed_memory();
    crate::torch::set_deterministic(deterministic)?;
    Ok(())
}
