//! Gradients made smaller before they travel, at the price of exactness: `parallel.compression`.
//!
//! Each wraps a strategy, replaces how a bucket's gradient is reduced, and leaves the parameters' way to it. All keep
//! what they left out (the residual) and add it to the next step's gradient: error feedback (Seide et al. 2014, "1-bit
//! stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback fixes SignSGD"). Residuals belong to a rank and
//! are in no checkpoint: after a resume they are zero. The arithmetic is the host's: what lies on a device is copied there and
//! back. docs/compression.md says what all this does to bits.

mod feedback;
mod matrix;
mod power_sgd;
mod rounded;

use crate::config::schema::{Compression, Parallel};
use crate::precision::Format;
use crate::strategy::{Ownership, Setting, Strategy};
use power_sgd::PowerSgd;
use rounded::Rounded;

/// The strategy as the configuration wants it compressed. `seed` is the run's.
pub fn wrap(
    inner: Box<dyn Strategy>,
    parallel: &Parallel,
    seed: u64,
    setting: &Setting,
    ownership: &Ownership,
) -> Box<dyn Strategy> {
    match parallel.compression {
        Compression::None => inner,
        Compression::Bf16 => Box::new(Rounded::new(inner, Format::Bf16, setting, ownership)),
        Compression::Fp16 => Box::new(Rounded::new(inner, Format::Fp16, setting, ownership)),
        Compression::Powersgd => Box::new(PowerSgd::new(inner, parallel.powersgd_rank, seed, setting)),
    }
}
