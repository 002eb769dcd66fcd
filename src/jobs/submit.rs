//! From a script to a job that ran: the job's folder, the submission, and the wait for its end.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lockstep_record::exit;

use super::plan::Job;
use super::scheduler::State;
use crate::files;

/// A scheduler's command that takes longer than this hangs, in seconds.
const COMMAND_LIMIT_S: &str = "60";
/// How often a scheduler is asked.
const POLL: Duration = Duration::from_secs(2);
/// How long after its end a job's exit code may need to be seen here, over a network's file system.
const LATE: Duration = Duration::from_secs(10);
/// `timeout` says this of a command that it cannot find.
const NOT_FOUND: i32 = 127;
/// What an earlier job left in its folder and would be taken for this one's.
const MARKS: [&str; 3] = ["exit-code", "attempts", "job-id"];

/// Why a job did not run, and the exit code that says so.
#[derive(Debug)]
pub struct Refusal {
    pub exit_code: i32,
    pub message: String,
}

impl Refusal {
    fn new(exit_code: i32, message: impl Into<String>) -> Self {
        Self { exit_code, message: message.into() }
    }
}

/// Makes the job's folder, with the script in it. The folder of an earlier job is gone on with.
pub fn prepare(job: &Job, script: &str) -> Result<(), Refusal> {
    let dir = &job.dir;
    let fail = |error: std::io::Error| Refusal::new(exit::INTERNAL, format!("{}: {error}", dir.display()));
    let occupied = files::is_occupied(dir)
        .map_err(|error| Refusal::new(exit::USAGE, format!("--dir {}: {error}", dir.display())))?;
    if occupied && !dir.join("job.sh").is_file() {
        let message =
            format!("--dir {}: it has other things in it than a job; choose a new folder", dir.display());
        return Err(Refusal::new(exit::USAGE, message));
    }
    fs::create_dir_all(dir).map_err(fail)?;
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if MARKS
            .iter()
            .any(|mark| name.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
        {
            fs::remove_file(entry.path()).map_err(fail)?;
        }
    }
    files::replace(&dir.join("job.sh"), script.as_bytes()).map_err(fail)
}

/// Becomes the job. Returns only if that fails.
pub fn run_here(job: &Job) -> Refusal {
    let mut command = Command::new("bash");
    command.arg(job.dir.join("job.sh"));
    // It is no task of an array that this process may be in.
    for name in ["PBS_ARRAY_INDEX", "PBS_ARRAYID", "SLURM_ARRAY_TASK_ID"] {
        command.env_remove(name);
    }
    Refusal::new(exit::INTERNAL, format!("cannot start bash: {}", command.exec()))
}

/// Submits the job, and returns its id.
pub fn submit(job: &Job) -> Result<String, Refusal> {
    let words = job.kind.submission(&job.name);
    let output = bounded(&words, &job.dir)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let said = format!("{} {}", printed.trim(), complained.trim());
    if output.status.code() == Some(NOT_FOUND) && complained.contains("failed to run command") {
        return Err(Refusal::new(
            exit::CASE_FAILED,
            format!(
                "{} is not on the PATH: do this on a login node of the cluster, or load its module; --dry-run prints the \
                 script",
                words[0]
            ),
        ));
    }
    match job.kind.job_id(&printed).filter(|_| output.status.success()) {
        Some(id) => {
            let note = files::replace(&job.dir.join("job-id"), format!("{id}\n").as_bytes());
            note.map_err(|error| {
                Refusal::new(exit::INTERNAL, format!("job {id} was submitted, but: {error}"))
            })?;
            Ok(id)
        }
        None => Err(Refusal::new(
            exit::USAGE,
            format!(
                "{} refused the job: {}; the lines for it at the top of {} come from the site file (account, queue, \
                 directives) and from -n, --nodes and --time",
                words[0],
                said.trim(),
                job.dir.join("job.sh").display()
            ),
        )),
    }
}

/// Waits until the job is over, and returns its own exit code. `tell` hears of what changes.
pub fn wait(job: &Job, id: &str, limit: Duration, tell: &mut dyn FnMut(&str)) -> Result<i32, Refusal> {
    let started = Instant::now();
    let mut id = id.to_owned();
    let mut last = String::new();
    let mut over_since: Option<Instant> = None;
    loop {
        // A job that submits itself again notes its successor there, and leaves no exit code.
        let current = read_mark(&job.dir, "job-id").and_then(|text| job.kind.job_id(&text));
        if let Some(next) = current.filter(|next| *next != id) {
            tell(&format!("job {id} saved and goes on as job {next}"));
            (id, over_since) = (next, None);
        }
        if let Some(code) = exit_code(job) {
            return Ok(code);
        }
        if started.elapsed() >= limit {
            let message =
                format!("job {id} is not over after {} s: it goes on, --wait does not", limit.as_secs());
            return Err(Refusal::new(exit::WATCHDOG, message));
        }
        match ask(job, &id)? {
            None => {}
            Some(State::Alive(how)) => {
                over_since = None;
                if how != last {
                    tell(&format!("job {id}: {how}"));
                    last = how;
                }
            }
            Some(state) => match over_since {
                Some(since) if since.elapsed() >= LATE => return conclude(job, &id, state),
                Some(_) => {}
                None => over_since = Some(Instant::now()),
            },
        }
        std::thread::sleep(POLL);
    }
}

/// The job is over and left no exit code: its script was killed, or never started.
fn conclude(job: &Job, id: &str, state: State) -> Result<i32, Refusal> {
    let (how, code) = match state {
        State::Over { how, code } => (how, code),
        _ => ("the scheduler no longer knows it".to_owned(), None),
    };
    let code = code.filter(|&code| code > 0).unwrap_or(exit::INTERNAL);
    let log = job.dir.display();
    let message = format!(
        "job {id} ended before its script did: {how}. {log}/job*.log has what it printed; submit it again with --dir {log} and it goes on from its last checkpoint"
    );
    Err(Refusal::new(code, message))
}

fn read_mark(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok().filter(|text| !text.trim().is_empty())
}

/// The exit code that the job left: of an array, once all tasks have one, the first that is not 0.
fn exit_code(job: &Job) -> Option<i32> {
    let tasks: Vec<String> = match job.array {
        0 => vec!["exit-code".into()],
        tasks => (0..tasks).map(|task| format!("exit-code-{task}")).collect(),
    };
    let codes: Option<Vec<i32>> =
        tasks.iter().map(|name| read_mark(&job.dir, name)?.trim().parse().ok()).collect();
    codes.map(|codes| codes.into_iter().find(|&code| code != 0).unwrap_or(exit::OK))
}

/// None: the scheduler did not answer, which says nothing of the job.
fn ask(job: &Job, id: &str) -> Result<Option<State>, Refusal> {
    let output = bounded(&job.kind.inquiry(id), &job.dir)?;
    let (printed, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(job.kind.state(output.status.success(), &printed, &complained))
}

fn bounded(words: &[String], folder: &Path) -> Result<Output, Refusal> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", COMMAND_LIMIT_S]).args(words).current_dir(folder).stdin(Stdio::null());
    command.output().map_err(|error| Refusal::new(exit::INTERNAL, format!("cannot start timeout: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::plan::{plan, tests::request};
    use crate::jobs::{Kind, Site};

    fn job(kind: Kind, name: &str, dir: &Path) -> Job {
        let mut request = request(kind, name);
        request.dir = dir.to_owned();
        plan(request, Site::default()).unwrap()
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let refusal = prepare(&job(Kind::Local, "smoke", folder.path()), "new").unwrap_err();
        assert_eq!(refusal.exit_code, exit::USAGE);
        assert!(!folder.path().join("job.sh").exists());
    }

    #[test]
    fn an_earlier_jobs_marks_go_and_its_run_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["job.sh", "exit-code", "exit-code-3", "attempts", "job-id", "exit-codes.txt"] {
            fs::write(path(name), "7").unwrap();
        }
        fs::create_dir(path("run")).unwrap();
        prepare(&job(Kind::Local, "smoke", folder.path()), "new").unwrap();
        assert_eq!(fs::read_to_string(path("job.sh")).unwrap(), "new");
        assert!(path("run").exists() && path("exit-codes.txt").exists());
        for name in ["exit-code", "exit-code-3", "attempts", "job-id"] {
            assert!(!path(name).exists(), "{name}");
        }
    }

    #[test]
    fn an_array_has_an_exit_code_when_its_last_task_has() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(Kind::Slurm, "sensitivity", folder.path());
        let write = |task: usize, code: &str| {
            fs::write(folder.path().join(format!("exit-code-{task}")), code).unwrap()
        };
        (0..3).for_each(|task| write(task, "0\n"));
        assert_eq!(exit_code(&job), None);
        write(3, "101\n");
        assert_eq!(exit_code(&job), Some(101));
    }

    /// A time-out's ExitCode is 0 in Slurm's books; it is no success.
    #[test]
    fn an_end_without_an_exit_code_is_no_success() {
        let job = job(Kind::Slurm, "smoke", Path::new("/nowhere"));
        let over = |code| State::Over { how: "TIMEOUT (TimeLimit)".into(), code };
        let refusal = conclude(&job, "5", over(Some(0))).unwrap_err();
        assert!(
            refusal.exit_code == exit::INTERNAL && refusal.message.contains("TIMEOUT"),
            "{}",
            refusal.message
        );
        assert_eq!(conclude(&job, "5", over(Some(9))).unwrap_err().exit_code, 9);
        assert_eq!(conclude(&job, "5", State::Unknown).unwrap_err().exit_code, exit::INTERNAL);
    }
}
