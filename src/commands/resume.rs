//! Where a run starts: from nothing, or from a checkpoint. All ranks decide alike, because rank 0 looks and the
//! others are told.

use std::fs::File;
use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, RecordError, RunDir, StepLine, exit, read_json, read_lines};

use crate::checkpoint::{CheckpointError, candidates};
use crate::comm::Comm;
use crate::config::{Config, resume_compatible};
use crate::files;
use crate::launch::{Failure, together};
use crate::metrics::Recorder;
use crate::mutate;
use crate::session::Session;

/// The state that a run starts from.
pub struct Start {
    pub step: u64,
    /// Of the run that is gone on with, if it is the same run directory.
    pub manifest: Option<Manifest>,
}

/// Rank 0 locks the run directory and refuses one that holds a run, unless it is to be resumed.
pub fn claim(comm: &dyn Comm, run: &RunDir, resume: bool) -> Result<Option<File>, Failure> {
    let mine = (comm.rank() == 0).then(|| claim_alone(run, resume)).transpose();
    together(comm, exit::USAGE, mine)
}

fn claim_alone(run: &RunDir, resume: bool) -> Result<File, String> {
    let path = run.path().display();
    let occupied =
        files::is_occupied(run.path()).map_err(|error| format!("run directory {path}: {error}"))?;
    let lock = Recorder::lock(run);
    if occupied && !resume {
        lock.map_err(|error| error.to_string())?;
        return Err(format!(
            "run directory {path} is not empty: go on with that run by --resume auto, or choose another with --run-dir"
        ));
    }
    lock.map_err(|error| error.to_string())
}

/// Brings the session into the state that the run starts from; all ranks call it.
pub fn start(session: &mut Session, run: &RunDir, resume: Option<&Path>) -> Result<Start, Failure> {
    let comm = session.comm;
    let manifest = together(comm, exit::USAGE, earlier_manifest(run))?;
    if let Some(manifest) = &manifest {
        check_compatible(manifest, session.config)?;
    }
    let chain = match resume {
        None => Vec::new(),
        Some(path) if path == Path::new("auto") => share(comm, recorded_candidates(run))?,
        Some(path) => vec![share(comm, named_checkpoint(path).map(|path| vec![path]))?.remove(0)],
    };
    if chain.is_empty() {
        session.initialise()?;
        return Ok(Start { step: 0, manifest });
    }
    let (step, checkpoint) = first_good(session, &chain)?;
    session.agree_on_parameters()?;
    mutate::resumed_from(step);
    tracing::info!(step, checkpoint = %checkpoint.display(), "resumed");
    if comm.rank() == 0 {
        eprintln!("step {step}: resumed from {}", checkpoint.display());
    }
    Ok(Start { step, manifest })
}

/// The run's checkpoints, newest first, up to the end of its metrics: going on from a later one would leave a hole in
/// the record.
fn recorded_candidates(run: &RunDir) -> Result<Vec<PathBuf>, String> {
    let steps = run.checkpoint_steps().map_err(|error| error.to_string())?;
    let recorded = match run.metrics().exists() {
        true => last_recorded_step(run)?,
        false => 0,
    };
    let usable: Vec<PathBuf> =
        steps.iter().rev().filter(|&&step| step <= recorded).map(|&step| run.checkpoint(step)).collect();
    match steps.last() {
        Some(&newest) if newest > recorded => {
            tracing::warn!(
                "the record ends at step {recorded}, before the checkpoint of step {newest}: that one is passed over"
            );
        }
        _ => {}
    }
    match usable.is_empty() && !steps.is_empty() {
        false => Ok(usable),
        true => Err(format!(
            "{} ends at step {recorded}, before every checkpoint: its end was lost. Go on in a new run directory: \
             --run-dir NEW --resume {}",
            run.metrics().display(),
            run.path().display()
        )),
    }
}

/// The last step of which the metrics have a whole line.
fn last_recorded_step(run: &RunDir) -> Result<u64, String> {
    let mut last = 0;
    for line in read_lines::<StepLine>(&run.metrics()).map_err(|error| error.to_string())? {
        match line {
            Ok(line) => last = line.step,
            Err(RecordError::Truncated { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(last)
}

/// Loads the first checkpoint of the chain that is undamaged, and says which ones were not.
fn first_good(session: &mut Session, chain: &[PathBuf]) -> Result<(u64, PathBuf), Failure> {
    let mut reasons = Vec::new();
    for folder in chain {
        match session.load(folder) {
            Ok(state) => return Ok((state.step, folder.clone())),
            Err(error @ CheckpointError::Damaged { .. }) => {
                tracing::warn!("{error}; trying the one before it");
                reasons.push(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let message = format!("no usable checkpoint:\n  {}", reasons.join("\n  "));
    Err(Failure::shared(exit::NO_CHECKPOINT, message))
}

fn earlier_manifest(run: &RunDir) -> Result<Option<Manifest>, String> {
    match run.manifest().exists() {
        true => read_json(&run.manifest()).map(Some).map_err(|error| error.to_string()),
        false => Ok(None),
    }
}

fn check_compatible(manifest: &Manifest, config: &Config) -> Result<(), Failure> {
    let old: Config = serde_json::from_value(manifest.config.clone()).map_err(|error| {
        Failure::shared(exit::USAGE, format!("the run's manifest has another configuration: {error}"))
    })?;
    resume_compatible(&old, config).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::shared(exit::USAGE, format!("this run cannot be resumed so:\n  {}", lines.join("\n  ")))
    })
}

/// The checkpoint that a path names: itself, or the newest one of the run directory.
fn named_checkpoint(path: &Path) -> Result<PathBuf, String> {
    let run = RunDir::new(path);
    let newest = candidates(&run).map_err(|error| format!("{}: {error}", path.display()))?;
    match newest.into_iter().next() {
        Some(checkpoint) => Ok(checkpoint),
        None if path.join("manifest.json").is_file() && !run.metrics().exists() => Ok(path.to_owned()),
        None => Err(format!("{} is neither a checkpoint nor a run directory with one", path.display())),
    }
}

/// Rank 0's paths, for everybody.
fn share(comm: &dyn Comm, paths: Result<Vec<PathBuf>, String>) -> Result<Vec<PathBuf>, Failure> {
    let paths = if comm.rank() == 0 { paths } else { Ok(Vec::new()) };
    let paths = together(comm, exit::NO_CHECKPOINT, paths)?;
    let texts: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let messages = comm.all_gather_bytes("gather of refusals", texts.join("\n").as_bytes())?;
    Ok(String::from_utf8_lossy(&messages[0]).lines().map(PathBuf::from).collect())
}
