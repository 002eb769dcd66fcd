//! NCCL: found, the same everywhere, and what its logs say of the way that data took.

use super::or_ok;
use crate::doctor::catalogue::{
    NCCL_DOUBLE, NCCL_LOG, NCCL_MISSING, NCCL_NO_P2P, NCCL_OTHER, NCCL_SOCKETS, NCCL_UNUSABLE, NCCL_VERSION,
    NCCL_WARNED,
};
use crate::doctor::facts::{Facts, NcclLog};
use crate::doctor::finding::{Finding, agreement, count, distinct, each};

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let missing = each(&NCCL_MISSING, all, |facts| {
        (facts.has_gpu() && facts.nccl.version.is_none() && facts.nccl.problem.is_none())
            .then(|| "there are GPUs, but libnccl.so.2 is not found".into())
    });
    let has = |facts: &&Facts| facts.nccl.version.is_some();
    let loaded: Vec<Facts> = all.iter().filter(has).cloned().collect();
    let version = |facts: &Facts| facts.nccl.version.clone().unwrap_or_default();
    let differs = agreement(&NCCL_VERSION, "NCCL", &loaded, version);
    let unusable = each(&NCCL_UNUSABLE, all, |facts| facts.nccl.problem.clone());
    let double = each(&NCCL_DOUBLE, all, |facts| {
        let path = facts.nccl.path.as_deref().unwrap_or_default();
        facts.nccl.double.as_ref().map(|double| format!("{path} is a {double}"))
    });
    let problems = [missing, unusable, double, differs.into_iter().collect()].concat();
    let mut findings = or_ok(problems, || Finding::ok("nccl", distinct(all, describe)));
    findings.extend(logs(all));
    findings
}

fn describe(facts: &Facts) -> String {
    match (&facts.nccl.version, &facts.nccl.path) {
        (Some(version), Some(path)) => format!("NCCL {version}, {path}"),
        (Some(version), None) => format!("NCCL {version}"),
        _ => "libnccl.so.2 is not found, and no GPU needs it".into(),
    }
}

/// Every log of every rank; ranks that read the same file say the same.
fn logs(all: &[Facts]) -> Vec<Finding> {
    let first =
        |facts: &Facts, say: &dyn Fn(&NcclLog) -> Option<String>| facts.nccl.logs.iter().find_map(say);
    let mut findings = each(&NCCL_LOG, all, |facts| {
        first(facts, &|log| Some(format!("{}: {}", log.path, log.error.as_ref()?)))
    });
    findings.extend(each(&NCCL_WARNED, all, |facts| first(facts, &warned)));
    findings.extend(each(&NCCL_SOCKETS, all, |facts| {
        let rdma = facts.network.rdma.first()?;
        let sockets = |log: &NcclLog| log.channels.get("NET/Socket").copied();
        first(facts, &|log| {
            let channels = count(sockets(log)?, "channel");
            Some(format!("{}: {channels} over TCP, although there is {rdma}", log.path))
        })
    }));
    findings.extend(each(&NCCL_NO_P2P, all, |facts| first(facts, &no_p2p)));
    findings.extend(each(&NCCL_OTHER, all, |facts| {
        let own = facts.nccl.version.as_ref()?;
        first(facts, &|log| {
            let version = log.version.as_ref().filter(|version| version.split('+').next() != Some(own))?;
            Some(format!("{}: written by NCCL {version}, but NCCL {own} is found here", log.path))
        })
    }));
    let readable = |facts: &Facts| {
        let texts: Vec<String> =
            facts.nccl.logs.iter().filter(|log| log.error.is_none()).map(transports).collect();
        texts.join("; ")
    };
    let text = distinct(all, readable);
    findings.extend((!text.is_empty()).then(|| Finding::ok("nccl.transport", text)));
    findings
}

fn warned(log: &NcclLog) -> Option<String> {
    let warning = log.warnings.first()?;
    let more = match log.warning_count {
        1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    Some(format!("{}: {warning}{more}", log.path))
}

fn no_p2p(log: &NcclLog) -> Option<String> {
    let through_memory = log.channels.get("SHM").filter(|_| !log.channels.contains_key("P2P"))?;
    Some(format!("{}: {} through shared memory, none by P2P", log.path, count(*through_memory, "channel")))
}

fn transports(log: &NcclLog) -> String {
    let channels: Vec<String> =
        log.channels.iter().map(|(transport, number)| format!("{transport} {number}")).collect();
    let channels = if channels.is_empty() { "no channels".into() } else { channels.join(", ") };
    let network = log.network.as_deref().map(|name| format!(", network {name}")).unwrap_or_default();
    let version = log.version.as_deref().unwrap_or("unknown version");
    format!("{}: NCCL {version}, {channels}{network}", log.path)
}
