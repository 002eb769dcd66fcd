//! How the operating system shares a core between the training and the communication thread.

/// Asks for short turns on the core that this thread shares with one that computes. Linux's scheduler (EEVDF, from 6.12)
/// then lets it run soon after it wakes up, and no longer than before in all: without it a message waits for the other
/// thread's turn of some milliseconds to end, and the link is idle meanwhile. Elsewhere nothing changes.
pub fn ask_for_short_turns() {
    #[cfg(target_os = "linux")]
    {
        /// Of a turn, in nanoseconds: the least that Linux takes.
        const TURN: u64 = 100_000;
        // SAFETY: plain numbers, of which zero is one.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::sched_attr>() as u32;
        // SAFETY: both calls are about this thread (0), with the structure and size that they take. They may refuse.
        unsafe {
            if libc::syscall(libc::SYS_sched_getattr, 0, &mut attributes, size, 0u32) == 0 {
                attributes.sched_runtime = TURN;
                libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0u32);
            }
        }
    }
}
