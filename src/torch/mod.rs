//! The few parts of libtorch that tch does not wrap, behind safe functions.

mod allocator;
mod autocast;
mod cuda;
mod hooks;
mod stream;

pub use allocator::keep_freed_memory;
pub use autocast::Autocast;
pub use cuda::{
    DeviceBuffer, GpuMemory, cuda_devices, gpu_memory, load_cuda, set_cuda_repeatable, set_current_gpu,
};
pub use hooks::GradientHooks;
pub use stream::{Mark, Stream};

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn lockstep_torch_error() -> *const c_char;
    fn lockstep_set_hook(
        leaf: *mut C_tensor,
        index: usize,
        ready: extern "C" fn(*mut c_void, usize, *mut C_tensor),
        context: *mut c_void,
    ) -> bool;
    fn lockstep_remove_hook(leaf: *mut C_tensor) -> bool;
    fn lockstep_backward_on_this_thread() -> bool;
    #[cfg(test)]
    fn lockstep_live_hooks() -> i64;
    fn lockstep_fused_adamw(
        parameter: *mut C_tensor,
        gradient: *mut C_tensor,
        exp_avg: *mut C_tensor,
        exp_avg_sq: *mut C_tensor,
        step: f32,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> bool;
    fn lockstep_fused_sgd(
        parameter: *mut C_tensor,
        gradient: *mut C_tensor,
        momentum_buffer: *mut C_tensor,
        lr: f64,
        momentum: f64,
        is_first_step: bool,
    ) -> bool;
    fn lockstep_gelu_tanh(x: *mut C_tensor, result: *mut *mut C_tensor) -> bool;
    #[cfg(test)]
    fn lockstep_gelu_is_fast() -> bool;
    fn lockstep_autocast_enter(on_gpu: bool, half: bool) -> bool;
    fn lockstep_autocast_leave(on_gpu: bool, keep_casts: bool) -> bool;
    fn lockstep_set_deterministic(deterministic: bool) -> bool;
    fn lockstep_cpu_capability() -> *const c_char;
    fn lockstep_torch_config() -> *const c_char;
    fn lockstep_torch_version() -> *const c_char;
}

/// An exception that libtorch threw.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct TorchError(String);

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        Self(error.to_string())
    }
}

fn check(succeeded: bool) -> Result<(), TorchError> {
    if succeeded {
        return Ok(());
    }
    // SAFETY: the shim keeps the message alive in this thread until its next call.
    Err(TorchError(unsafe { text(lockstep_torch_error()) }))
}

/// # Safety
/// `pointer` is a C string.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The constants of AdamW (Loshchilov and Hutter 2019) for one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
}

/// One update as `torch.optim.AdamW(fused=True)` does it, bit for bit. All tensors are fp32 of one shape; `step`
/// is the number of this update, from 1.
pub fn fused_adamw(
    parameter: &mut Tensor,
    gradient: &mut Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    step: u64,
    constants: AdamW,
) -> Result<(), TorchError> {
    let AdamW { lr, betas: [beta1, beta2], eps, weight_decay } = constants;
    // SAFETY: the tensors are distinct and outlive the call.
    check(unsafe {
        lockstep_fused_adamw(
            parameter.as_mut_ptr(),
            gradient.as_mut_ptr(),
            exp_avg.as_mut_ptr(),
            exp_avg_sq.as_mut_ptr(),
            step as f32,
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
        )
    })
}

/// One update as `torch.optim.SGD(fused=True, momentum=...)` does it. The first update of a run stores the gradient
/// as momentum.
pub fn fused_sgd(
    parameter: &mut Tensor,
    gradient: &mut Tensor,
    momentum_buffer: &mut Tensor,
    lr: f64,
    momentum: f64,
    is_first_step: bool,
) -> Result<(), TorchError> {
    // SAFETY: the tensors are distinct and outlive the call.
    check(unsafe {
        lockstep_fused_sgd(
            parameter.as_mut_ptr(),
            gradient.as_mut_ptr(),
            momentum_buffer.as_mut_ptr(),
            lr,
            momentum,
            is_first_step,
        )
    })
}

/// `torch.nn.functional.gelu(x, approximate="tanh")`, bit for bit, forward and backward; faster in training on one
/// thread: see gelu.cpp.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor, TchError> {
    if x.device() != tch::Device::Cpu {
        return x.f_gelu("tanh");
    }
    let mut result = std::ptr::null_mut();
    // SAFETY: both pointers are valid for the call; the result is a tensor of ours if it succeeded.
    unsafe {
        check(lockstep_gelu_tanh(x.as_ptr().cast_mut(), &mut result))
            .map_err(|error| TchError::Torch(error.0))?;
        Ok(Tensor::from_ptr(result))
    }
}

/// `torch.use_deterministic_algorithms`: operations without a deterministic kernel fail.
pub fn set_deterministic(deterministic: bool) -> Result<(), TorchError> {
    // SAFETY: plain call.
    check(unsafe { lockstep_set_deterministic(deterministic) })
}

/// Instruction set of libtorch's CPU kernels, for example `AVX512`: other sets round elsewhere.
pub fn cpu_capability() -> String {
    // SAFETY: the shim returns a C string that it keeps.
    unsafe { text(lockstep_cpu_capability()) }
}

/// `torch.__config__.show()`: how libtorch was built, with the version of MKL.
pub fn build_config() -> String {
    // SAFETY: the shim returns a C string that it keeps.
    unsafe { text(lockstep_torch_config()) }
}

/// Version of libtorch, for example `2.13.0`.
pub fn version() -> String {
    // SAFETY: a C string literal.
    unsafe { text(lockstep_torch_version()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn bits(tensor: &Tensor) -> Vec<u32> {
        Vec::<f32>::try_from(tensor.view(-1)).unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Output and gradient of the input.
    fn trained(
        shape: &[i64],
        threads: i32,
        gelu: &dyn Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> (Vec<u32>, Vec<u32>) {
        let before = tch::get_num_threads();
        tch::set_num_threads(threads);
        // Between −1 and 1, without a pattern: libtorch's generator is shared by all tests that run.
        let numbers = |salt: f64| {
            let place = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) + salt;
            ((place * 12.9898).sin() * 43758.5453).frac().to_kind(Kind::Float).view(shape)
        };
        let x = (numbers(0.0) * 12.0).set_requires_grad(true);
        let upstream = numbers(1e6);
        let y = gelu(&x).unwrap();
        (&y * &upstream).sum(Kind::Float).backward();
        tch::set_num_threads(before);
        (bits(&y), bits(&x.grad()))
    }

    /// Sizes that end within a vector, several threads, and what is trained in practice.
    #[test]
    fn gelu_has_the_bits_of_libtorch() {
        for (shape, threads) in [([256, 1536], 1), ([3, 64], 1), ([7, 13], 1), ([1, 1], 1), ([64, 512], 3)] {
            let stock = |x: &Tensor| x.f_gelu("tanh");
            assert!(
                trained(&shape, threads, &gelu_tanh) == trained(&shape, threads, &stock),
                "{shape:?} on {threads} threads"
            );
        }
        let extreme =
            Tensor::from_slice(&[f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0, 1e30, -1e30, 1e-40, 0.5]);
        let x = extreme.repeat([8]).set_requires_grad(true);
        assert_eq!(bits(&gelu_tanh(&x).unwrap()), bits(&x.gelu("tanh")));
    }

    /// Where the test of bits above compares libtorch with itself, it says nothing.
    #[test]
    fn gelu_is_our_own_on_common_processors() {
        // SAFETY: plain call.
        let ours = unsafe { lockstep_gelu_is_fast() };
        let common = ["AVX2", "AVX512"].contains(&cpu_capability().as_str());
        assert!(ours || !common || !version().starts_with("2.13."), "{}", cpu_capability());
    }
}
