//! The few parts of libtorch that tch does not wrap, behind safe functions.

mod allocator;
mod hooks;

pub use allocator::keep_freed_memory;
pub use hooks::GradientHooks;

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;
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
    fn lockstep_set_deterministic(deterministic: bool) -> bool;
    fn lockstep_cpu_capability() -> *const c_char;
    fn lockstep_torch_config() -> *const c_char;
    fn lockstep_torch_version() -> *const c_char;
}

/// An exception that libtorch threw.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct TorchError(String);

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
