//! Where NCCL reads and writes: the seam between buckets, which lie in the host's memory, and the memory of a device.

use std::ffi::{c_int, c_void};

use super::abi::RawStream;
use super::library::Double;
use crate::torch::{DeviceBuffer, Stream, TorchError};

/// Addresses for NCCL, one a message.
#[derive(Default)]
pub struct Placed {
    pub sends: Vec<*const c_void>,
    pub receives: Vec<*mut c_void>,
}

/// The memory of one communicator's operations, one after the other, and the stream that they run on.
pub trait Memory: Send {
    fn stream(&self) -> RawStream;

    /// Makes NCCL see what is to be sent, and finds room for what is to be received. The addresses hold until the next call.
    fn place(&mut self, sends: &[&[u8]], receives: &mut [&mut [u8]]) -> Result<Placed, TorchError>;

    /// Whether everything on the stream is done.
    fn is_done(&self) -> Result<bool, TorchError>;

    /// Brings what was received to where it was asked for.
    fn fetch(&mut self, receives: &mut [&mut [u8]]) -> Result<(), TorchError>;
}

/// The buckets themselves, for a double of NCCL, on a stream of its own: as with a GPU, results are there when the stream is
/// done, and not before.
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
    fn stream(&self) -> RawStream {
        self.stream
    }

    fn place(&mut self, sends: &[&[u8]], receives: &mut [&mut [u8]]) -> Result<Placed, TorchError> {
        Ok(Placed {
            sends: sends.iter().map(|send| send.as_ptr().cast()).collect(),
            receives: receives.iter_mut().map(|receive| receive.as_mut_ptr().cast()).collect(),
        })
    }

    fn is_done(&self) -> Result<bool, TorchError> {
        // SAFETY: a stream of the double; whoever waits for an operation keeps its memory.
        Ok(unsafe { (self.query)(self.stream) } == 1)
    }

    fn fetch(&mut self, _: &mut [&mut [u8]]) -> Result<(), TorchError> {
        Ok(())
    }
}

/// Bytes to which messages in a device's buffer are aligned, as CUDA's own allocations are at least.
const ALIGNMENT: usize = 256;

/// A buffer on a GPU, to which and from which messages are copied, on a stream of its own: what the training computes
/// meanwhile is on others.
pub struct DeviceMemory {
    stream: Stream,
    buffer: DeviceBuffer,
    /// Where the messages to be received begin.
    offsets: Vec<usize>,
}

impl DeviceMemory {
    /// `device` counts among those that this process sees.
    pub fn new(device: usize) -> Result<Self, TorchError> {
        let stream = Stream::of_high_priority(device)?;
        Ok(Self { buffer: DeviceBuffer::new(device), stream, offsets: Vec::new() })
    }
}

impl Memory for DeviceMemory {
    fn stream(&self) -> RawStream {
        self.stream.native_handle()
    }

    fn place(&mut self, sends: &[&[u8]], receives: &mut [&mut [u8]]) -> Result<Placed, TorchError> {
        let mut end = 0;
        let mut offset = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            start
        };
        let from: Vec<usize> = sends.iter().map(|send| offset(send.len())).collect();
        self.offsets = receives.iter().map(|receive| offset(receive.len())).collect();
        // All before any: growing moves the buffer.
        let buffer = &mut self.buffer;
        self.stream.run(|| {
            buffer.reserve(end)?;
            sends.iter().zip(&from).try_for_each(|(send, &at)| buffer.write(at, send))
        })?;
        Ok(Placed {
            sends: from.iter().map(|&at| self.buffer.address(at).cast_const()).collect(),
            receives: self.offsets.iter().map(|&at| self.buffer.address(at)).collect(),
        })
    }

    fn is_done(&self) -> Result<bool, TorchError> {
        self.stream.is_done()
    }

    fn fetch(&mut self, receives: &mut [&mut [u8]]) -> Result<(), TorchError> {
        let (buffer, offsets) = (&self.buffer, &self.offsets);
        self.stream.run(|| receives.iter_mut().zip(offsets).try_for_each(|(to, &at)| buffer.read(at, to)))
    }
}
