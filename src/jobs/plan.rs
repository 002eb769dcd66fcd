//! From what was asked for, the site and the catalogue to one job, with every value checked. A pure function.

use std::path::{Path, PathBuf};

use super::catalogue::{self, Entry, Values, Work};
use super::place::{self, Place, Wanted};
use super::scheduler::Kind;
use super::site::Site;
use super::{JobError, time_limit, value};

/// PBS takes no longer names.
const NAME_BYTES_MAX: usize = 15;
const SIZES_MAX: usize = 64;
const CELLS_MAX: usize = 1000;

/// What was asked for on the command line.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: Kind,
    /// Name of a job of the catalogue.
    pub job: String,
    pub ranks: Option<u32>,
    pub nodes: Option<u32>,
    pub time: Option<String>,
    /// The name that the scheduler shows, if not the job's.
    pub name: Option<String>,
    /// Where the job leaves everything; absolute.
    pub dir: PathBuf,
    /// Where relative paths start; absolute.
    pub submit_dir: PathBuf,
    /// `train` and its arguments; empty where the job brings its own work.
    pub arguments: Vec<String>,
    /// Programs that the site file does not name.
    pub found: Found,
}

/// Programs of this machine.
#[derive(Clone, Debug)]
pub struct Found {
    pub trainer: String,
    pub harness: String,
    pub mpirun: String,
}

/// A job with all its values.
#[derive(Clone, Debug)]
pub struct Job {
    pub kind: Kind,
    pub job: String,
    pub name: String,
    pub work: Work,
    pub place: Place,
    pub dir: PathBuf,
    pub submit_dir: PathBuf,
    /// 0 is none, on this machine only.
    pub limit_s: u64,
    pub values: Values,
    pub arguments: Vec<String>,
    /// Number of ranks of each training of a scaling job.
    pub sizes: Vec<u32>,
    /// Tasks of an array; 0 for a plain job.
    pub array: usize,
    pub site: Site,
    pub found: Found,
}

impl Job {
    /// Whether it trains into one run directory.
    pub fn has_one_run(&self) -> bool {
        !matches!(self.work, Work::Scaling | Work::Sensitivity)
    }

    pub fn is_verify(&self) -> bool {
        self.work == Work::Verify
    }

    /// The ranks that the training's configuration must be good for; none where the job changes its micro-batches.
    pub fn largest_training(&self) -> Option<usize> {
        let ranks = match self.work {
            Work::Scaling => self.sizes.iter().copied().max()?,
            Work::ProfileNcu => 1,
            _ => self.place.ranks,
        };
        (self.values.micro_batches_a_rank.unwrap_or(0) == 0).then_some(ranks as usize)
    }
}

/// Puts everything together.
pub fn plan(request: Request, site: Site) -> Result<Job, JobError> {
    let entry = catalogue::find(&request.job, &site.jobs)?;
    check_site(&site)?;
    check_values(&request.job, &entry.values)?;
    let name = request.name.clone().unwrap_or_else(|| request.job.clone());
    value::name("--name", &name)?;
    if name.len() > NAME_BYTES_MAX {
        return Err(JobError::new(format!("--name: {name} is longer than {NAME_BYTES_MAX} characters")));
    }
    for (key, path) in [("--dir", &request.dir), ("the current folder", &request.submit_dir)] {
        value::text(key, path_text(key, path)?)?;
    }
    let place = place::place(&Wanted {
        ranks: request.ranks.or(entry.values.ranks),
        // A number of ranks that was asked for decides on the nodes, unless they were asked for, too.
        nodes: request.nodes.or(entry.values.nodes.filter(|_| request.ranks.is_none())),
        gpus_per_node: site.gpus_per_node,
        ranks_per_node: site.ranks_per_node,
    })?;
    let limit_s = limit(&request, &entry, &site)?;
    let sizes = sizes(&entry, place)?;
    let cells = cells(&entry)?;
    let arguments = arguments(&request, &entry, &site)?;
    if request.kind == Kind::Pbs && cells > 0 && entry.values.requeues.unwrap_or(0) > 0 {
        return Err(JobError::new(format!(
            "jobs.{}.requeues: a single task of an array cannot be submitted again",
            request.job
        )));
    }
    Ok(Job {
        kind: request.kind,
        job: request.job,
        name,
        work: entry.work,
        place,
        dir: request.dir,
        submit_dir: request.submit_dir,
        limit_s,
        values: entry.values,
        arguments,
        sizes,
        array: if request.kind == Kind::Local { 0 } else { cells },
        site,
        found: request.found,
    })
}

fn path_text<'a>(key: &str, path: &'a Path) -> Result<&'a str, JobError> {
    path.to_str().ok_or_else(|| JobError::new(format!("{key}: {} is not UTF-8", path.display())))
}

/// Here a job has a limit only if one was asked for.
fn limit(request: &Request, entry: &Entry, site: &Site) -> Result<u64, JobError> {
    let limit_s = match (&request.time, request.kind) {
        (Some(time), _) => time_limit::parse("--time", time)?,
        (None, Kind::Local) => 0,
        (None, _) => time_limit::parse("time", entry.values.time.as_ref().unwrap_or(&site.time))?,
    };
    match limit_s > 0 && u64::from(site.grace_s) >= limit_s {
        true => Err(JobError::new(format!(
            "grace_s: {} s to save before the end leave nothing of a limit of {limit_s} s: lower grace_s of the site file, \
             or raise --time",
            site.grace_s
        ))),
        false => Ok(limit_s),
    }
}

/// What the ranks are started with: the user's words, then the job's own, which make the job what it is.
fn arguments(request: &Request, entry: &Entry, site: &Site) -> Result<Vec<String>, JobError> {
    let user = &request.arguments;
    if entry.work == Work::Verify {
        return match user.is_empty() {
            true => Ok(Vec::new()),
            false => {
                let job = &request.job;
                Err(JobError::new(format!(
                    "job {job} runs a plan (jobs.{job}.plan of the site file), no training"
                )))
            }
        };
    }
    let Some(first) = user.first() else {
        return Err(JobError::new("what to train is missing: -- train --config FILE"));
    };
    if first != "train" {
        return Err(JobError::new(format!("after `--` comes `train`, not {first:?}")));
    }
    let mut words = user.clone();
    if let Some(threads) = site.threads_per_rank {
        words.extend(["--set".into(), format!("run.threads_per_rank={threads}")]);
    }
    words.extend(entry.values.arguments.iter().flatten().cloned());
    for word in &words {
        value::text("a word after `--`", word)?;
    }
    Ok(words)
}

fn sizes(entry: &Entry, place: Place) -> Result<Vec<u32>, JobError> {
    let sizes = entry.values.sizes.clone().unwrap_or_else(|| place::powers_of_two(place.ranks));
    match sizes.iter().find(|&&size| size == 0 || size > place.ranks) {
        Some(size) if entry.work == Work::Scaling => {
            Err(JobError::new(format!("sizes: {size} is not from 1 to the job's {} ranks", place.ranks)))
        }
        _ if sizes.is_empty() || sizes.len() > SIZES_MAX => {
            Err(JobError::new(format!("sizes: there must be 1 to {SIZES_MAX} of them")))
        }
        _ => Ok(sizes),
    }
}

/// Trainings of a sensitivity job; 0 for others.
fn cells(entry: &Entry) -> Result<usize, JobError> {
    if entry.work != Work::Sensitivity {
        return Ok(0);
    }
    let count = |key: &str, length: Option<usize>| match length {
        Some(length) if length > 0 => Ok(length),
        _ => Err(JobError::new(format!("{key}: the list is empty"))),
    };
    let buckets = count("bucket_mb", entry.values.bucket_mb.as_ref().map(Vec::len))?;
    let precisions = count("precisions", entry.values.precisions.as_ref().map(Vec::len))?;
    match buckets.saturating_mul(precisions) {
        cells @ 1..=CELLS_MAX => Ok(cells),
        cells => {
            Err(JobError::new(format!("{cells} trainings are too many for one array (at most {CELLS_MAX})")))
        }
    }
}

fn check_values(job: &str, values: &Values) -> Result<(), JobError> {
    let key = |name: &str| format!("jobs.{job}.{name}");
    for line in values.directives.iter().flatten() {
        value::directive(&key("directives"), line)?;
    }
    for precision in values.precisions.iter().flatten() {
        value::name(&key("precisions"), precision)?;
    }
    for bucket in values.bucket_mb.iter().flatten() {
        if !(bucket.is_finite() && *bucket > 0.0 && *bucket <= 1e6) {
            return Err(JobError::new(format!("{}: {bucket} is not a size above 0", key("bucket_mb"))));
        }
    }
    for (name, text) in [("plan", &values.plan), ("only", &values.only)] {
        text.iter().try_for_each(|text| value::program(&key(name), text))?;
    }
    Ok(())
}

fn check_site(site: &Site) -> Result<(), JobError> {
    for (key, text) in [("account", &site.account), ("queue", &site.queue)] {
        text.iter().try_for_each(|text| value::word(key, text))?;
    }
    if let Some(mail) = &site.mail {
        value::word("mail.to", &mail.to)?;
    }
    site.directives.iter().try_for_each(|line| value::directive("directives", line))?;
    value::name("mpi", &site.mpi)?;
    value::name("link", &site.link)?;
    for (name, text) in &site.env {
        value::variable("env", name)?;
        value::text(&format!("env.{name}"), text)?;
    }
    if site.cpus_per_rank == 0 || site.threads_per_rank == Some(0) {
        return Err(JobError::new("cpus_per_rank and threads_per_rank must be at least 1"));
    }
    if let Some(word) = site.launcher.first() {
        value::program("launcher", word)?;
        if !site.launcher.iter().any(|word| word.contains("{ranks}")) {
            return Err(JobError::new(
                "launcher: one of its words needs {ranks}, the number of processes to start",
            ));
        }
    }
    site.launcher.iter().try_for_each(|word| value::text("launcher", word))?;
    let programs = &site.programs;
    for (key, program) in [
        ("programs.trainer", &programs.trainer),
        ("programs.harness", &programs.harness),
        ("programs.mpirun", &programs.mpirun),
        ("programs.nsys", &programs.nsys),
        ("programs.ncu", &programs.ncu),
        ("modules.init", &site.modules.init),
    ] {
        program.iter().try_for_each(|program| value::program(key, program))?;
    }
    for (key, words) in [("modules.use", &site.modules.folders), ("modules.load", &site.modules.load)] {
        words.iter().try_for_each(|word| value::program(key, word))?;
    }
    if let Some(container) = &site.container {
        value::program("container.runtime", &container.runtime)?;
        value::program("container.image", &container.image)?;
        container.options.iter().try_for_each(|word| value::text("container.options", word))?;
        container.binds.iter().try_for_each(|word| value::program("container.binds", word))?;
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A request as the tests need it.
    pub fn request(kind: Kind, job: &str) -> Request {
        let runs_a_plan = ["verify", "gpu-acceptance"].contains(&job);
        let arguments: &[&str] = if runs_a_plan { &[] } else { &["train", "--config", "demo.yaml"] };
        Request {
            kind,
            job: job.into(),
            ranks: None,
            nodes: None,
            time: None,
            name: None,
            dir: "/scratch/runs/one".into(),
            submit_dir: "/work".into(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            found: Found {
                trainer: "/opt/lockstep/bin/lockstep".into(),
                harness: "/opt/lockstep/bin/lockstep-harness".into(),
                mpirun: "mpirun".into(),
            },
        }
    }

    fn refusal(request: Request, site: &str) -> String {
        plan(request, Site::parse(site).unwrap()).unwrap_err().0
    }

    #[test]
    fn the_jobs_words_come_last_and_win() {
        let job = plan(request(Kind::Slurm, "zero1"), Site::parse("threads_per_rank: 2").unwrap()).unwrap();
        let expected = [
            "train",
            "--config",
            "demo.yaml",
            "--set",
            "run.threads_per_rank=2",
            "--set",
            "parallel.strategy=zero1",
        ];
        assert_eq!(job.arguments, expected);
    }

    #[test]
    fn a_number_of_ranks_that_was_asked_for_decides_on_the_nodes() {
        let four = Request { ranks: Some(4), ..request(Kind::Slurm, "zero1") };
        assert_eq!(plan(four.clone(), Site::default()).unwrap().place.nodes, 1);
        assert_eq!(plan(four, Site::parse("gpus_per_node: 1").unwrap()).unwrap().place.nodes, 4);
        let open = plan(request(Kind::Slurm, "zero1"), Site::parse("gpus_per_node: 4").unwrap()).unwrap();
        assert_eq!((open.place.nodes, open.place.ranks), (2, 8));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let smoke = || request(Kind::Slurm, "smoke");
        assert!(refusal(smoke(), "account: 'a b'").contains("account"));
        assert!(refusal(smoke(), "grace_s: 600").contains("grace_s"));
        assert!(refusal(smoke(), "env: { 'A B': x }").contains("env"));
        assert!(refusal(smoke(), "container: { image: '' }").contains("container.image"));
        assert!(refusal(smoke(), "launcher: [srun]").contains("{ranks}"));
        assert!(refusal(smoke(), "modules: { load: [-x] }").contains("modules.load"));
        let sizes = "jobs: { strong-scaling: { sizes: [1, 9] } }\ngpus_per_node: 2";
        assert!(refusal(request(Kind::Slurm, "strong-scaling"), sizes).contains("sizes: 9"));
        let empty = "jobs: { sensitivity: { precisions: [] } }";
        assert!(refusal(request(Kind::Slurm, "sensitivity"), empty).contains("precisions"));
        let none = Request { arguments: Vec::new(), ..smoke() };
        assert!(refusal(none, "").contains("-- train"));
        let other = Request { arguments: vec!["rm".into()], ..smoke() };
        assert!(refusal(other, "").contains("`train`"));
        let long = Request { name: Some("a-name-of-many-letters".into()), ..smoke() };
        assert!(refusal(long, "").contains("longer"));
    }

    #[test]
    fn here_only_a_wanted_limit_holds_and_an_array_is_a_loop() {
        let here = plan(request(Kind::Local, "sensitivity"), Site::default()).unwrap();
        assert_eq!((here.limit_s, here.array), (0, 0));
        let there = plan(request(Kind::Pbs, "sensitivity"), Site::default()).unwrap();
        assert_eq!((there.limit_s, there.array), (3600, 4));
    }
}
