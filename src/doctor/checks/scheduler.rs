//! The batch system's variables against the world.

use std::collections::BTreeSet;

use super::or_ok;
use crate::doctor::catalogue::{
    SCHEDULER_ALONE, SCHEDULER_NODEFILE, SCHEDULER_NODES, SCHEDULER_RANK, SCHEDULER_STALE, SCHEDULER_TASKS,
};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, count, each, hosts};

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let Some(first) = all.first() else { return Vec::new() };
    let problems = [
        each(&SCHEDULER_RANK, all, other_rank),
        each(&SCHEDULER_STALE, all, stale),
        each(&SCHEDULER_NODEFILE, all, |facts| facts.pbs_hosts.clone()?.err()),
        size(first).into_iter().collect(),
        idle_nodes(first, all).into_iter().collect(),
    ]
    .concat();
    or_ok(problems, || match job(first) {
        Some(job) => Finding::ok("scheduler", format!("{job}, which agrees with the world")),
        None => Finding::ok("scheduler", "no job of Slurm or PBS"),
    })
}

fn number(facts: &Facts, name: &str) -> Option<usize> {
    facts.variable(name)?.trim().parse().ok()
}

fn job(facts: &Facts) -> Option<String> {
    let slurm = facts.variable("SLURM_JOB_ID").map(|id| format!("Slurm job {id}"));
    slurm.or_else(|| facts.variable("PBS_JOBID").map(|id| format!("PBS job {id}")))
}

/// Whether mpirun started this process: a batch script's own SLURM_PROCID then says nothing.
fn under_mpirun(facts: &Facts) -> bool {
    facts.variable("OMPI_COMM_WORLD_SIZE").is_some()
}

/// A number that the launcher gave this process and that is not its rank.
fn other_rank(facts: &Facts) -> Option<String> {
    let srun = !under_mpirun(facts) && number(facts, "SLURM_STEP_NUM_TASKS") == Some(facts.size);
    let names = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].into_iter();
    let (name, value) = names.chain(srun.then_some("SLURM_PROCID")).find_map(|name| {
        number(facts, name).filter(|value| *value != facts.rank).map(|value| (name, value))
    })?;
    // A world of another size than promised numbers its ranks anew, and is a finding of its own.
    (value < facts.size).then(|| format!("{name}={value}, but MPI's rank is {}", facts.rank))
}

/// Variables that contradict one another whatever the world is.
fn stale(facts: &Facts) -> Option<String> {
    let step = ["SLURM_PROCID", "SLURM_STEP_ID"].into_iter().find(|name| facts.variable(name).is_some());
    if let (Some(name), None) = (step, facts.variable("SLURM_JOB_ID")) {
        return Some(format!("{name} is set, but SLURM_JOB_ID is not"));
    }
    let (tasks, id) = (number(facts, "SLURM_STEP_NUM_TASKS")?, number(facts, "SLURM_PROCID")?);
    (id >= tasks).then(|| format!("SLURM_PROCID={id}, but the step has {tasks} tasks"))
}

/// How many tasks the job has, and which variable says so.
fn tasks(facts: &Facts) -> Option<(usize, &'static str)> {
    let names = ["SLURM_NTASKS", "PBS_NP"];
    let named = names.into_iter().find_map(|name| Some((number(facts, name)?, name)));
    let listed = || match &facts.pbs_hosts {
        Some(Ok(hosts)) if !hosts.is_empty() => Some((hosts.len(), "PBS_NODEFILE")),
        _ => None,
    };
    // Left over from a job that is no more, they say nothing.
    job(facts).and_then(|_| named.or_else(listed))
}

fn size(facts: &Facts) -> Option<Finding> {
    let (tasks, name) = tasks(facts)?;
    let launched = under_mpirun(facts) || facts.backend == "mpi";
    match facts.size {
        1 if tasks > 1 && !launched => Some(Finding::of(
            &SCHEDULER_ALONE,
            format!("one process without a launcher in a job of {} ({name})", count(tasks, "task")),
            Vec::new(),
        )),
        size if size > tasks => Some(Finding::of(
            &SCHEDULER_TASKS,
            format!("a world of {size} in a job of {} ({name})", count(tasks, "task")),
            Vec::new(),
        )),
        _ => None,
    }
}

fn idle_nodes(first: &Facts, all: &[Facts]) -> Option<Finding> {
    job(first)?;
    let listed = match &first.pbs_hosts {
        Some(Ok(hosts)) => Some(hosts.iter().collect::<BTreeSet<_>>().len()),
        _ => None,
    };
    let nodes = number(first, "SLURM_JOB_NUM_NODES").or(listed)?;
    let used = hosts(all).len();
    let is_launched = first.size > 1;
    (is_launched && used < nodes).then(|| {
        let message = format!("the job has {}, but the ranks are on {used}", count(nodes, "node"));
        Finding::of(&SCHEDULER_NODES, message, Vec::new())
    })
}
