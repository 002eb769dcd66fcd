//! How a run ends when something is wrong: every rank leaves, and the true cause is printed first.

use lockstep_record::exit;

use crate::checkpoint::CheckpointError;
use crate::comm::{Comm, CommError, abort_world, agree};
use crate::config::ConfigError;

/// Why this process ends, and with which exit code.
#[derive(Debug)]
pub struct Failure {
    pub exit_code: i32,
    pub message: String,
    /// All ranks fail with the same message, so one of them prints it and they leave in order. Otherwise the others
    /// know nothing yet, and must be ended.
    pub shared: bool,
}

impl Failure {
    /// A failure that only this rank knows of.
    pub fn alone(exit_code: i32, message: impl ToString) -> Self {
        Self { exit_code, message: message.to_string(), shared: false }
    }

    /// A failure that all ranks see alike.
    pub fn shared(exit_code: i32, message: impl ToString) -> Self {
        Self { exit_code, message: message.to_string(), shared: true }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::shared(exit::USAGE, error)
    }
}

impl From<CommError> for Failure {
    fn from(error: CommError) -> Self {
        match error {
            CommError::Mismatch { .. } => Self::shared(exit::INTERNAL, error),
            CommError::Refused { .. } => Self::shared(exit::BOOTSTRAP, error),
            CommError::Broken { .. } => Self::alone(exit::WATCHDOG, error),
            CommError::Failed { .. } | CommError::TooLarge { .. } => Self::alone(exit::INTERNAL, error),
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Comm(error) => error.into(),
            error @ CheckpointError::Damaged { .. } => Self::shared(exit::NO_CHECKPOINT, error),
            error @ CheckpointError::Mismatch { .. } => Self::shared(exit::USAGE, error),
            error @ CheckpointError::Save { .. } => Self::shared(exit::INTERNAL, error),
        }
    }
}

macro_rules! fails_alone {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::alone(exit::INTERNAL, error)
            }
        }
    )*};
}

fails_alone!(
    crate::data::DataError,
    crate::metrics::RecorderError,
    crate::torch::TorchError,
    tch::TchError,
    std::io::Error,
);

/// A step of the set-up that may fail on some ranks: if it does on any, it does on all, with the first one's message.
pub fn together<T, E: ToString>(comm: &dyn Comm, exit_code: i32, mine: Result<T, E>) -> Result<T, Failure> {
    let failure = mine.as_ref().map(|_| ()).map_err(ToString::to_string);
    agree(comm, failure)?.map_err(|message| {
        let message = if comm.size() == 1 { message.replacen("rank 0: ", "", 1) } else { message };
        Failure::shared(exit_code, message)
    })?;
    mine.map_err(|error| Failure::shared(exit_code, error.to_string()))
}

/// A panic on one rank would leave the others waiting for ever: end them all, after the panic's own message.
pub fn end_all_ranks_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        abort_world(exit::INTERNAL);
    }));
}
