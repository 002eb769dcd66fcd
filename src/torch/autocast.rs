//! `torch.autocast("cpu", dtype)` for a stretch of code.

use tch::{Kind, TchError};

use super::{check, lockstep_autocast_enter, lockstep_autocast_leave};

/// While it lives, libtorch converts what this thread computes on the CPU by autocast's lists. Not to be nested.
#[must_use]
pub struct Autocast {
    keeps_casts: bool,
}

impl Autocast {
    /// `kind`: BFloat16 or Half. The casts of parameters, which are kept for their next use, are forgotten at the end unless
    /// they are to be kept: a planted bug.
    pub fn enter(kind: Kind, keeps_casts: bool) -> Result<Self, TchError> {
        // SAFETY: plain call.
        let entered = unsafe { lockstep_autocast_enter(kind == Kind::Half) };
        check(entered).map_err(|error| TchError::Torch(error.to_string()))?;
        Ok(Self { keeps_casts })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: plain call. It sets flags and drops tensors, and there is no one to tell of an error.
        let _ = check(unsafe { lockstep_autocast_leave(self.keeps_casts) });
    }
}
