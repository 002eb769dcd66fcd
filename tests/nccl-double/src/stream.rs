//! Streams of the host's memory. What an operation on one receives is put where it belongs only when somebody asks whether the
//! stream is done: as with a GPU, whoever reads without asking reads what was there before, and does so every time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Not a stream: operations on it write at once, and are done when their communicator says so.
pub const DEFAULT: usize = 0;

static STREAMS: Mutex<BTreeMap<usize, Stream>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Stream {
    /// Operations that were begun and have not ended.
    running: usize,
    delivered_when_asked: Vec<Delivery>,
}

/// Bytes, and where they go.
pub struct Delivery {
    pub address: usize,
    pub bytes: Vec<u8>,
}

fn streams() -> MutexGuard<'static, BTreeMap<usize, Stream>> {
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new one.
pub fn create() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(DEFAULT + 1);
    NEXT.fetch_add(1, Relaxed)
}

/// An operation begins. What nobody asked for is lost: its memory may be gone.
pub fn begin(stream: usize) {
    if stream != DEFAULT {
        let mut streams = streams();
        let stream = streams.entry(stream).or_default();
        stream.delivered_when_asked.clear();
        stream.running += 1;
    }
}

/// An operation has ended, well if it delivers something.
pub fn end(stream: usize, delivery: Option<Delivery>) {
    if let Some(stream) = streams().get_mut(&stream) {
        stream.running = stream.running.saturating_sub(1);
        stream.delivered_when_asked.extend(delivery);
    }
}

/// Whether all operations have ended; then their results are where they belong.
///
/// # Safety
/// The memory of the stream's operations is there, and nobody else uses it.
pub unsafe fn query(stream: usize) -> bool {
    let mut streams = streams();
    let Some(stream) = streams.get_mut(&stream) else { return true };
    if stream.running > 0 {
        return false;
    }
    for Delivery { address, bytes } in stream.delivered_when_asked.drain(..) {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_arrives_before_it_is_asked_for() {
        let mut place = [0u8; 4];
        let to = |place: &mut [u8; 4], byte| Delivery {
            address: place.as_mut_ptr() as usize,
            bytes: vec![byte; 4],
        };
        let stream = create();
        begin(stream);
        // SAFETY: `place` lives.
        unsafe {
            assert!(!query(stream));
            end(stream, Some(to(&mut place, 7)));
            assert_eq!(place, [0; 4]);
            assert!(query(stream));
            assert_eq!(place, [7; 4]);
            // The next operation makes an end of what was never asked for.
            begin(stream);
            end(stream, Some(to(&mut place, 8)));
            begin(stream);
            end(stream, None);
            assert!(query(stream));
            assert_eq!(place, [7; 4]);
            assert!(query(DEFAULT) && query(create()));
        }
    }
}
