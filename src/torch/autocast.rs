//! `torch.autocast(device, dtype)` for a stretch of code.

use tch::{Device, Kind, TchError};

use super::{check, lockstep_autocast_enter, lockstep_autocast_leave};

/// While it lives, libtorch converts what this thread computes on one kind of device by autocast's lists. Not to be nested.
#[must_use]
pub struct Autocast {
    on_gpu: bool,
    keeps_casts: bool,
}

impl Autocast {
    /// `kind`: BFloat16 or Half. The casts of parameters, which are kept for their next use, are forgotten at the end unless
    /// they are to be kept: a planted bug.
    pub fn enter(kind: Kind, device: Device, keeps_casts: bool) -> Result<Self, TchError> {
        let on_gpu = device != Device::Cpu;
        // SAFETY: plain call.
        let entered = unsafe { lockstep_autocast_enter(on_gpu, kind == Kind::Half) };
        check(entered).map_err(|error| TchError::Torch(error.to_string()))?;
        Ok(Self { on_gpu, keeps_casts })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: plain call. It sets flags and drops tensors, and there is no one to tell of an error.
        let _ = check(unsafe { lockstep_autocast_leave(self.on_gpu, self.keeps_casts) });
    }
}
