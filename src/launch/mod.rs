//! From separate processes to one world of ranks, and out of it again.

mod device;
mod failure;
mod image;
mod signals;
mod world;

pub use device::{Compute, visible_gpus};
pub use failure::{Failure, end_all_ranks_on_panic, together};
pub use image::image_digest;
pub use signals::StopRequest;
pub use world::{Env, contradiction, environment_rank, join, join_unchecked};
