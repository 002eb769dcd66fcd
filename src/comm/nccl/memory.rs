//! Where NCCL reads and writes, on which stream, and when it is done: the seam between a GPU's memory and that of a double.
//!
//! Buckets lie where NCCL can reach them, and it reads and writes them in place. What lies in the host's memory (known answers,
//! clocks, gradients that were compressed there) passes through a buffer on the GPU.

use std::ffi::{c_int, c_void};

use super::abi::RawStream;
use super::library::Double;
use crate::comm::{Region, RegionMut};
use crate::torch::{DeviceBuffer, Stream, TorchError, set_current_gpu};

/// Addresses for NCCL, one a message.
#[derive(Default)]
pub struct Placed {
    pub sends: Vec<*const c_void>,
    pub receives: Vec<*mut c_void>,
}

/// The memory of one communicator's operations, one after the other.
pub trait Memory: Send {
    /// What operations that this thread begins now run on: in order with what else it computes.
    fn stream(&self) -> Result<RawStream, TorchError>;

    /// Makes NCCL see what is to be sent, and finds room for what is to be received. The addresses hold until the next call.
    fn place(&mut self, sends: &[Region<'_>], receives: &mut [RegionMut<'_>]) -> Result<Placed, TorchError>;

    /// Whether everything on this thread's stream is done.
    fn is_done(&self) -> Result<bool, TorchError>;

    /// Brings what was received to where it was asked for, if it is not there.
    fn fetch(&mut self, receives: &mut [RegionMut<'_>]) -> Result<(), TorchError>;

    /// A place's bytes, if the host can reach them.
    fn bytes_mut<'r>(&self, place: &'r mut RegionMut<'_>) -> Option<&'r mut [u8]>;
}

/// For a double of NCCL, whose devices are the CPU: all memory is within its reach. It has a stream of its own; as with a GPU,
/// results are there when the stream is done, and not before.
pub struct HostMemory {
    stream: RawStream,
    query: unsafe extern "C" fn(RawStream) -> c_int,
}

// SAFETY: a number, which the double takes from any thread.
unsafe impl Send for HostMemory {}

impl HostMemory {
    pub fn of(double: &Double) -> Self {
        Self { stream: (double.stream_create)(), query: double.stream_query }
    }
}

impl Memory for HostMemory {
    fn stream(&self) -> Result<RawStream, TorchError> {
        Ok(self.stream)
    }

    fn place(&mut self, sends: &[Region<'_>], receives: &mut [RegionMut<'_>]) -> Result<Placed, TorchError> {
        Ok(Placed {
            sends: sends.iter().map(Region::address).collect(),
            receives: receives.iter_mut().map(RegionMut::address).collect(),
        })
    }

    fn is_done(&self) -> Result<bool, TorchError> {
        // SAFETY: a stream of the double; whoever waits for an operation keeps its memory.
        Ok(unsafe { (self.query)(self.stream) } == 1)
    }

    fn fetch(&mut self, _: &mut [RegionMut<'_>]) -> Result<(), TorchError> {
        Ok(())
    }

    fn bytes_mut<'r>(&self, place: &'r mut RegionMut<'_>) -> Option<&'r mut [u8]> {
        let (address, length) = (place.address(), place.len());
        // SAFETY: of the CPU, whatever the region says; borrowed as long as the place is.
        (length > 0).then(|| unsafe { std::slice::from_raw_parts_mut(address.cast(), length) })
    }
}

/// Bytes to which messages in a device's buffer are aligned, as CUDA's own allocations are at least.
const ALIGNMENT: usize = 256;

/// A GPU: buckets are read and written in place, on the thread's current stream of libtorch; for the host's messages there is
/// a buffer.
pub struct DeviceMemory {
    device: usize,
    buffer: DeviceBuffer,
    /// Where in the buffer the messages to be received begin; none of those that are received in place.
    offsets: Vec<Option<usize>>,
}

impl DeviceMemory {
    /// `device` counts among those that this process sees; NCCL will connect it, since it becomes this thread's current one.
    pub fn new(device: usize) -> Result<Self, TorchError> {
        set_current_gpu(device)?;
        Ok(Self { device, buffer: DeviceBuffer::new(device), offsets: Vec::new() })
    }
}

impl Memory for DeviceMemory {
    fn stream(&self) -> Result<RawStream, TorchError> {
        Stream::current(self.device).map(|stream| stream.native_handle())
    }

    fn place(&mut self, sends: &[Region<'_>], receives: &mut [RegionMut<'_>]) -> Result<Placed, TorchError> {
        let mut end = 0;
        let mut offset = |is_host: bool, bytes: usize| {
            let (start, is_staged) = (end, is_host && bytes > 0);
            end += if is_staged { bytes.next_multiple_of(ALIGNMENT) } else { 0 };
            is_staged.then_some(start)
        };
        let from: Vec<Option<usize>> =
            sends.iter().map(|send| offset(matches!(send, Region::Host(_)), send.len())).collect();
        let to = |receive: &RegionMut| offset(matches!(receive, RegionMut::Host(_)), receive.len());
        self.offsets = receives.iter().map(to).collect();
        // All before any: growing moves the buffer.
        if end > 0 {
            self.buffer.reserve(end)?;
        }
        for (send, at) in sends.iter().zip(&from) {
            if let (Region::Host(bytes), &Some(at)) = (send, at) {
                self.buffer.write(at, bytes)?;
            }
        }
        let staged = |at: usize| self.buffer.address(at);
        let source = |(send, at): (&Region, &Option<usize>)| {
            at.map_or_else(|| send.address(), |at| staged(at).cast_const())
        };
        let target =
            |(receive, at): (&mut RegionMut, &Option<usize>)| at.map_or_else(|| receive.address(), staged);
        Ok(Placed {
            sends: sends.iter().zip(&from).map(source).collect(),
            receives: receives.iter_mut().zip(&self.offsets).map(target).collect(),
        })
    }

    fn is_done(&self) -> Result<bool, TorchError> {
        Stream::current(self.device)?.is_done()
    }

    fn fetch(&mut self, receives: &mut [RegionMut<'_>]) -> Result<(), TorchError> {
        for (receive, at) in receives.iter_mut().zip(&self.offsets) {
            if let (RegionMut::Host(bytes), &Some(at)) = (receive, at) {
                self.buffer.read(at, bytes)?;
            }
        }
        Ok(())
    }

    fn bytes_mut<'r>(&self, place: &'r mut RegionMut<'_>) -> Option<&'r mut [u8]> {
        match place {
            RegionMut::Host(bytes) => Some(bytes),
            RegionMut::Device(_) => None,
        }
    }
}
