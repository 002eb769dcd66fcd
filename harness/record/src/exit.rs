//! Exit codes of both programs: documented constants that scripts may rely on.

/// Everything that was asked for was done.
pub const OK: i32 = 0;
/// A fault of the program itself, or of the machine under it.
pub const INTERNAL: i32 = 1;
/// A wrong command line or configuration: the message names what to change.
pub const USAGE: i32 = 2;
/// There was nothing to do, for example a run that has already finished.
pub const NOTHING_TO_DO: i32 = 4;
/// The ranks could not form one world (MPI, launcher or container mismatch).
pub const BOOTSTRAP: i32 = 70;
/// A resume was asked for and no usable checkpoint exists.
pub const NO_CHECKPOINT: i32 = 72;
/// Stopped by a signal after saving: requeue the job and it goes on.
pub const PREEMPTED: i32 = 75;
/// A wait outlasted its limit: the watchdog ended all ranks.
pub const WATCHDOG: i32 = 90;
/// A comparison found a difference, or a prediction missed what was measured.
pub const DIFFERENT: i32 = 100;
/// A case of a plan could not run, so nothing is known about it.
pub const CASE_FAILED: i32 = 101;
