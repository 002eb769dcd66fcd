//! `lockstep tune`: the harness launches and measures, the trainer only trains. So this hands over to it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use lockstep_record::exit;

use crate::config::env::TRAINER;

const HARNESS: &str = "lockstep-harness";

/// Becomes `lockstep-harness tune`, the one beside this program or else on the PATH. Returns the exit code if it cannot.
pub fn tune(arguments: &[OsString]) -> i32 {
    let own = std::env::current_exe().ok();
    let beside = own.as_ref().and_then(|own| Some(own.parent()?.join(HARNESS))).filter(|path| path.is_file());
    let mut command = Command::new(beside.unwrap_or_else(|| PathBuf::from(HARNESS)));
    command.arg("tune").args(arguments);
    if let Some(own) = own.filter(|_| std::env::var_os(TRAINER).is_none()) {
        command.env(TRAINER, own);
    }
    let error = command.exec();
    eprintln!(
        "lockstep: cannot start {HARNESS}: {error}; build it (cargo build --workspace) and put it beside this program or on \
         the PATH"
    );
    exit::USAGE
}
