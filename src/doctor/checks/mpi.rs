//! MPI, and whether it and the launcher understand one another.

use super::or_ok;
use crate::doctor::catalogue::{MPI_LAUNCHER, MPI_LIBRARY, MPI_THREADS, MPI_WORLD, PMIX_VERSION};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, agreement, distinct, each};
use crate::launch::contradiction;

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let world = each(&MPI_WORLD, all, |facts| {
        contradiction(facts.size, &facts.backend, &|name| facts.variable(name))
    });
    let library = agreement(&MPI_LIBRARY, "the MPI library", all, |facts| facts.mpi.library.clone());
    let threads = each(&MPI_THREADS, all, |facts| {
        let level = facts.mpi.thread_level.as_deref().filter(|level| *level != "multiple")?;
        Some(format!("{} gives the thread level `{level}`", facts.mpi.library))
    });
    let problems = [world, library.into_iter().collect(), threads].concat();
    let mut findings = or_ok(problems, || Finding::ok("mpi", distinct(all, describe)));
    findings.extend(launchers(all));
    findings
}

fn describe(facts: &Facts) -> String {
    let library = &facts.mpi.library;
    match &facts.mpi.thread_level {
        Some(level) => format!("{library}, thread level `{level}`"),
        None => format!("{library}, not started: one process without a launcher"),
    }
}

/// The launcher's protocol and its version.
fn launchers(all: &[Facts]) -> Vec<Finding> {
    let protocol = each(&MPI_LAUNCHER, all, protocol_mismatch);
    let version = each(&PMIX_VERSION, all, version_mismatch);
    let problems = [protocol, version].concat();
    let launched = all.iter().any(|facts| facts.variable("PMIX_RANK").is_some());
    if problems.is_empty() && !launched {
        return Vec::new();
    }
    or_ok(problems, || {
        let unknown = || "unknown".to_owned();
        let describe = |facts: &Facts| {
            let launcher = facts.variable("PMIX_VERSION").unwrap_or_else(unknown);
            let own = facts.mpi.pmix.clone().unwrap_or_else(unknown);
            format!("PMIx {launcher} of the launcher, {own} of this process")
        };
        Finding::ok("pmix", distinct(all, describe))
    })
}

/// What Open MPI cannot use, and what MPICH and its kin cannot.
fn protocol_mismatch(facts: &Facts) -> Option<String> {
    let has = |name| facts.variable(name).is_some();
    let (pmix, pmi) = (has("PMIX_RANK"), has("PMI_RANK") || has("PMI_FD"));
    let library = &facts.mpi.library;
    let wants_pmix = library.starts_with("Open MPI");
    match (wants_pmix, pmix, pmi) {
        (true, false, true) => Some(format!("the launcher speaks PMI, but {library} wants PMIx")),
        (false, true, false) if facts.size == 1 => {
            Some(format!("the launcher speaks PMIx, but {library} wants PMI"))
        }
        _ => None,
    }
}

fn version_mismatch(facts: &Facts) -> Option<String> {
    let (launcher, own) = (facts.variable("PMIX_VERSION")?, facts.mpi.pmix.as_ref()?);
    (major(&launcher)? != major(own)?)
        .then(|| format!("the launcher has PMIx {launcher}, this process has PMIx {own}"))
}

/// The first number of a version.
pub fn major(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split(['.', ' ', 'r']).next()?.parse().ok()
}
