//! Threads against cores, and what else of the processor changes speed or bits.

use std::collections::BTreeSet;

use super::or_ok;
use crate::config::env::THREADS;
use crate::doctor::catalogue::{CPU_BOUND, CPU_CAPABILITY, CPU_OMP, CPU_OVERSUBSCRIBED, CPU_SWITCHED};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, agreement, count, distinct, each, group, hosts};

/// Variables that choose instruction sets.
const SWITCHES: [&str; 3] = ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"];

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let bound = each(&CPU_BOUND, all, bound);
    // A rank that is bound to too few is told so, not both.
    let crowded = if bound.is_empty() { oversubscribed(all) } else { Vec::new() };
    let threads = [bound, crowded, each(&CPU_OMP, all, other_threads)].concat();
    let mut findings = or_ok(threads, || Finding::ok("cpu.threads", distinct(all, describe)));
    let capability = agreement(&CPU_CAPABILITY, "the instruction set", all, instructions);
    let switched = each(&CPU_SWITCHED, all, |facts| {
        let switches = switches(facts);
        (!switches.is_empty()).then(|| format!("{switches} (kernels for {})", facts.torch.cpu_capability))
    });
    let problems = [capability.into_iter().collect(), switched].concat();
    findings.extend(or_ok(problems, || Finding::ok("cpu.capability", distinct(all, instructions))));
    findings
}

fn describe(facts: &Facts) -> String {
    let cpu = &facts.cpu;
    format!(
        "{} a rank, {} of {} usable",
        count(cpu.threads_per_rank, "thread"),
        cpu.usable,
        count(cpu.online, "core")
    )
}

/// `mpirun` binds a rank with all its threads to one core unless it is told otherwise.
fn bound(facts: &Facts) -> Option<String> {
    let cpu = &facts.cpu;
    (cpu.mask.len() < cpu.threads_per_rank && cpu.mask.len() < cpu.online).then(|| {
        format!(
            "{} a rank on {}, of {} that the machine has",
            count(cpu.threads_per_rank, "thread"),
            count(cpu.mask.len(), "core"),
            cpu.online
        )
    })
}

/// Machines, and hosts with a quota of time, whose ranks have more threads than cores.
fn oversubscribed(all: &[Facts]) -> Vec<Finding> {
    let judge = |ranks: &[&Facts], cores: usize| {
        let threads: usize = ranks.iter().map(|facts| facts.cpu.threads_per_rank).sum();
        (threads > cores).then(|| {
            let (threads, cores) = (count(threads, "thread"), count(cores, "core"));
            let message = format!("{} with {threads} on {cores}", count(ranks.len(), "rank"));
            Finding::of(&CPU_OVERSUBSCRIBED, message, ranks.iter().map(|facts| facts.rank).collect())
        })
    };
    let by_machine = group(all, |facts| facts.machine.clone()).into_values().filter_map(|ranks| {
        let cores: BTreeSet<usize> = ranks.iter().flat_map(|facts| facts.cpu.mask.iter().copied()).collect();
        judge(&ranks, cores.len())
    });
    let machines: Vec<Finding> = by_machine.collect();
    if !machines.is_empty() {
        return machines;
    }
    let by_quota = hosts(all).into_values().filter_map(|ranks| {
        let quotas = ranks.iter().filter(|facts| facts.cpu.usable < facts.cpu.mask.len());
        let quota = quotas.map(|facts| facts.cpu.usable).min()?;
        judge(&ranks, quota)
    });
    by_quota.collect()
}

fn other_threads(facts: &Facts) -> Option<String> {
    let wanted = facts.cpu.threads_per_rank;
    let wrong = |name: &&str| {
        let value = facts.variable(name)?;
        (value.trim().parse() != Ok(wanted)).then(|| format!("{name}={value}"))
    };
    let wrong: Vec<String> = THREADS.iter().filter_map(wrong).collect();
    (!wrong.is_empty()).then(|| format!("{}, but run.threads_per_rank is {wanted}", wrong.join(", ")))
}

fn switches(facts: &Facts) -> String {
    let set = |name: &&str| Some(format!("{name}={}", facts.variable(name)?));
    SWITCHES.iter().filter_map(set).collect::<Vec<_>>().join(" ")
}

/// All that decides which kernels compute.
fn instructions(facts: &Facts) -> String {
    format!("{} {}", facts.torch.cpu_capability, switches(facts)).trim().to_owned()
}
