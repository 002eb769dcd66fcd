//! Why a checkpoint could not be written or read.

use std::path::{Path, PathBuf};

use lockstep_record::RecordError;

use crate::comm::CommError;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Unreadable, incomplete or altered: an older checkpoint may still be good.
    #[error("checkpoint {}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Sound, but of another model, tokenizer or optimizer: no older one will fit either.
    #[error("checkpoint {}: {reason}", path.display())]
    Mismatch { path: PathBuf, reason: String },
    #[error("cannot save a checkpoint in {}: {reason}. Older checkpoints are untouched; free space or fix the folder, then go on with --resume auto", path.display())]
    Save { path: PathBuf, reason: String },
    #[error(transparent)]
    Comm(#[from] CommError),
}

impl CheckpointError {
    pub(super) fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }

    /// The error without the checkpoint's path.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Damaged { reason, .. } | Self::Mismatch { reason, .. } | Self::Save { reason, .. } => {
                reason.clone()
            }
            Self::Comm(error) => error.to_string(),
        }
    }

    pub(super) fn mismatch(path: &Path, reason: impl ToString) -> Self {
        Self::Mismatch { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn unreadable(path: &Path, error: RecordError) -> Self {
        match error {
            error @ RecordError::Version { .. } => Self::mismatch(path, error),
            error => Self::damaged(path, error),
        }
    }
}
