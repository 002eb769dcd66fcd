//! `NCCL_SOCKET_IFNAME`: names of network interfaces of which one must be there.

use crate::abi::{Error, INVALID_USAGE};

pub fn check() -> Result<(), Error> {
    let Ok(wanted) = std::env::var("NCCL_SOCKET_IFNAME") else { return Ok(()) };
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    match wanted.is_empty() || names.iter().any(|name| matches(&wanted, name)) {
        true => Ok(()),
        false => Err(Error::new(INVALID_USAGE, "Bootstrap : no socket interface found")),
    }
}

/// A list of prefixes; after `=` of whole names, after `^` of what is not wanted.
fn matches(wanted: &str, name: &str) -> bool {
    let (is_not, rest) = wanted.strip_prefix('^').map_or((false, wanted), |rest| (true, rest));
    let (is_whole, list) = rest.strip_prefix('=').map_or((false, rest), |list| (true, list));
    let listed = list.split(',').any(|entry| if is_whole { name == entry } else { name.starts_with(entry) });
    listed != is_not
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn lists_as_nccl_reads_them() {
        assert!(matches("eth", "eth0") && matches("lo,eth", "eth0") && matches("=eth0", "eth0"));
        assert!(!matches("=eth", "eth0") && !matches("^eth", "eth0") && matches("^docker", "eth0"));
        assert!(!matches("ib", "eth0"));
    }
}
