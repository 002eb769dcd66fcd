//! Streams of a GPU, and the order between them. What one thread computes on a GPU goes to its current stream, and is done in
//! that order some time later; what two threads compute has an order only where one stream waits for a mark on the other.

use std::ffi::{c_int, c_void};

use tch::Device;

use super::{TorchError, check};

/// `c10::Event`, of which only the shim knows what is in it.
#[repr(C)]
struct RawEvent([u8; 0]);

unsafe extern "C" {
    fn lockstep_stream_new(device: c_int, id: *mut i64, native: *mut *mut c_void) -> bool;
    fn lockstep_stream_current(device: c_int, id: *mut i64, native: *mut *mut c_void) -> bool;
    fn lockstep_stream_exchange(device: c_int, id: i64, previous: *mut i64) -> bool;
    fn lockstep_stream_query(device: c_int, id: i64, done: *mut bool) -> bool;
    fn lockstep_event_record(device: c_int, event: *mut *mut RawEvent) -> bool;
    fn lockstep_event_wait(device: c_int, event: *const RawEvent) -> bool;
    fn lockstep_event_free(event: *mut RawEvent);
}

/// A stream of libtorch's: what it runs is ordered, and goes on beside other streams.
#[derive(Debug)]
pub struct Stream {
    device: c_int,
    id: i64,
    native: *mut c_void,
}

// SAFETY: CUDA's streams may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    /// One of libtorch's pool, on a device as this process counts them.
    pub fn of_high_priority(device: usize) -> Result<Self, TorchError> {
        Self::named(device, lockstep_stream_new)
    }

    /// The one that this thread's work on a device goes to.
    pub fn current(device: usize) -> Result<Self, TorchError> {
        Self::named(device, lockstep_stream_current)
    }

    fn named(
        device: usize,
        name: unsafe extern "C" fn(c_int, *mut i64, *mut *mut c_void) -> bool,
    ) -> Result<Self, TorchError> {
        let device = c_int::try_from(device).unwrap_or(c_int::MAX);
        let mut stream = Self { device, id: 0, native: std::ptr::null_mut() };
        // SAFETY: places for the answers.
        check(unsafe { name(device, &mut stream.id, &mut stream.native) })?;
        Ok(stream)
    }

    /// The `cudaStream_t`.
    pub fn native_handle(&self) -> *mut c_void {
        self.native
    }

    /// Whether everything on it is done. An error is one of what ran on the device.
    pub fn is_done(&self) -> Result<bool, TorchError> {
        let mut done = false;
        // SAFETY: a place for the answer.
        check(unsafe { lockstep_stream_query(self.device, self.id, &mut done) })?;
        Ok(done)
    }

    /// Puts what this thread does meanwhile on this stream, and makes its device the thread's current one.
    pub fn run<T, E: From<TorchError>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let exchange = |id: i64| {
            let mut previous = 0;
            // SAFETY: a place for the answer.
            check(unsafe { lockstep_stream_exchange(self.device, id, &mut previous) }).map(|()| previous)
        };
        let before = exchange(self.id)?;
        let result = work();
        let restored = exchange(before);
        // After a fault of the device nothing works any more: the first error is the one to tell.
        let value = result?;
        restored?;
        Ok(value)
    }
}

/// Where a thread's work on a device stands, for another thread's to wait for. On the CPU nothing is outstanding when a call
/// returns, so there is nothing to wait for.
#[derive(Debug, Default)]
pub struct Mark(Option<Event>);

#[derive(Debug)]
struct Event {
    device: c_int,
    event: *mut RawEvent,
}

// SAFETY: CUDA's events may be used from any thread, and this one has a single owner.
unsafe impl Send for Event {}

impl Mark {
    /// Behind everything that this thread's current stream has been given so far.
    pub fn here(device: Device) -> Result<Self, TorchError> {
        let Device::Cuda(device) = device else { return Ok(Self(None)) };
        let device = c_int::try_from(device).unwrap_or(c_int::MAX);
        let mut event = std::ptr::null_mut();
        // SAFETY: a place for the answer.
        check(unsafe { lockstep_event_record(device, &mut event) })?;
        Ok(Self(Some(Event { device, event })))
    }

    /// What this thread's current stream is given from now on comes after. The thread itself goes on.
    pub fn wait(&self) -> Result<(), TorchError> {
        match &self.0 {
            None => Ok(()),
            // SAFETY: an event that lives as long as `self`.
            Some(Event { device, event }) => check(unsafe { lockstep_event_wait(*device, *event) }),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `here`, and used no more. CUDA keeps what is still waited for.
        unsafe { lockstep_event_free(self.event) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_cpu_nothing_is_outstanding() {
        let mark = Mark::here(Device::Cpu).unwrap();
        assert!(mark.0.is_none() && mark.wait().is_ok());
    }

    /// Where libtorch has no CUDA half, or it is not loaded: an error, and no crash.
    #[test]
    fn a_gpu_that_is_not_there_has_no_streams() {
        assert!(Stream::current(0).is_err() && Stream::of_high_priority(0).is_err());
        assert!(Mark::here(Device::Cuda(0)).is_err());
    }
}
