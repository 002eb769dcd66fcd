//! Gradients: the flat layout, the fixed tree of additions, the exchange between ranks, and norms.

pub mod accumulate;
mod device;
pub mod exchange;
pub mod flat;
pub mod home;
pub mod layout;
mod narrow;
pub mod norm;
pub mod shared;
pub mod tree;
pub mod unused;
