//! Number formats other than fp32: what is computed in them, and what keeps that from going wrong.
//!
//! Forward and backward run under libtorch's autocast ([`Autocast`]); parameters, the optimizer's state and, unless
//! `reduce_dtype` says otherwise, gradients stay fp32. [`LossScaler`] keeps the small gradients of fp16. What all this does
//! to bits is in docs/precision.md.

mod autocast;
mod format;
mod scaler;

pub use autocast::Autocast;
pub use format::Format;
pub use scaler::{LossScaler, SKIPPED_IN_A_ROW_MAX, Verdict, is_usable, verdict};

use crate::config::Config;
use crate::config::schema::{Precision, ScalerUse};

/// The 16-bit format that a precision means; None for fp32.
pub fn format(precision: Precision) -> Option<Format> {
    match precision {
        Precision::Fp32 => None,
        Precision::Bf16 => Some(Format::Bf16),
        Precision::Fp16 => Some(Format::Fp16),
    }
}

/// Whether the configuration has the loss scaled: fp16 only, whose smallest number is 6e-8.
pub fn scales_loss(config: &Config) -> bool {
    config.precision == Precision::Fp16 && config.scaler.enabled == ScalerUse::Auto
}
