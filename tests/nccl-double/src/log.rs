//! What the double writes where NCCL writes its log: `NCCL_DEBUG` and `NCCL_DEBUG_FILE` with `%h` and `%p`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, OnceLock};

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The file, or stdout, as NCCL has it.
fn output() -> &'static Mutex<Option<File>> {
    static OUTPUT: OnceLock<Mutex<Option<File>>> = OnceLock::new();
    OUTPUT.get_or_init(|| {
        let pattern = std::env::var("NCCL_DEBUG_FILE").unwrap_or_default();
        let path = pattern.replace("%h", &hostname()).replace("%p", &std::process::id().to_string());
        let open = || OpenOptions::new().create(true).write(true).truncate(true).open(path).ok();
        Mutex::new(if pattern.is_empty() { None } else { open() })
    })
}

fn write(line: &str) {
    if let Ok(mut output) = output().lock() {
        let _ = match output.as_mut() {
            Some(file) => writeln!(file, "{line}"),
            None => writeln!(std::io::stdout(), "{line}"),
        };
    }
}

fn level_is_one_of(levels: &[&str]) -> bool {
    std::env::var("NCCL_DEBUG").is_ok_and(|level| levels.contains(&level.to_uppercase().as_str()))
}

fn place() -> String {
    let process = std::process::id();
    format!("{}:{process}:{process} [0]", hostname())
}

pub fn version(text: &str) {
    if level_is_one_of(&["VERSION", "WARN", "INFO", "TRACE"]) {
        write(&format!("NCCL version {text}"));
    }
}

pub fn info(message: &str) {
    if level_is_one_of(&["INFO", "TRACE"]) {
        write(&format!("{} NCCL INFO {message}", place()));
    }
}

pub fn warn(message: &str) {
    if level_is_one_of(&["WARN", "INFO", "TRACE"]) {
        write(&format!("{} NCCL WARN {message}", place()));
    }
}
