//! Gradients: the flat layout, the fixed tree of additions, the exchange between ranks, and norms.

pub mod accumulate;
pub mod exchange;
pub mod flat;
pub mod layout;
pub mod norm;
pub mod tree;
pub mod unused;
