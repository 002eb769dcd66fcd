//! The examination runs in a process of its own: an MPI that cannot start ends its process, or hangs, and that is when
//! a report is needed most.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_record::exit;
use signal_hook::consts::SIGTERM;

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

/// The examination, on its way.
pub struct Examination {
    child: io::Result<Child>,
    started: Instant,
    limit: Duration,
    is_terminated: Arc<AtomicBool>,
}

impl Examination {
    /// Starts this program again with the same arguments to do the work. It ends with this process.
    pub fn start(limit: Duration) -> Self {
        let parent = std::process::id();
        let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).arg(INSIDE);
        // SAFETY: both calls are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                match libc::getppid() as u32 == parent {
                    true => Ok(()),
                    false => Err(io::Error::other("the parent is gone")),
                }
            });
        }
        Self::of(command, limit)
    }

    fn of(mut command: Command, limit: Duration) -> Self {
        let (started, child) = (Instant::now(), command.spawn());
        // mpirun, whose MPI has just failed, asks all to end, and kills them a second later: time for a report.
        let is_terminated = Arc::new(AtomicBool::new(false));
        let _ = signal_hook::flag::register(SIGTERM, Arc::clone(&is_terminated));
        Self { child, started, limit, is_terminated }
    }

    /// Waits for its end, no longer than the limit.
    pub fn wait(self) -> Outcome {
        let Self { child, started, limit, is_terminated } = self;
        let mut child = match child {
            Ok(child) => child,
            Err(error) => return Outcome::Failed(format!("the examination could not be started: {error}")),
        };
        let why = loop {
            match child.try_wait() {
                Ok(Some(status)) => return judge(status),
                Ok(None) if is_terminated.load(Ordering::Relaxed) => {
                    break "SIGTERM ended the wait".to_owned();
                }
                Ok(None) if started.elapsed() < limit => std::thread::sleep(POLL),
                Ok(None) => break format!("MPI had not answered after {} s (--limit)", limit.as_secs_f64()),
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        Outcome::Failed(why)
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
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Examination::of(command, Duration::from_millis(limit_ms)).wait()
    }

    #[test]
    fn an_end_without_a_report_is_told_from_one_with() {
        assert_eq!(shell("exit 0", 10_000), Outcome::Reported(0));
        assert_eq!(shell("exit 70", 10_000), Outcome::Reported(70));
        assert!(matches!(shell("exit 1", 10_000), Outcome::Failed(why) if why.contains("code 1")));
        assert!(matches!(shell("kill -SEGV $$", 10_000), Outcome::Failed(why) if why.contains("signal 11")));
        assert!(matches!(shell("exec sleep 60", 100), Outcome::Failed(why) if why.contains("0.1 s")));
        let absent = Examination::of(Command::new("/no/such/program"), Duration::from_secs(1)).wait();
        assert!(matches!(absent, Outcome::Failed(why) if why.contains("could not be started")));
    }
}
