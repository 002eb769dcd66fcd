//! The checks: pure functions of what all ranks see, in the order of the report.

mod clock;
mod container;
mod cpu;
mod folders;
mod gpu;
mod limits;
mod mpi;
mod nccl;
mod network;
mod scheduler;

use super::facts::Facts;
use super::finding::Finding;

/// One group of checks.
type Check = fn(&[Facts]) -> Vec<Finding>;

/// Everything that can be said about these ranks; never empty for at least one rank.
pub fn examine(all: &[Facts]) -> Vec<Finding> {
    let groups: [Check; 10] = [
        mpi::check,
        scheduler::check,
        container::check,
        gpu::check,
        nccl::check,
        network::check,
        limits::check,
        cpu::check,
        clock::check,
        folders::check,
    ];
    groups.into_iter().flat_map(|check| check(all)).collect()
}

/// The problems, or else the one line that says that there are none.
fn or_ok(problems: Vec<Finding>, ok: impl FnOnce() -> Finding) -> Vec<Finding> {
    if problems.is_empty() { vec![ok()] } else { problems }
}
