//! CUDA through libtorch, without linking it: libtorch's CUDA half is loaded when a run asks for it.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::{TorchError, check};

unsafe extern "C" {
    fn lockstep_set_device(device: c_int) -> bool;
    fn lockstep_gpu_memory(device: c_int, bytes: *mut i64, bytes_max: *mut i64) -> bool;
    fn lockstep_set_cuda_repeatable(deterministic: bool, allow_tf32: bool) -> bool;
}

/// libtorch's CUDA half, beside the one that this program is linked with.
const LIBRARY: &str = "libtorch_cuda.so";
/// The driver's own library, which comes with no CUDA toolkit and no wheel.
const DRIVER: &str = "libcuda.so.1";

/// Loads libtorch's CUDA half, before anything asks libtorch about CUDA: the first answer is kept. It takes seconds, so
/// only where there is a driver. An error says what is missing, and the remedy.
pub fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<(), String> {
    // SAFETY: NVIDIA's library; its initialiser may run at any time.
    let driver = unsafe { Library::open(Some(DRIVER), RTLD_NOW) }.map_err(|error| {
        format!(
            "there is no NVIDIA driver ({error}): install it, or start the container with it (apptainer exec --nv, docker run \
             --gpus all)"
        )
    })?;
    // It has threads and state of its own, and is needed to the end.
    std::mem::forget(driver);
    // SAFETY: a part of libtorch, which registers itself with the other.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
        format!("this libtorch has no CUDA half ({error}): use a CUDA build of libtorch, or a CUDA image")
    })?;
    std::mem::forget(library);
    Ok(())
}

/// GPUs that this process sees; 0 without [`load_cuda`], or where the driver is too old for libtorch's CUDA.
pub fn cuda_devices() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// Makes a GPU this thread's current one, as this process counts them. libtorch finds the device of each tensor by itself; NCCL
/// connects the current one.
pub fn set_current_gpu(device: usize) -> Result<(), TorchError> {
    // SAFETY: plain call.
    check(unsafe { lockstep_set_device(c_int::try_from(device).unwrap_or(c_int::MAX)) })
}

/// What tensors take of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    pub bytes: u64,
    /// The most so far.
    pub bytes_max: u64,
}

/// Of a device, as this process counts; none without [`load_cuda`], or before anything was computed there.
pub fn gpu_memory(device: usize) -> Option<GpuMemory> {
    let (mut bytes, mut bytes_max) = (0, 0);
    // SAFETY: places for the answers.
    check(unsafe { lockstep_gpu_memory(c_int::try_from(device).ok()?, &mut bytes, &mut bytes_max) }).ok()?;
    Some(GpuMemory { bytes: u64::try_from(bytes).ok()?, bytes_max: u64::try_from(bytes_max).ok()? })
}

/// Kernels that give the same bits each time, and fp32 that is fp32: `torch.backends.cudnn.deterministic`, no
/// `cudnn.benchmark`, and no TF32 unless it is allowed.
pub fn set_cuda_repeatable(deterministic: bool, allow_tf32: bool) -> Result<(), TorchError> {
    // SAFETY: plain call.
    check(unsafe { lockstep_set_cuda_repeatable(deterministic, allow_tf32) })
}

/// Bytes on a GPU, as many as were ever asked for.
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Device,
    bytes: Option<Tensor>,
}

impl DeviceBuffer {
    pub fn new(device: usize) -> Self {
        Self { device: Device::Cuda(device), bytes: None }
    }

    /// Makes room. What was in it is lost.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), TorchError> {
        if self.bytes.as_ref().is_none_or(|buffer| buffer.numel() < bytes) {
            self.bytes = None;
            let size = [i64::try_from(bytes.max(1)).unwrap_or(i64::MAX)];
            self.bytes = Some(Tensor::f_zeros(size, (Kind::Uint8, self.device)).map_err(TorchError::from)?);
        }
        Ok(())
    }

    /// On the device; never to be read on the host.
    pub fn address(&self, offset: usize) -> *mut c_void {
        let start = self.bytes.as_ref().map_or(std::ptr::null_mut(), Tensor::data_ptr);
        start.cast::<u8>().wrapping_add(offset).cast()
    }

    fn part(&self, offset: usize, length: usize) -> Result<Tensor, TorchError> {
        let buffer = self.bytes.as_ref().ok_or_else(|| TorchError("a buffer without room".into()))?;
        Ok(buffer.f_narrow(0, offset as i64, length as i64)?)
    }

    /// Copies from the host; done when it returns.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result<(), TorchError> {
        // SAFETY: only read, and outlived by the slice: a copy from pageable memory has read it when it returns.
        let host = unsafe { borrowed(from.as_ptr().cast_mut(), from.len()) };
        self.part(offset, from.len())?.f_copy_(&host)?;
        Ok(())
    }

    /// Copies to the host; done when it returns.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), TorchError> {
        // SAFETY: exclusive, and outlived by the slice.
        let mut host = unsafe { borrowed(to.as_mut_ptr(), to.len()) };
        host.f_copy_(&self.part(offset, to.len())?)?;
        Ok(())
    }
}

/// # Safety
/// The memory outlives the tensor.
unsafe fn borrowed(start: *mut u8, length: usize) -> Tensor {
    // SAFETY: as the caller promises.
    unsafe { Tensor::from_blob(start, &[length as i64], &[1], Kind::Uint8, Device::Cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where libtorch has no CUDA half, or it is not loaded: no crash, and no number.
    #[test]
    fn the_memory_of_a_gpu_that_is_not_there_is_unknown() {
        assert_eq!(gpu_memory(0), None);
        assert_eq!(gpu_memory(usize::MAX), None);
    }
}
