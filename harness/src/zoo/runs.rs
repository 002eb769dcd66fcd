//! Launching trainings of the zoo: golden runs, runs with a bug, clean runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_record::{RunDir, exit};

use super::catalogue::Training;
use crate::launch::{Ended, Expected, Launch, Launcher, check_world, complaint, tail};
use crate::verify::Stage;

/// What all launches share.
pub struct Runner {
    pub trainer: PathBuf,
    /// Or why there is none: runs of one rank run all the same.
    pub launcher: Result<Launcher, String>,
    pub timeout: Duration,
    pub stop: Arc<AtomicBool>,
}

/// A run that was launched, to its end or to its first launch that failed.
pub struct Ran {
    pub run: RunDir,
    /// Exit code of the last launch; None if a signal or the limit ended it.
    pub exit: Option<i32>,
    /// The end of what the last launch said.
    pub said: String,
    /// What went wrong with it, if it did.
    pub complaint: Option<String>,
    pub seconds: f64,
}

impl Runner {
    /// Runs a training as `stages` say, each but the first going on from the one before it.
    pub fn run(
        &self,
        training: &Training,
        stages: &[Stage],
        mutation: Option<&str>,
        folder: &Path,
    ) -> Result<Ran, String> {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let start = Instant::now();
        let run = RunDir::new(folder.join("run"));
        let mut ran = Ran { run, exit: None, said: String::new(), complaint: None, seconds: 0.0 };
        for (index, stage) in stages.iter().enumerate() {
            let mut program = self.command(training, stage, &ran.run, index > 0);
            program.extend(mutation.into_iter().flat_map(|name| ["--mutate".to_owned(), name.to_owned()]));
            let argv = Launcher::wrap(&self.launcher, stage.ranks, program)?;
            let argv = with_environment(&training.environment, &self.trainer, argv);
            let log = |ending: &str| folder.join(format!("stage-{}.{ending}", index + 1));
            let (stdout, stderr) = (log("stdout"), log("stderr"));
            let launch = Launch { argv, stdout, stderr, timeout: self.timeout, stop: &self.stop };
            let (ended, record) = launch.run();
            if matches!(ended, Ended::Interrupted) || self.stop.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            ran.exit = if let Ended::Exit(code) = ended { Some(code) } else { None };
            ran.said = tail(&record.stderr);
            ran.complaint = complaint(&ended, &record);
            if ended != Ended::Exit(exit::OK) {
                break;
            }
        }
        ran.seconds = start.elapsed().as_secs_f64();
        Ok(ran)
    }

    /// A run without a bug: it must end well, and be what was asked for.
    pub fn clean(&self, training: &Training, stages: &[Stage], folder: &Path) -> Result<Ran, String> {
        let ran = self.run(training, stages, None, folder)?;
        if let Some(complaint) = &ran.complaint {
            return Err(complaint.clone());
        }
        let mut from_step = Some(0);
        let expected = stages.iter().map(|stage| Expected {
            ranks: stage.ranks,
            strategy: Some(&stage.strategy),
            from_step: std::mem::replace(&mut from_step, stage.stop_after),
        });
        check_world(&ran.run, &expected.collect::<Vec<_>>())?;
        Ok(ran)
    }

    fn command(&self, training: &Training, stage: &Stage, run: &RunDir, resume: bool) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![text(&self.trainer), "train".into()];
        let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        option("--config", text(&training.config));
        for set in training.set.iter().chain(&stage.set) {
            option("--set", set.clone());
        }
        option("--set", format!("parallel.strategy={}", stage.strategy));
        option("--run-dir", text(run.path()));
        if let Some(step) = stage.stop_after {
            option("--stop-after", step.to_string());
        }
        if resume {
            option("--resume", "auto".into());
        }
        argv
    }
}

/// The command line in an environment with these variables as well. It stands in reports, to be run again as it is.
fn with_environment(variables: &BTreeMap<String, String>, trainer: &Path, argv: Vec<String>) -> Vec<String> {
    if variables.is_empty() {
        return argv;
    }
    let folder = trainer.parent().unwrap_or(Path::new(".")).to_string_lossy();
    let set =
        |(name, value): (&String, &String)| format!("{name}={}", value.replace("{trainer_dir}", &folder));
    std::iter::once("env".to_owned()).chain(variables.iter().map(set)).chain(argv).collect()
}

/// Does the jobs `0..count` on so many threads; `done` hears of each on this thread, in the order in which they end.
pub fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
    mut done: impl FnMut(usize, &T),
) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let (send, receive) = std::sync::mpsc::channel();
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            let (send, next, work) = (send.clone(), &next, &work);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    // A receiver that is gone wants no more.
                    if index >= count || send.send((index, work(index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (index, result) in receive {
            done(index, &result);
            results[index] = Some(result);
        }
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_before_the_command_and_know_the_trainers_folder() {
        let argv = || vec!["mpirun".to_owned(), "t".to_owned()];
        let none = BTreeMap::new();
        assert_eq!(with_environment(&none, Path::new("/bin/t"), argv()), argv());
        let library = ("LIBRARY".to_owned(), "{trainer_dir}/libnccl.so".to_owned());
        let one = BTreeMap::from([("B".to_owned(), "2".to_owned()), library]);
        let expected = ["env", "B=2", "LIBRARY=/bin/libnccl.so", "mpirun", "t"];
        assert_eq!(with_environment(&one, Path::new("/bin/t"), argv()), expected);
    }

    #[test]
    fn every_job_is_done_once_and_results_keep_their_order() {
        for threads in [0, 1, 3, 50] {
            let mut heard = Vec::new();
            let results = in_parallel(20, threads, |index| index * 2, |index, _| heard.push(index));
            assert_eq!(results, (0..20).map(|index| index * 2).collect::<Vec<_>>());
            heard.sort_unstable();
            assert_eq!(heard, (0..20).collect::<Vec<_>>());
        }
        assert!(in_parallel(0, 4, |index| index, |_, _| {}).is_empty());
    }
}
