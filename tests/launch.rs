//! Starts the trainer as a user would, and says what it did.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lockstep_harness::compare::{Comparison, Mode, compare};

/// No launch in these tests takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Launches take turns: a machine with two cores has none to spare, and time limits are tested.
static TURN: Mutex<()> = Mutex::new(());

/// Until the guard is dropped no other launch starts.
pub fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One launch of `lockstep train` on the smallest model.
pub struct Launch {
    ranks: usize,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    shell_prefix: String,
    rank_prefix: String,
    bind_to: &'static str,
}

/// What a launch left.
#[derive(Debug)]
pub struct Ended {
    pub exit_code: Option<i32>,
    pub stderr: String,
    pub stdout: String,
}

/// A launch that still runs; no other starts meanwhile.
pub struct Running {
    child: Child,
    started: Instant,
    _turn: MutexGuard<'static, ()>,
}

impl Launch {
    pub fn ranks(ranks: usize) -> Self {
        Self::of("configs/tiny.yaml", ranks)
    }

    /// Of another configuration.
    pub fn of(config: &str, ranks: usize) -> Self {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(config);
        let launch = Self::command("train", ranks).argument("--config").argument(config);
        launch.set(if ranks == 1 { "parallel.strategy=single" } else { "parallel.strategy=ddp" })
    }

    /// Of any subcommand.
    pub fn command(name: &str, ranks: usize) -> Self {
        Self {
            ranks,
            arguments: vec![name.into()],
            environment: Vec::new(),
            shell_prefix: String::new(),
            rank_prefix: String::new(),
            bind_to: "none",
        }
    }

    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn set(self, setting: &str) -> Self {
        self.argument("--set").argument(setting)
    }

    pub fn zero1(self) -> Self {
        self.set("parallel.strategy=zero1")
    }

    pub fn stop_after(self, step: u64) -> Self {
        self.argument("--stop-after").argument(step.to_string())
    }

    pub fn resume(self) -> Self {
        self.argument("--resume").argument("auto")
    }

    #[cfg(feature = "mutations")]
    pub fn mutate(self, name: &str) -> Self {
        self.argument("--mutate").argument(name)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A shell command that runs first in the same process, for example `ulimit -f 100`.
    pub fn after(mut self, command: &str) -> Self {
        self.shell_prefix = format!("{command} && ");
        self
    }

    /// Shell commands that each rank runs first in its own process; `"$@"` is the trainer with its arguments.
    pub fn each_rank_after(mut self, commands: &str) -> Self {
        self.rank_prefix = format!("{commands}\nexec \"$@\"");
        self
    }

    /// What mpirun binds a rank to.
    pub fn bind_to(mut self, what: &'static str) -> Self {
        self.bind_to = what;
        self
    }

    pub fn start(self, run_dir: &Path) -> Running {
        self.argument("--run-dir").argument(run_dir).begin()
    }

    /// As it is: for subcommands without a run directory.
    pub fn begin(self) -> Running {
        let turn = take_turn();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("{}exec \"$@\"", self.shell_prefix)).arg("sh");
        if self.ranks > 1 {
            command.arg(mpirun()).args(["--oversubscribe", "--bind-to", self.bind_to]);
            // SAFETY: a plain question.
            if unsafe { libc::geteuid() } == 0 {
                command.arg("--allow-run-as-root");
            }
            command.arg("-np").arg(self.ranks.to_string());
        }
        if !self.rank_prefix.is_empty() {
            command.args(["/bin/sh", "-c", &self.rank_prefix, "sh"]);
        }
        command.arg(env!("CARGO_BIN_EXE_lockstep")).args(self.arguments);
        command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1").env("RUST_BACKTRACE", "0");
        command.envs(self.environment).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that all of it can be ended.
        let child = command.process_group(0).spawn().expect("start the trainer");
        Running { child, started: Instant::now(), _turn: turn }
    }

    pub fn run(self, run_dir: &Path) -> Ended {
        self.start(run_dir).wait()
    }
}

/// Process ids of a process's children, without `pgrep`, which a bare system lacks.
pub fn children(parent: u32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()))
    };
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

impl Running {
    /// Sends a signal to the launcher (or to the trainer itself where there is no launcher).
    pub fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to our own child.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Process ids of the ranks.
    pub fn rank_pids(&self) -> Vec<i32> {
        let is_rank = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("lockstep"))
        };
        children(self.child.id()).into_iter().filter(is_rank).collect()
    }

    /// The process of a rank.
    pub fn rank_pid(&self, rank: usize) -> i32 {
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
        let is_it = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes())
        };
        self.rank_pids().into_iter().find(is_it).expect("a process of that rank")
    }

    /// Files in /dev/shm that the ranks have mapped; those of other programs come and go.
    pub fn shared_memory(&self) -> BTreeSet<PathBuf> {
        let maps = |pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let maps: String = self.rank_pids().into_iter().map(maps).collect();
        let paths = maps.lines().filter_map(|line| Some(&line[line.find("/dev/shm/")?..]));
        paths.map(|path| path.trim_end_matches(" (deleted)").into()).collect()
    }

    /// Waits until a file exists and has something in it.
    pub fn wait_for(&self, path: &Path) {
        while !std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
            assert!(self.started.elapsed() < LIMIT, "{} never came", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait(mut self) -> Ended {
        let (mut stdout, mut stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.as_mut().map(|pipe| pipe.read_to_end(&mut text));
            text
        });
        let printer = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.as_mut().map(|pipe| pipe.read_to_end(&mut text));
            text
        });
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break Some(status);
            }
            if self.started.elapsed() > LIMIT {
                // SAFETY: ends the group that we made.
                unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ended = Ended {
            exit_code: status.and_then(|status| status.code()),
            stderr: text(reader.join().expect("read stderr")),
            stdout: text(printer.join().expect("read stdout")),
        };
        assert!(status.is_some(), "no end after {LIMIT:?}: {ended:?}");
        ended
    }
}

impl Ended {
    /// Asserts a success.
    pub fn ok(self) -> Self {
        self.code(lockstep_record::exit::OK)
    }

    /// Asserts the exit code.
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.exit_code, Some(expected), "{}", self.stderr);
        self
    }

    /// Asserts that the user is told this.
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

pub fn mpirun() -> PathBuf {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".toolchain/bin/mpirun");
    if local.exists() { local } else { "mpirun".into() }
}

/// Compares two runs bit for bit.
pub fn exactly(golden: &Path, candidate: &Path) -> Comparison {
    compare(golden, candidate, Mode::Exact).expect("comparable runs")
}

/// Asserts that two runs are the same, bit for bit.
pub fn assert_equal(golden: &Path, candidate: &Path) {
    let comparison = exactly(golden, candidate);
    assert!(comparison.passed(), "{}: {:?}", candidate.display(), comparison.first_difference());
}
