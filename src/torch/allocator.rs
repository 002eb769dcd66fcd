//! Memory that libtorch frees and asks for again in every micro-batch.

/// Tells the C library to keep freed memory instead of handing it back to the operating system, which would have to zero
/// every page of it again in the next micro-batch, and asks for huge pages where the heap starts: without them, misses of
/// the address translation cost a few percent of a step. Elsewhere than in glibc it does nothing.
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
        }
        grow_heap_of_huge_pages(MMAP_THRESHOLD as usize - 4096);
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TOP_PAD, TOP_PAD) };
    }
}

/// Lets the heap grow once by address space that is backed by huge pages as it is used. Memory is taken only then. Where
/// the system refuses (a limit on address space, no such pages), the heap stays as it is.
#[cfg(target_env = "gnu")]
fn grow_heap_of_huge_pages(block: usize) {
    const GROWTH: i32 = 1 << 30;
    const HUGE_PAGE: usize = 2 << 20;
    // SAFETY: `sbrk(0)` and `malloc` are always allowed. The range that is advised on lies between the old and the new
    // end of the heap, and advice does not change what memory holds: where another thread moves the end meanwhile, more or
    // less of it is advised on.
    unsafe {
        libc::mallopt(libc::M_TOP_PAD, GROWTH);
        let before = libc::sbrk(0) as usize;
        // Larger than what the heap has left, so that it grows.
        libc::free(libc::malloc(block));
        let after = libc::sbrk(0) as usize;
        let start = before.next_multiple_of(HUGE_PAGE);
        if after > start {
            libc::madvise(start as *mut libc::c_void, after - start, libc::MADV_HUGEPAGE);
        }
    }
}
