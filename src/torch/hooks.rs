//! Gradients as they become ready: a hook on each leaf takes its gradient away from autograd during the backward pass,
//! as `torch.Tensor.register_post_accumulate_grad_hook` allows in Python.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{TorchError, check, lockstep_backward_on_this_thread, lockstep_remove_hook, lockstep_set_hook};

/// Who gets the gradients of the backward pass in progress. The lifetime is a lie while the pass lasts, which
/// [`GradientHooks::backward`] outlives.
type Sink = *mut dyn FnMut(usize, Tensor);

/// What the hooks share.
#[derive(Default)]
struct Shared {
    sink: Option<Sink>,
    /// A panic of the sink: it must not unwind through libtorch.
    panic: Option<Box<dyn Any + Send>>,
}

/// Hooks on a model's leaves; removed when dropped.
pub struct GradientHooks {
    leaves: Vec<Tensor>,
    /// Boxed, because the hooks hold its address.
    shared: Box<RefCell<Shared>>,
}

extern "C" fn gradient_ready(context: *mut c_void, leaf: usize, gradient: *mut C_tensor) {
    // SAFETY: the shim hands over the gradient's ownership; `context` is the `shared` of hooks that still exist.
    let (gradient, shared) =
        unsafe { (Tensor::from_ptr(gradient), &*context.cast_const().cast::<RefCell<Shared>>()) };
    // Not borrowed during the call below.
    let (sink, failed) = (shared.borrow().sink, shared.borrow().panic.is_some());
    let Some(sink) = sink.filter(|_| !failed) else { return };
    // SAFETY: `backward` set it and has not returned.
    let call = AssertUnwindSafe(|| unsafe { (*sink)(leaf, gradient) });
    if let Err(panic) = catch_unwind(call) {
        shared.borrow_mut().panic = Some(panic);
    }
}

impl GradientHooks {
    /// Hooks the leaves that require a gradient; the i-th of all is then called i.
    pub fn install(leaves: &[Tensor]) -> Result<Self, TorchError> {
        let mut hooks = Self { leaves: Vec::new(), shared: Box::default() };
        for (index, leaf) in leaves.iter().enumerate().filter(|(_, leaf)| leaf.requires_grad()) {
            let mut leaf = leaf.shallow_clone();
            let context = std::ptr::from_ref(&*hooks.shared).cast_mut().cast();
            // SAFETY: the context lives until the hooks are removed, in `drop`.
            check(unsafe { lockstep_set_hook(leaf.as_mut_ptr(), index, gradient_ready, context) })?;
            hooks.leaves.push(leaf);
        }
        Ok(hooks)
    }

    /// Runs the backward pass from `loss`, all of it on this thread, wherever the tensors lie. `sink` gets each leaf's index and gradient as soon as it is final; nothing
    /// stays in the leaves. A panic of the sink goes on after the pass.
    pub fn backward(&self, loss: &Tensor, sink: &mut dyn FnMut(usize, Tensor)) -> Result<(), TorchError> {
        // The sink is neither made for other threads nor to be called by two at once.
        // SAFETY: plain call.
        check(unsafe { lockstep_backward_on_this_thread() })?;
        let sink: *mut (dyn FnMut(usize, Tensor) + '_) = sink;
        // SAFETY: only the lifetime changes; the pointer is gone before this function returns.
        let sink: Sink = unsafe { std::mem::transmute(sink) };
        self.shared.borrow_mut().sink = Some(sink);
        let result = loss.f_backward();
        let Shared { panic, .. } = self.shared.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        Ok(result?)
    }
}

impl Drop for GradientHooks {
    fn drop(&mut self) {
        for leaf in &mut self.leaves {
            // SAFETY: a valid tensor. It cannot fail for a leaf that took a hook, and there is no one to tell.
            let _ = check(unsafe { lockstep_remove_hook(leaf.as_mut_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::lockstep_live_hooks;
    use tch::{Device, Kind};

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    /// All hooks of the process are counted, so these tests take turns.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn each_gradient_comes_once_a_pass_and_none_stays() {
        let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
        let leaves = [leaf(&[1.0, 2.0]), leaf(&[3.0, 4.0]), leaf(&[5.0])];
        let hooks = GradientHooks::install(&leaves).unwrap();
        for _ in 0..3 {
            // The first leaf is used twice, as tied weights are; the third not at all.
            let loss = (&leaves[0] * &leaves[1] + &leaves[0]).sum(Kind::Float);
            let mut seen = Vec::new();
            hooks.backward(&loss, &mut |index, gradient| seen.push((index, values(&gradient)))).unwrap();
            seen.sort_by_key(|(index, _)| *index);
            assert_eq!(seen, [(0, vec![4.0, 5.0]), (1, vec![1.0, 2.0])]);
            assert!(leaves.iter().all(|leaf| !leaf.grad().defined()));
        }
    }

    #[test]
    fn a_panic_waits_for_the_end_of_the_pass() {
        let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
        let leaves = [leaf(&[1.0]), leaf(&[2.0])];
        let hooks = GradientHooks::install(&leaves).unwrap();
        let loss = || (&leaves[0] * &leaves[1]).sum(Kind::Float);
        let panics = || hooks.backward(&loss(), &mut |_, _| panic!("as planned"));
        let message = catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"as planned"));
        let mut count = 0;
        hooks.backward(&loss(), &mut |_, _| count += 1).unwrap();
        assert_eq!(count, 2);
    }

    #[test]
    fn hooks_are_removed_and_do_not_leak() {
        let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
        // SAFETY: plain call.
        let live = || unsafe { lockstep_live_hooks() };
        let before = live();
        let leaves: Vec<Tensor> = (0..50).map(|i| leaf(&[i as f32])).collect();
        let hooks = GradientHooks::install(&leaves).unwrap();
        assert_eq!(live(), before + 50);
        drop(hooks);
        assert_eq!(live(), before);
        // Without hooks autograd keeps its gradients.
        leaves[3].sum(Kind::Float).backward();
        assert_eq!(values(&leaves[3].grad()), [1.0]);
    }

    #[test]
    fn gradients_do_not_leak() {
        let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
        let leaves = [Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu)).set_requires_grad(true)];
        let hooks = GradientHooks::install(&leaves).unwrap();
        let pass = || hooks.backward(&leaves[0].sum(Kind::Float), &mut |_, _| {}).unwrap();
        (0..5).for_each(|_| pass());
        let before = crate::metrics::resident_bytes();
        (0..100).for_each(|_| pass());
        // Each leaked gradient would add 4 MiB.
        assert!(crate::metrics::resident_bytes() < before + (40 << 20));
    }
}
