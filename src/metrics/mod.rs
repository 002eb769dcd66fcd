//! What a run leaves behind: the record's files, digests, progress and logs. Rank 0 writes; all ranks contribute.

mod csv;
mod digests;
mod logs;
mod memory;
mod pen;
mod prints;
mod progress;
mod recorder;

pub use digests::{Subject, numbers, of_micro_batches, replicas, shards};
pub use logs::start_logging;
pub use memory::{resident_bytes, resident_bytes_max};
pub use pen::{BucketPrints, Pen, block_prints};
pub use prints::Fingerprint;
pub use progress::Progress;
pub use recorder::{Recorder, RecorderError};
