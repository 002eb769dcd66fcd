//! The checks, each a pure function of what was recorded.

pub mod batches;
pub mod moments;
pub mod norms;
pub mod numbers;
pub mod replicas;
pub mod run;
pub mod schedule;

/// Whether two numbers agree within a relative distance.
fn close(one: f64, other: f64, rtol: f64) -> bool {
    one == other || (one - other).abs() <= rtol * one.abs().max(other.abs())
}
