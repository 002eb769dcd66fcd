//! Shared memory, locked memory, open files, and huge pages.

use super::or_ok;
use crate::doctor::catalogue::{
    HUGE_PAGES, LIMIT_FILE_SIZE, LIMIT_FILES, LIMIT_MEMLOCK, LIMIT_MEMORY, SHM_ABSENT, SHM_LEFTOVERS,
    SHM_SMALL,
};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, count, distinct, each, hosts};
use crate::quantity::bytes_text;

/// Open MPI's segment of one rank (`btl_vader_segment_size`).
const MPI_SEGMENT_BYTES: u64 = 4 << 20;
/// What NCCL takes for one rank on a host with several: buffers of 10 MiB for the two neighbours on a ring, and proxies.
const NCCL_BYTES: u64 = 33 << 20;
/// Without adapters that lock memory, this is enough for whatever else does.
const MEMLOCK_BYTES: u64 = 64 << 10;
/// Libraries, logs, records and checkpoints of one rank.
const OWN_FILES: u64 = 128;
/// Sockets to each other rank.
const FILES_PER_PEER: u64 = 4;

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let shm = [
        shm_small(all),
        each(&SHM_ABSENT, all, |facts| facts.limits.shm.is_none().then(|| "there is no /dev/shm".into())),
        leftovers(all),
    ]
    .concat();
    let limits = [
        each(&LIMIT_MEMLOCK, all, memlock),
        each(&LIMIT_FILES, all, open_files),
        each(&LIMIT_FILE_SIZE, all, |facts| {
            Some(format!("files may have {} at most", bytes_text(facts.limits.file_bytes?)))
        }),
        each(&LIMIT_MEMORY, all, |facts| {
            Some(format!("the address space is {} at most", bytes_text(facts.limits.address_space_bytes?)))
        }),
    ]
    .concat();
    let huge_pages = each(&HUGE_PAGES, all, |facts| {
        (facts.huge_pages.as_deref() == Some("never")).then(|| "transparent huge pages are off".into())
    });
    let mut findings = or_ok(shm, || Finding::ok("shm", distinct(all, describe_shm)));
    findings.extend(or_ok(limits, || Finding::ok("limits", distinct(all, describe_limits))));
    findings.extend(or_ok(huge_pages, || {
        let setting = |facts: &Facts| facts.huge_pages.clone().unwrap_or_else(|| "unknown".into());
        Finding::ok("memory.huge_pages", distinct(all, setting))
    }));
    findings
}

/// What the ranks of one host put into `/dev/shm`.
fn shm_needed(ranks: &[&Facts]) -> u64 {
    if ranks.len() < 2 {
        return 0;
    }
    let of = |facts: &&Facts| MPI_SEGMENT_BYTES + if facts.has_gpu() { NCCL_BYTES } else { 0 };
    ranks.iter().map(of).sum()
}

fn shm_small(all: &[Facts]) -> Vec<Finding> {
    let small = |ranks: Vec<&Facts>| {
        let needed = shm_needed(&ranks);
        // MPI has put its part there already, so what is there now is what was left.
        let shm =
            ranks.iter().filter_map(|facts| facts.limits.shm.as_ref()).min_by_key(|shm| shm.free_bytes)?;
        (shm.free_bytes < needed).then(|| {
            let (free, total) = (bytes_text(shm.free_bytes), bytes_text(shm.total_bytes));
            let message = format!(
                "{free} of {total} are free in /dev/shm, but {} need {}",
                count(ranks.len(), "rank"),
                bytes_text(needed)
            );
            Finding::of(&SHM_SMALL, message, ranks.iter().map(|facts| facts.rank).collect())
        })
    };
    hosts(all).into_values().filter_map(small).collect()
}

/// One finding a host: its ranks look at the same files.
fn leftovers(all: &[Facts]) -> Vec<Finding> {
    let left = |ranks: Vec<&Facts>| {
        let shm = ranks[0].limits.shm.as_ref().filter(|shm| shm.leftover_files > 0)?;
        let (files, bytes) = (count(shm.leftover_files, "file"), bytes_text(shm.leftover_bytes));
        let message = format!("{files} of dead programs in /dev/shm, {bytes}");
        Some(Finding::of(&SHM_LEFTOVERS, message, ranks.iter().map(|facts| facts.rank).collect()))
    };
    hosts(all).into_values().filter_map(left).collect()
}

fn describe_shm(facts: &Facts) -> String {
    let shm = facts.limits.shm.as_ref();
    shm.map_or_else(String::new, |shm| {
        format!("{} of {} free in /dev/shm", gibibytes(shm.free_bytes), gibibytes(shm.total_bytes))
    })
}

/// Rounded, so that ranks that look a moment apart say the same.
fn gibibytes(bytes: u64) -> String {
    if bytes >= 1 << 30 { format!("{:.0} GiB", bytes as f64 / f64::from(1 << 30)) } else { bytes_text(bytes) }
}

fn memlock(facts: &Facts) -> Option<String> {
    let limit = facts.limits.memlock_bytes?;
    let text = bytes_text(limit);
    match facts.network.rdma.first() {
        Some(adapter) => Some(format!("only {text} may be locked, but {adapter} locks what it sends")),
        None if limit < MEMLOCK_BYTES => Some(format!("only {text} may be locked")),
        None => None,
    }
}

fn open_files(facts: &Facts) -> Option<String> {
    let limit = facts.limits.open_files?;
    let needed = OWN_FILES + FILES_PER_PEER * facts.size as u64;
    (limit < needed)
        .then(|| format!("{limit} files may be open, but a rank of {} needs about {needed}", facts.size))
}

fn describe_limits(facts: &Facts) -> String {
    let or_unlimited = |text: Option<String>| text.unwrap_or_else(|| "unlimited".into());
    format!(
        "locked memory {}, open files {}",
        or_unlimited(facts.limits.memlock_bytes.map(bytes_text)),
        or_unlimited(facts.limits.open_files.map(|number| number.to_string())),
    )
}
