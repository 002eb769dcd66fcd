//! The subcommands. Each returns the process's exit code.

mod ckpt;
mod config;
mod launch;
mod manifest;
mod plan;
mod resume;
mod train;
mod tune;

pub use ckpt::ckpt;
pub use config::config;
pub use launch::launch;
pub use train::train;
pub use tune::tune;
