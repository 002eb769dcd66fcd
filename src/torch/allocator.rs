//! Memory that libtorch frees and asks for again in every micro-batch.

/// Tells the C library to keep freed memory instead of handing it back to the operating system, which would have to zero
/// every page of it again in the next micro-batch. Elsewhere than in glibc it does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        /// What lies above it is mapped and unmapped with every use: the largest value that glibc takes.
        const MMAP_THRESHOLD: i32 = 32 << 20;
        /// Memory that the heap grows by.
        const TOP_PAD: i32 = 64 << 20;
        // SAFETY: plain settings; one that glibc refuses changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
        }
    }
}
