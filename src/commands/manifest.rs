//! The manifest's facts about this execution.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_record::{Manifest, Nccl, Processor, Program, RECORD_VERSION, RankInfo, Segment};

use super::resume::Start;
use crate::comm::MpiComm;
use crate::config::env::CUBLAS_WORKSPACE;
use crate::launch::{Failure, image_digest};
use crate::session::Session;
use crate::torch;

/// A new run's manifest, without segments.
pub fn manifest(session: &Session) -> Manifest {
    Manifest {
        record_version: RECORD_VERSION,
        program: Program {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            git_commit: env!("LOCKSTEP_GIT_COMMIT").into(),
        },
        seed: session.config.run.seed,
        config: serde_json::to_value(session.config).unwrap_or_default(),
        model: session.model_info(),
        data: session.corpus.info(),
        segments: Vec::new(),
    }
}

/// This execution; all ranks call it.
pub fn segment(session: &Session, start: &Start) -> Result<Segment, Failure> {
    let config = session.config;
    Ok(Segment {
        from_step: start.step,
        started_unix_s: unix_s(),
        world_size: session.comm.size() as u32,
        strategy: config.parallel.strategy.name().into(),
        reduction: if session.isolated { "none" } else { config.parallel.reduction.name() }.into(),
        compression: session.compression.clone(),
        mutation: crate::mutate::planted(),
        perturbation: session.perturbation,
        backend: session.comm.name().into(),
        nccl: nccl(session)?,
        buckets: Some(session.home.name().into()),
        threads_per_rank: tch::get_num_threads() as u32,
        cpu_capability: torch::cpu_capability(),
        versions: versions(session),
        container_digest: container_digest(session),
        ranks: ranks(session)?,
        ended: None,
    })
}

/// Only rank 0's manifest is written, and hashing an image takes a second.
fn container_digest(session: &Session) -> Option<String> {
    if session.comm.rank() != 0 {
        return None;
    }
    let environment = |name: &str| std::env::var(name).ok();
    image_digest(&environment).unwrap_or_else(|unknown| {
        tracing::warn!("{unknown}");
        None
    })
}

fn versions(session: &Session) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("libtorch".to_owned(), torch::version())]);
    let build = torch::build_config();
    for (name, start) in [("mkl", "Math Kernel Library Version "), ("onednn", "MKL-DNN v")] {
        let version = build.split_once(start).and_then(|(_, rest)| rest.split([' ', '-', '\n']).next());
        versions.extend(version.map(|version| (name.to_owned(), version.to_owned())));
    }
    let on_gpu = session.device != tch::Device::Cpu;
    let cuda = on_gpu.then_some(CUBLAS_WORKSPACE);
    if on_gpu {
        let kernels = if session.config.run.deterministic { "deterministic" } else { "free" };
        versions.insert("cudnn".into(), format!("{kernels}, no TF32"));
    }
    // Switches of the libraries that move bits.
    for name in ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"].into_iter().chain(cuda) {
        versions.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    versions.extend(session.comm.nccl().map(|nccl| ("nccl".to_owned(), nccl.version)));
    if session.comm.name() != "solo" {
        versions.insert("mpi".into(), MpiComm::library_version());
    }
    let threads = session.comm.thread_level().map(|level| format!("{level:?}").to_lowercase());
    versions.extend(threads.map(|level| ("mpi_threads".to_owned(), level)));
    versions
}

/// What rank 0 loaded, and the ways that any rank's data take.
fn nccl(session: &Session) -> Result<Option<Nccl>, Failure> {
    let Some(facts) = session.comm.nccl() else { return Ok(None) };
    let all = session.comm.all_gather_bytes("gather of transports", facts.transports.join(" ").as_bytes())?;
    let texts: Vec<String> = all.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let transports: BTreeSet<&str> = texts.iter().flat_map(|text| text.split_whitespace()).collect();
    let transports = transports.into_iter().map(ToOwned::to_owned).collect();
    Ok(Some(Nccl { version: facts.version, library: facts.library, transports }))
}

fn ranks(session: &Session) -> Result<Vec<RankInfo>, Failure> {
    let mine = RankInfo {
        rank: session.comm.rank() as u32,
        host: hostname(),
        optimizer_bytes: session.optimizer.state_bytes(),
        master_bytes: session.optimizer.master_bytes(),
        processor: processor(),
    };
    let internal = |error: serde_json::Error| Failure::alone(lockstep_record::exit::INTERNAL, error);
    let messages = session
        .comm
        .all_gather_bytes("gather of rank facts", &serde_json::to_vec(&mine).map_err(internal)?)?;
    messages.iter().map(|message| serde_json::from_slice(message).map_err(internal)).collect()
}

/// What this rank computes on.
fn processor() -> Option<Processor> {
    Processor::from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// This host's name.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
