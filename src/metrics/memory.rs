//! How much memory this process holds.

/// Resident set in bytes, from `/proc/self/statm`; 0 where there is none.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    // SAFETY: sysconf only answers.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page_bytes).unwrap_or(0)
}

/// The most that it ever was, from `/proc/self/status`; 0 where there is none.
pub fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = most.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_grows_with_what_is_touched() {
        let before = super::resident_bytes();
        let block = vec![1u8; 64 << 20];
        let after = super::resident_bytes();
        assert!(before > 0 && after >= before + (48 << 20), "{before} {after} {}", block.len());
        let most = super::resident_bytes_max();
        // Not every kernel writes it down.
        assert!(most == 0 || most + (4 << 20) >= after, "{most} {after}");
    }
}
