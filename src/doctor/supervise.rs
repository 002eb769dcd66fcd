//! The examination runs in a process of its own: an MPI that cannot start ends its process, or hangs, and that is when
//! a report is needed most.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use lockstep_record::exit;

/// Tells the examining process that it is the one.
pub const INSIDE: &str = "--inside";

const POLL: Duration = Duration::from_millis(20);

/// How the examination ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has reported; its exit code.
    Reported(i32),
    /// It could not; why.
    Failed(String),
}

/// Starts this program again with the same arguments to do the work, and waits for it no longer than `limit`.
pub fn supervise(limit: Duration) -> Outcome {
    let parent = std::process::id();
    let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg(INSIDE);
    // SAFETY: both calls are allowed between fork and exec. If this process is killed, so is the other.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            match libc::getppid() as u32 == parent {
                true => Ok(()),
                false => Err(std::io::Error::other("the parent is gone")),
            }
        });
    }
    match command.spawn() {
        Ok(child) => wait(child, limit),
        Err(error) => Outcome::Failed(format!("the examination could not be started: {error}")),
    }
}

fn wait(mut child: Child, limit: Duration) -> Outcome {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return judge(status),
            Ok(None) if started.elapsed() < limit => std::thread::sleep(POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                let seconds = limit.as_secs_f64();
                return Outcome::Failed(format!("MPI had not answered after {seconds} s (--limit)"));
            }
            Err(error) => return Outcome::Failed(error.to_string()),
        }
    }
}

fn judge(status: ExitStatus) -> Outcome {
    match (status.code(), status.signal()) {
        (Some(code @ (exit::OK | exit::BOOTSTRAP | exit::USAGE)), _) => Outcome::Reported(code),
        (Some(code), _) => Outcome::Failed(format!("MPI ended the process with code {code}")),
        (None, signal) => {
            Outcome::Failed(format!("the process was killed by signal {}", signal.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_ms: u64) -> Outcome {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        wait(child, Duration::from_millis(limit_ms))
    }

    #[test]
    fn an_end_without_a_report_is_told_from_one_with() {
        assert_eq!(shell("exit 0", 10_000), Outcome::Reported(0));
        assert_eq!(shell("exit 70", 10_000), Outcome::Reported(70));
        assert!(matches!(shell("exit 1", 10_000), Outcome::Failed(why) if why.contains("code 1")));
        assert!(matches!(shell("kill -SEGV $$", 10_000), Outcome::Failed(why) if why.contains("signal 11")));
        assert!(matches!(shell("exec sleep 60", 100), Outcome::Failed(why) if why.contains("0.1 s")));
    }
}
