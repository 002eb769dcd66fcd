//! Checkpoints: every rank writes its shard, rank 0 publishes the folder in one rename, and any number of ranks
//! under any strategy reads it back.

mod archive;
mod error;
mod planted;
mod prune;
mod read;
mod write;

pub use archive::Archive;
pub use error::CheckpointError;
pub use prune::surplus;
pub use read::{Expected, candidates, load};
pub use write::save;

use crate::grad::flat::Flat;
use crate::grad::layout::Layout;
use crate::optim::Optimizer;

/// The tensors of a training state, as this rank holds them.
pub struct Tensors<'a> {
    pub layout: &'a Layout,
    pub parameters: &'a mut [Flat],
    pub optimizer: &'a mut Optimizer,
}

fn model_tensor(name: &str) -> String {
    format!("model/{name}")
}

fn optimizer_tensor(kind: &str, name: &str) -> String {
    format!("optimizer/{kind}/{name}")
}
