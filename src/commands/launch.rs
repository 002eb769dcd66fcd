//! `lockstep launch`: one way to start N ranks anywhere. What decides is in `crate::jobs`; here it meets the machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Parser;
use lockstep_record::exit;

use super::config::resolve;
use crate::cli::{self, Cli, Command};
use crate::jobs::{self, Found, Job, JobError, Kind, Refusal, Request, Site};

/// Runs `lockstep launch ...`.
pub fn launch(arguments: &cli::Launch) -> i32 {
    match run(arguments) {
        Ok(code) => code,
        Err(refusal) => {
            eprintln!("lockstep: {}", refusal.message);
            refusal.exit_code
        }
    }
}

fn run(arguments: &cli::Launch) -> Result<i32, Refusal> {
    if let Some(variable) = jobs::inside_launcher(&|name| std::env::var(name).ok()) {
        return Err(usage(format!(
            "this process is already a rank of a launcher ({variable} is set), and launchers cannot be nested: start \
             `lockstep train` here, or `lockstep launch` outside of mpirun and srun"
        )));
    }
    let job = plan(arguments).map_err(|error| usage(error.0))?;
    let script =
        jobs::render(&job).map_err(|error| Refusal { exit_code: exit::INTERNAL, message: error.0 })?;
    if arguments.dry_run {
        print!("{script}");
        return Ok(exit::OK);
    }
    jobs::prepare(&job, &script)?;
    if job.kind == Kind::Local {
        eprint!("{}", description(&job, "starts"));
        return Err(jobs::run_here(&job));
    }
    let id = jobs::submit(&job)?;
    eprint!("{}", description(&job, &format!("was submitted as {id}")));
    match arguments.wait {
        false => Ok(exit::OK),
        true => wait(&job, &id, Duration::from_secs(arguments.wait_limit)),
    }
}

fn usage(message: String) -> Refusal {
    Refusal { exit_code: exit::USAGE, message }
}

fn wait(job: &Job, id: &str, limit: Duration) -> Result<i32, Refusal> {
    let code = jobs::wait(job, id, limit, &mut |text| eprintln!("lockstep: {text}"))?;
    eprintln!("lockstep: the job ended with exit code {code}");
    Ok(code)
}

fn plan(arguments: &cli::Launch) -> Result<Job, JobError> {
    let site = arguments.site.as_deref().map_or_else(|| Ok(Site::default()), Site::read)?;
    let submit_dir =
        std::env::current_dir().map_err(|error| JobError(format!("the current folder: {error}")))?;
    let dir = arguments.dir.clone().unwrap_or_else(|| default_dir(&arguments.job));
    let request = Request {
        kind: arguments.kind,
        job: arguments.job.clone(),
        ranks: arguments.ranks,
        nodes: arguments.nodes,
        time: arguments.time.clone(),
        name: arguments.name.clone(),
        dir: submit_dir.join(dir),
        submit_dir,
        arguments: arguments.arguments.clone(),
        found: find_programs()?,
    };
    let job = jobs::plan(request, site)?;
    check_training(&job)?;
    Ok(job)
}

/// A folder of its own for every job, among the runs.
fn default_dir(job: &str) -> PathBuf {
    let runs = std::env::var_os(crate::config::env::RUNS).filter(|runs| !runs.is_empty());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("{job}-{}-{}", now.as_secs(), std::process::id());
    runs.map_or_else(|| PathBuf::from("runs"), PathBuf::from).join(name)
}

/// This program, the harness beside it, and the set-up's mpirun above it; else what is on the PATH.
fn find_programs() -> Result<Found, JobError> {
    let own =
        std::env::current_exe().map_err(|error| JobError(format!("this program's own path: {error}")))?;
    let text = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            Err(JobError(format!("{} is not UTF-8: name programs.trainer in the site file", path.display())))
        }
    };
    let existing = |path: PathBuf| path.is_file().then_some(path);
    let harness = own.parent().and_then(|folder| existing(folder.join("lockstep-harness")));
    let mpirun = own.ancestors().find_map(|folder| existing(folder.join(".toolchain/bin/mpirun")));
    Ok(Found {
        trainer: text(&own)?,
        harness: harness.as_deref().map_or_else(|| Ok("lockstep-harness".into()), text)?,
        mpirun: mpirun.as_deref().map_or_else(|| Ok("mpirun".into()), text)?,
    })
}

/// What the ranks would refuse is refused before it has waited in a queue. Data may lie where only the nodes see them,
/// so they are not looked for.
fn check_training(job: &Job) -> Result<(), JobError> {
    if job.arguments.is_empty() {
        return Ok(());
    }
    let words = std::iter::once("lockstep").chain(job.arguments.iter().map(String::as_str));
    let parsed = Cli::try_parse_from(words).map_err(|error| JobError(format!("after `--`: {error}")))?;
    let Command::Train(train) = parsed.command else {
        return Err(JobError("after `--` comes `train`".into()));
    };
    if train.run_dir.is_some() || train.resume.is_some() {
        return Err(JobError(
            "after `--`: the job itself gives --run-dir and --resume; choose its folder with --dir before the `--`, and \
             name the folder of an earlier job to go on with it"
                .into(),
        ));
    }
    if train.dry_run {
        return Err(JobError("after `--`: put --dry-run before the `--` to see the job's script".into()));
    }
    let resolved = resolve(&train.source).map_err(|error| JobError(error.to_string()))?;
    let ranks = job.largest_training();
    let checked = ranks.map_or(Ok(()), |ranks| resolved.validate_world(ranks));
    checked.map_err(|error| JobError(error.to_string()))
}

/// Where everything of the job lies.
fn description(job: &Job, what: &str) -> String {
    let (dir, place) = (job.dir.display(), &job.place);
    let runs = if job.has_one_run() { "run" } else { "runs/*" };
    let mut text = format!(
        "lockstep: job {} {what}: {} ranks on {} node(s), {}\n  script       {dir}/job.sh\n",
        job.job,
        place.ranks,
        place.nodes,
        job.kind.label()
    );
    if job.kind != Kind::Local {
        text += &format!("  log          {dir}/job*.log\n");
    }
    match job.is_verify() {
        true => text += &format!("  report       {dir}/verify-0/\n"),
        false => {
            text += &format!("  metrics      {dir}/{runs}/metrics.jsonl\n");
            text += &format!("  ranks' logs  {dir}/{runs}/logs/\n  checkpoints  {dir}/{runs}/checkpoints/\n");
        }
    }
    text += &format!("  snapshots    {dir}/snapshots*/\n  exit code    {dir}/exit-code*\n");
    text
}
