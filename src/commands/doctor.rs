//! `lockstep doctor`: gathers what every rank sees, and prints what is wrong.

use std::time::Duration;

use lockstep_record::exit;

use super::config::resolve;
use crate::cli::Doctor;
use crate::comm::nccl::{Memories, NcclComm};
use crate::comm::{Comm, MpiComm};
use crate::config::Resolved;
use crate::config::schema::{Device, Parallel};
use crate::doctor::{
    Examination, Facts, Finding, MPI_START, Outcome, Report, Request, examine, gather, local,
};
use crate::launch::{
    Compute, Failure, end_all_ranks_on_panic, environment_rank, join_unchecked, together, visible_gpus,
};

/// The others report as well, and a launcher ends them all at the first exit.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs `lockstep doctor`.
pub fn doctor(arguments: &Doctor) -> i32 {
    let resolved = match resolve(&arguments.source) {
        Ok(resolved) => resolved,
        Err(error) => {
            if speaks() {
                eprintln!("lockstep: {error}");
            }
            return exit::USAGE;
        }
    };
    let request = request(arguments, &resolved);
    if arguments.inside {
        return examine_world(arguments, resolved, &request);
    }
    let examination = Examination::start(Duration::from_secs_f64(arguments.limit));
    // Looked at meanwhile: when MPI has failed there may be little time to report.
    let facts = speaks().then(|| local(&request));
    match (examination.wait(), facts) {
        (Outcome::Reported(exit_code), _) => exit_code,
        (Outcome::Failed(why), Some(facts)) => report_alone(arguments, facts, why),
        (Outcome::Failed(_), None) => {
            std::thread::sleep(LAST_WORDS);
            exit::BOOTSTRAP
        }
    }
}

/// Whether this process prints where there is no world that says so.
fn speaks() -> bool {
    environment_rank(&|name| std::env::var(name).ok()) == 0
}

fn request(arguments: &Doctor, resolved: &Resolved) -> Request {
    let config = &resolved.config;
    Request {
        threads_per_rank: config.run.threads_per_rank,
        run_dir: config.run.dir.clone(),
        cache_dir: config.data.cache_dir.clone(),
        nccl_logs: arguments.nccl_log.clone(),
    }
}

/// All ranks gather, one prints, all leave with the same code.
fn examine_world(arguments: &Doctor, resolved: Resolved, request: &Request) -> i32 {
    end_all_ranks_on_panic();
    // Before MPI takes its share of memory and descriptors.
    let mine = local(request);
    let mut parallel = resolved.config.parallel;
    // Messages of the watchdog are better than the end of this process from outside.
    parallel.timeout_s = parallel.timeout_s.min(arguments.limit / 2.0);
    let environment = |name: &str| std::env::var(name).ok();
    let result = match arguments.nccl_test {
        true => test_nccl(&parallel, resolved.config.run.device, |comm| {
            report_together(comm, mine, arguments, request)
        }),
        false => join_unchecked(&parallel, Memories::Host, &environment)
            .and_then(|comm| report_together(&*comm, mine, arguments, request)),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("lockstep: {}", failure.message);
        crate::comm::abort_world(exit::INTERNAL);
        exit::INTERNAL
    })
}

/// Moves data through NCCL after the report, whatever that says: both are printed.
fn test_nccl(
    parallel: &Parallel,
    device: Device,
    report: impl FnOnce(&dyn Comm) -> Result<i32, Failure>,
) -> Result<i32, Failure> {
    let compute = Compute::choose(device, &visible_gpus);
    let memories = compute.as_ref().map_or(Memories::Device, |compute| compute.memories());
    let mpi = MpiComm::start(parallel).map_err(|error| Failure::alone(exit::BOOTSTRAP, error))?;
    let comm = NcclComm::over(mpi, memories);
    let mut exit_code = report(&comm)?;
    let tried = together(&comm, exit::BOOTSTRAP, compute)
        .and_then(|_| Ok(comm.prepare()?))
        .and_then(|()| Ok(comm.connect()?))
        .and_then(|()| Ok(comm.self_test()?));
    match tried {
        Ok(trials) => {
            if trials.iter().any(|trial| trial.error.is_some()) {
                exit_code = exit::BOOTSTRAP;
            }
            if comm.rank() == 0 {
                let version = comm.nccl().map(|nccl| nccl.version).unwrap_or_default();
                println!("nccl     NCCL {version} on {} ranks", comm.size());
                trials.iter().for_each(|trial| println!("{}", trial.text()));
            }
        }
        // All ranks know it, and one speaks.
        Err(failure) if failure.shared => {
            if comm.rank() == 0 {
                println!("nccl     not tried: {}", failure.message);
            }
            exit_code = exit::BOOTSTRAP;
        }
        Err(failure) => return Err(failure),
    }
    comm.barrier()?;
    Ok(exit_code)
}

fn report_together(
    comm: &dyn Comm,
    mine: Facts,
    arguments: &Doctor,
    request: &Request,
) -> Result<i32, Failure> {
    let all = gather(comm, mine, request)?;
    let report = Report::new(&all, examine(&all));
    // In a world of one under a launcher of many, each process is rank 0.
    if comm.rank() == 0 && (comm.size() > 1 || speaks()) {
        print(arguments, &report);
    }
    // The report is out before any rank leaves: a launcher may end the job at the first exit.
    comm.barrier()?;
    if comm.size() == 1 && report.exit_code() != exit::OK && !speaks() {
        std::thread::sleep(LAST_WORDS);
    }
    Ok(report.exit_code())
}

/// MPI did not start: what this process sees by itself.
fn report_alone(arguments: &Doctor, facts: Facts, why: String) -> i32 {
    let facts = [facts.without_launcher()];
    let mut findings = vec![Finding::of(&MPI_START, why, Vec::new())];
    findings.extend(examine(&facts));
    let report = Report::new(&facts, findings);
    print(arguments, &report);
    report.exit_code()
}

fn print(arguments: &Doctor, report: &Report) {
    match arguments.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.text()),
    }
}
