//! NCCL's own log: where it is written, and what it says with `NCCL_DEBUG=INFO`: which transport each channel took, the
//! network, warnings.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use lockstep_record::RunDir;
use serde::{Deserialize, Serialize};

/// What a file that was written with `NCCL_DEBUG=INFO` tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NcclLog {
    pub path: String,
    /// Why it could not be read.
    pub error: Option<String>,
    /// For example `2.29.7+cuda13.0`.
    pub version: Option<String>,
    /// Channels by transport: `P2P`, `SHM`, `NET/IB`, `NET/Socket`, ….
    pub channels: BTreeMap<String, usize>,
    /// The network that NCCL chose, for example `IB` or `Socket`.
    pub network: Option<String>,
    /// What follows `NCCL WARN`; the first ones.
    pub warnings: Vec<String>,
    /// How many warnings there are in all.
    pub warning_count: usize,
}

/// Of the levels that `NCCL_DEBUG` has, the one that says which way data take. It costs some lines a communicator.
const LEVEL: &str = "INFO";

/// Has NCCL write its log into the run directory, unless the environment says otherwise.
///
/// # Safety
/// No other thread of this process runs yet: the environment is written to.
pub unsafe fn prepare_log(run: &RunDir) {
    let set = |name: &str, value: &std::ffi::OsStr| {
        if std::env::var_os(name).is_none() {
            // SAFETY: as the caller promises.
            unsafe { std::env::set_var(name, value) };
        }
    };
    set("NCCL_DEBUG", LEVEL.as_ref());
    set("NCCL_DEBUG_FILE", run.logs().join("nccl.%h.%p").as_os_str());
}

/// The transports in this process's own log, without repeats; none where it is written elsewhere or tells nothing.
pub fn transports() -> Vec<String> {
    let process = std::process::id().to_string();
    let own = std::env::var("NCCL_DEBUG_FILE")
        .map(|pattern| matching(&pattern.replace("%p", &process), &hostname()));
    own.unwrap_or_default().iter().flat_map(|path| read(path).channels.into_keys()).collect()
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The start of a log tells: channels are set up once.
const BYTES_MAX: u64 = 64 << 20;
const WARNINGS_MAX: usize = 5;
const WARNING_CHARACTERS_MAX: usize = 200;

/// The files to read: those that were named, else those that `NCCL_DEBUG_FILE` names.
pub fn paths(named: &[PathBuf]) -> Vec<PathBuf> {
    if !named.is_empty() {
        return named.to_vec();
    }
    std::env::var("NCCL_DEBUG_FILE").map(|pattern| matching(&pattern, &hostname())).unwrap_or_default()
}

/// NCCL puts the host's name for `%h` and the process's number for `%p`: of those, every file that is there.
fn matching(pattern: &str, host: &str) -> Vec<PathBuf> {
    let pattern = pattern.replace("%h", host);
    let Some((before, after)) = pattern.split_once("%p") else {
        return Some(PathBuf::from(pattern)).filter(|path| path.is_file()).into_iter().collect();
    };
    let (folder, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let folder = if folder.is_empty() { "/" } else { folder };
    let is_one = |name: &str| {
        let process = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(after));
        process.is_some_and(|process| !process.is_empty() && process.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| is_one(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

pub fn read(path: &Path) -> NcclLog {
    let mut bytes = Vec::new();
    let result = fs::File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    let log = match result {
        Ok(_) => parse(&String::from_utf8_lossy(&bytes)),
        Err(error) => NcclLog { error: Some(error.to_string()), ..NcclLog::default() },
    };
    NcclLog { path: path.display().to_string(), ..log }
}

/// Lines look like `host:pid:tid [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM`; earlier versions write `Ring`
/// for `Channel`, and `[receive]` or `[send]` before `via`.
fn parse(text: &str) -> NcclLog {
    let mut log = NcclLog::default();
    let mut lines = 0;
    for line in text.lines() {
        if let Some((_, version)) = line.split_once("NCCL version ") {
            lines += 1;
            log.version = version.split_whitespace().next().map(ToOwned::to_owned).or(log.version);
        } else if let Some((_, message)) = line.split_once("NCCL WARN ") {
            lines += 1;
            log.warning_count += 1;
            if log.warnings.len() < WARNINGS_MAX {
                log.warnings.push(message.trim().chars().take(WARNING_CHARACTERS_MAX).collect());
            }
        } else if let Some((_, message)) = line.split_once("NCCL INFO ") {
            lines += 1;
            if let Some(transport) = transport(message) {
                *log.channels.entry(transport).or_default() += 1;
            } else if let Some(network) = message.strip_prefix("Using network ") {
                log.network = Some(network.trim().to_owned());
            }
        }
    }
    log.error = (lines == 0).then(|| "no line of NCCL's in it".into());
    log
}

/// Of a channel from one rank to another: `P2P`, `SHM`, `NET/IB`, `NET/Socket`.
fn transport(message: &str) -> Option<String> {
    let (channel, via) = message.split_once(" via ")?;
    let is_channel = ["Channel ", "Ring ", "Tree "].iter().any(|start| channel.starts_with(start));
    if !is_channel || !channel.contains("->") {
        return None;
    }
    let mut parts = via.split_whitespace().next()?.split('/');
    match (parts.next()?, parts.next()) {
        ("NET", Some(network)) => Some(format!("NET/{network}")),
        (transport, _) if !transport.is_empty() => Some(transport.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that users of NCCL have posted, from versions 2.4 to 2.27.
    const TWO_HOSTS: &str = "\
gpu-06:4015539:4015539 [0] NCCL INFO cudaDriverVersion 12020
NCCL version 2.19.3+cuda12.2
gpu-06:4015539:4015652 [0] NCCL INFO Using network IB
gpu-06:4015539:4015652 [0] NCCL INFO Channel 07/0 : 0[0] -> 2[0] [receive] via NET/IB/3/GDRDMA
gpu-06:4015540:4015653 [1] NCCL INFO Channel 01/0 : 3[1] -> 1[1] [send] via NET/IB/2/GDRDMA
gpu-06:4015540:4015653 [1] NCCL INFO Channel 00/0 : 3[1] -> 2[0] via P2P/CUMEM
gpu-06:4015540:4015653 [1] NCCL INFO Connected all rings
";

    #[test]
    fn two_hosts_with_infiniband() {
        let log = parse(TWO_HOSTS);
        assert_eq!(log.version.as_deref(), Some("2.19.3+cuda12.2"));
        assert_eq!(log.network.as_deref(), Some("IB"));
        assert_eq!(log.channels, [("NET/IB".to_owned(), 2), ("P2P".to_owned(), 1)].into());
        assert_eq!((log.error, log.warning_count), (None, 0));
    }

    #[test]
    fn sockets_shared_memory_and_warnings() {
        let log = parse(
            "a:919:1150 [0] NCCL INFO Channel 01/0 : 8[0] -> 15[7] via P2P/IPC/read\n\
             a:926:1151 [7] NCCL INFO Channel 03/0 : 15[7] -> 6[6] [send] via NET/Socket/3\n\
             a:926:1151 [7] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct\n\
             ip-172-31-0-11:45384:45384 [0] NCCL INFO Ring 00 : 3 -> 4 [send] via NET/Socket/0\n\
             a:926:1151 [7] include/socket.h:390 NCCL WARN Connect to 10.0.0.1<4> failed : Connection refused\n\
             a:926:1151 [7] misc/ibvwrap.cc:94 NCCL WARN Call to ibv_reg_mr failed\n\
             a:926:1151 [7] NCCL INFO Trees [0] 1/-1/-1->0->-1 via nothing\n",
        );
        let expected = [("NET/Socket", 2), ("P2P", 1), ("SHM", 1)];
        assert_eq!(log.channels, expected.map(|(name, count)| (name.to_owned(), count)).into());
        assert_eq!(log.warning_count, 2);
        assert_eq!(log.warnings[0], "Connect to 10.0.0.1<4> failed : Connection refused");
    }

    #[test]
    fn something_else_is_no_log() {
        for text in ["", "hello\nvia P2P\n", "NCCL", "\u{0}\u{0}"] {
            assert!(parse(text).error.is_some(), "{text}");
        }
        assert!(read(Path::new("/no/such/log")).error.unwrap().contains("No such file"));
    }

    #[test]
    fn the_files_of_a_pattern() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nccl.mars.12", "nccl.mars.7", "nccl.venus.3", "nccl.mars.x", "nccl.mars."] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let pattern = folder.path().join("nccl.%h.%p");
        let found = matching(pattern.to_str().unwrap(), "mars");
        assert_eq!(found, ["nccl.mars.12", "nccl.mars.7"].map(|name| folder.path().join(name)));
        let one = folder.path().join("nccl.venus.3");
        assert_eq!(matching(one.to_str().unwrap(), "mars"), [one]);
        assert!(matching("/no/such/%p", "mars").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(\\PC|\n|NCCL INFO Channel |NCCL WARN |NCCL version |->| via |/)*") {
            let log = parse(&text);
            proptest::prop_assert!(log.warnings.len() <= WARNINGS_MAX);
        }
    }
}
