//! The operating system: network, limits, cores, clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use crate::doctor::facts::{Cpu, Interface, Limits, Network, SharedMemory};

/// The first line of a small file of the kernel's.
pub fn first_line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

/// Names in a folder, sorted; none where there is no such folder.
fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub fn network() -> Network {
    let mut interfaces = BTreeMap::<String, Interface>::new();
    for entry in getifaddrs().into_iter().flatten() {
        let interface = interfaces.entry(entry.interface_name.clone()).or_insert_with(|| Interface {
            name: entry.interface_name.clone(),
            is_up: entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            is_loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        });
        let Some(address) = entry.address else { continue };
        if let Some(address) = address.as_sockaddr_in() {
            let mask = entry.netmask.as_ref().and_then(|mask| Some(mask.as_sockaddr_in()?.ip()));
            let prefix = mask.map_or(32, |mask| u32::from(mask).count_ones() as u8);
            interface.ipv4.push((address.ip(), prefix));
        } else if let Some(address) = address.as_sockaddr_in6()
            && !address.ip().is_unicast_link_local()
        {
            interface.ipv6.push(address.ip());
        }
    }
    Network { interfaces: interfaces.into_values().collect(), rdma: names("/sys/class/infiniband") }
}

pub fn limits() -> Limits {
    let soft = |resource| {
        let (soft, _) = getrlimit(resource).ok()?;
        (soft != RLIM_INFINITY).then_some(soft)
    };
    Limits {
        memlock_bytes: soft(Resource::RLIMIT_MEMLOCK),
        open_files: soft(Resource::RLIMIT_NOFILE),
        file_bytes: soft(Resource::RLIMIT_FSIZE),
        address_space_bytes: soft(Resource::RLIMIT_AS),
        shm: shared_memory(Path::new("/dev/shm")),
    }
}

fn shared_memory(folder: &Path) -> Option<SharedMemory> {
    let space = statvfs(folder).ok().filter(|_| folder.is_dir())?;
    let left = leftovers(folder);
    Some(SharedMemory {
        total_bytes: space.blocks() * space.fragment_size(),
        free_bytes: space.blocks_available() * space.fragment_size(),
        leftover_files: left.len(),
        leftover_bytes: left.iter().map(|(_, bytes)| bytes).sum(),
    })
}

/// This user's files of ours, of MPI and of NCCL that no process has mapped, with the space that they take.
fn leftovers(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut mapped: Option<BTreeSet<PathBuf>> = None;
    let own = nix::unistd::geteuid().as_raw();
    let is_ours = |name: &str| {
        ["lockstep-", "vader_segment.", "nccl-", "psm2_", "cma_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let candidates = entries.filter(|entry| is_ours(&entry.file_name().to_string_lossy()));
    let unused = candidates.filter_map(|entry| {
        let (path, metadata) = (entry.path(), entry.metadata().ok()?);
        let is_used = mapped.get_or_insert_with(|| mapped_below(folder)).contains(&path);
        (metadata.uid() == own && !is_used).then(|| (path, metadata.blocks() * 512))
    });
    unused.collect()
}

/// Files below a folder that some process has mapped, as far as this one may see.
fn mapped_below(folder: &Path) -> BTreeSet<PathBuf> {
    let processes = names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let prefix = format!("{}/", folder.display());
    let mut paths = BTreeSet::new();
    for process in processes {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
        let mapped = maps.lines().filter_map(|line| Some(line[line.find(&prefix)?..].into()));
        paths.extend(mapped);
    }
    paths
}

pub fn cpu() -> Cpu {
    let set = sched_getaffinity(Pid::from_raw(0)).ok();
    let mask = set.map(|set| (0..CpuSet::count()).filter(move |core| set.is_set(*core).unwrap_or(false)));
    let mask: Vec<usize> = mask.into_iter().flatten().collect();
    let online = first_line("/sys/devices/system/cpu/online").map_or(mask.len(), |list| list_length(&list));
    // It knows control groups of both versions.
    let usable = std::thread::available_parallelism().map_or(mask.len(), Into::into);
    Cpu { threads_per_rank: 0, online, mask, usable }
}

/// `0-3,8` are five.
fn list_length(list: &str) -> usize {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.trim().parse::<usize>().ok()?.checked_sub(first.trim().parse().ok()?)? + 1)
    };
    list.split(',').filter_map(range).sum()
}

/// Whether something like NTP keeps the kernel's clock right.
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: an empty request only asks; all of the struct is integers.
    let (status, answer) = unsafe {
        let mut request: libc::timex = std::mem::zeroed();
        let answer = libc::adjtimex(&mut request);
        (request.status, answer)
    };
    (answer >= 0).then_some(status & libc::STA_UNSYNC == 0)
}

/// `always`, `madvise` or `never`: the one in brackets.
pub fn huge_pages() -> Option<String> {
    let line = first_line("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let (_, rest) = line.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// One line a task.
pub fn pbs_hosts(path: String) -> Result<Vec<String>, String> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.split_whitespace().map(ToOwned::to_owned).collect()),
        Err(error) => Err(format!("PBS_NODEFILE={path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cores_of_a_list() {
        assert_eq!(["0", "0-3", "0-3,8", "0-1,4-5", ""].map(list_length), [1, 4, 5, 4, 0]);
    }

    #[test]
    fn this_machine_has_a_core_and_a_loopback() {
        let cpu = cpu();
        assert!(!cpu.mask.is_empty() && cpu.usable >= 1 && cpu.online >= cpu.mask.len(), "{cpu:?}");
        let network = network();
        let loopback = network.interfaces.iter().find(|interface| interface.is_loopback);
        assert!(loopback.is_some(), "{network:?}");
    }

    #[test]
    fn what_a_process_has_mapped_is_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["vader_segment.live", "vader_segment.dead", "notes"] {
            fs::write(path(name), [1; 8192]).unwrap();
        }
        let file = fs::File::open(path("vader_segment.live")).unwrap();
        // SAFETY: nobody else writes to the file.
        let mapping = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let left = leftovers(&folder.path().canonicalize().unwrap());
        assert_eq!(
            left.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(),
            [path("vader_segment.dead")]
        );
        assert!(left[0].1 >= 8192 && mapping.len() == 8192);
    }
}
