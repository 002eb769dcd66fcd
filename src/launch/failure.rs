//! How a run ends when something is wrong: every rank leaves, and the true cause is printed first.

use lockstep_record::exit;

use super::world::environment_rank;
use crate::checkpoint::CheckpointError;
use crate::comm::{Comm, CommError, abort_world, agree};
use crate::config::ConfigError;
use crate::shortage;

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
        Self { exit_code, message: shortage::explained(message.to_string()), shared: false }
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
            CommError::Failed { .. } | CommError::TooLarge { .. } | CommError::Arithmetic(_) => {
                Self::alone(exit::INTERNAL, error)
            }
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

/// A step of the set-up that may fail on some ranks: if it does on any, it does on all, with the first one's message. A
/// lack of memory is nobody's wrong input, whatever the step.
pub fn together<T, E: ToString>(comm: &dyn Comm, exit_code: i32, mine: Result<T, E>) -> Result<T, Failure> {
    let failure = mine.as_ref().map(|_| ()).map_err(|error| shortage::explained(error.to_string()));
    agree(comm, failure)?.map_err(|message| {
        let exit_code = if shortage::is_one(&message) { exit::INTERNAL } else { exit_code };
        let message = if comm.size() == 1 { message.replacen("rank 0: ", "", 1) } else { message };
        Failure::shared(exit_code, message)
    })?;
    mine.map_err(|error| Failure::shared(exit_code, error.to_string()))
}

/// A panic on one rank would leave the others waiting for ever: end them all, after the panic's own message. A tensor that
/// does not fit into memory panics in tch, and is no fault of the program.
pub fn end_all_ranks_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let Some(message) = shortage_of(panic.payload()) else {
            print(panic);
            return abort_world(exit::INTERNAL);
        };
        eprintln!("lockstep: rank {}: {message}", own_rank());
        abort_world(exit::INTERNAL);
        // Without a world the panic would go on, and end with a code of its own.
        std::process::exit(exit::INTERNAL);
    }));
}

/// What a panic says, if it is about memory.
fn shortage_of(payload: &dyn std::any::Any) -> Option<String> {
    let text =
        payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    text.filter(|text| shortage::is_one(text)).map(|text| shortage::explained(text.to_owned()))
}

/// As the launcher counts: whoever panics may be any thread, without a communicator.
fn own_rank() -> usize {
    environment_rank(&|name: &str| std::env::var(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::SoloComm;

    /// Really thrown by tch: what no machine has.
    #[test]
    fn a_panic_for_want_of_memory_is_told_from_others() {
        let too_large = || tch::Tensor::empty([1i64 << 58], (tch::Kind::Uint8, tch::Device::Cpu));
        let payload = std::panic::catch_unwind(too_large).unwrap_err();
        let message = shortage_of(&*payload).expect("an error of memory");
        assert!(message.starts_with("out of memory on the host: 268435456 GiB more"), "{message}");
        assert_eq!(shortage_of(&"something else"), None);
        assert_eq!(shortage_of(&"something else".to_owned()), None);
        assert_eq!(shortage_of(&17), None);
    }

    #[test]
    fn a_lack_of_memory_is_not_the_users_fault() {
        let failed = |error: &str| together(&SoloComm, exit::USAGE, Err::<(), _>(error)).unwrap_err();
        assert_eq!(failed("wrong").exit_code, exit::USAGE);
        let failure = failed("libtorch: std::bad_alloc");
        assert_eq!(failure.exit_code, exit::INTERNAL);
        assert!(failure.message.starts_with("out of memory on the host"), "{}", failure.message);
    }
}
