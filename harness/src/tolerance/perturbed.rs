//! Repeats a golden run, each time with other perturbations.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use lockstep_record::{Manifest, Perturbation, RunDir};

use super::{Plan, ToleranceError};
use crate::compare::Run;
use crate::launch::{Ended, Launch, LaunchRecord, complaint};

/// Where the runs lie.
pub fn folder(golden: &RunDir) -> PathBuf {
    golden.tolerance().join("runs")
}

/// Trains the golden run's configuration again and again, on one process: the number of processes does not matter to a run
/// whose sum is ordered. Returns the run directories.
pub fn repeat(
    golden: &RunDir,
    plan: &Plan,
    launches: &mut Vec<LaunchRecord>,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, ToleranceError> {
    let manifest = Run::open(golden.path())?.manifest;
    if !golden.config().is_file() {
        let problem = "it has no config.yaml to repeat it by".to_owned();
        return Err(ToleranceError::Golden { path: golden.path().to_owned(), problem });
    }
    let mut runs = Vec::new();
    for seed in 1..=u64::from(plan.runs) {
        let perturbation = Perturbation { of: plan.perturbed, seed, unit: plan.unit };
        let place = folder(golden).join(format!("{seed:04}"));
        std::fs::create_dir_all(&place)
            .map_err(|source| ToleranceError::Io { path: place.clone(), source })?;
        let run_dir = place.join("run");
        let argv = command(golden, &manifest, plan, perturbation, &run_dir);
        let (stdout, stderr) = (place.join("stdout"), place.join("stderr"));
        let (ended, record) = Launch { argv, stdout, stderr, timeout: plan.timeout, stop: plan.stop }.run();
        if plan.stop.load(Ordering::Relaxed) || ended == Ended::Interrupted {
            return Err(ToleranceError::Interrupted);
        }
        let complaint = complaint(&ended, &record);
        progress(&format!("perturbed run {seed} of {}: {ended}, {:.1} s", plan.runs, record.seconds));
        launches.push(record);
        if let Some(problem) = complaint {
            return Err(ToleranceError::Perturbed { path: run_dir, problem });
        }
        // They are the bulk of a run, and nothing reads them.
        let _ = std::fs::remove_dir_all(RunDir::new(&run_dir).checkpoints());
        runs.push(run_dir);
    }
    Ok(runs)
}

fn command(
    golden: &RunDir,
    manifest: &Manifest,
    plan: &Plan,
    perturbation: Perturbation,
    run_dir: &std::path::Path,
) -> Vec<String> {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let mut argv = vec![text(plan.trainer), "train".into(), "--config".into(), text(&golden.config())];
    for set in [
        "parallel.strategy=single",
        "parallel.backend=auto",
        "parallel.reduction=ordered",
        "parallel.compression=none",
        "checkpoint.every=0",
        "checkpoint.milestone_every=0",
        "checkpoint.at_start=false",
    ] {
        argv.extend(["--set".into(), set.into()]);
    }
    argv.extend(["--run-dir".into(), text(run_dir), "--perturb".into(), perturbation.to_string()]);
    // A run that was stopped early is repeated as far as it went.
    if let Some(ended) = manifest.segments.last().and_then(|segment| segment.ended.as_ref()) {
        argv.extend(["--stop-after".into(), ended.step.to_string()]);
    }
    argv
}
