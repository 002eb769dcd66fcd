//! `lockstep launch`: jobs run here with the real mpirun, bit for bit like the golden run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lockstep_record::{Manifest, Outcome, RunDir, exit, read_json};

use crate::equality::golden;
use crate::launch::{assert_equal, children, take_turn};

/// What one `lockstep launch` left.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "{}", self.stderr);
        self
    }

    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in: {}", self.stderr);
        self
    }
}

fn tiny() -> Vec<String> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.yaml");
    ["--", "train", "--config", &config.display().to_string()].map(str::to_owned).to_vec()
}

/// `words`, with what is the same in all of these tests.
fn launch_command(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", env!("CARGO_BIN_EXE_lockstep"), "launch"]).args(words);
    for name in ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn finish(mut command: Command) -> Ended {
    let _turn = take_turn();
    Ended::of(&command.output().expect("start lockstep launch"))
}

/// Runs a job here in `dir`, with the tiny training and more words for it.
fn here(dir: &Path, options: &[&str], training: &[&str]) -> Ended {
    let dir = dir.display().to_string();
    let mut command = launch_command(&["local", "--dir", &dir]);
    command.args(options).args(tiny()).args(training);
    finish(command)
}

/// A site file beside the tests' folders.
fn site(folder: &Path, text: &str) -> String {
    let file = folder.join("site.yaml");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn harness() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_lockstep")).with_file_name("lockstep-harness")
}

#[test]
fn two_ranks_here_give_the_golden_bits_and_leave_everything_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    // A blank and a quote in the path are nobody's trouble.
    let dir = folder.path().join("it's here");
    let ended = here(&dir, &["-n", "2"], &[])
        .code(exit::OK)
        .says("has its log, its metrics and checkpoints that load");
    assert!(ended.stderr.contains("checkpoints  "), "{}", ended.stderr);
    assert_equal(&golden(), &dir.join("run"));
    assert_eq!(fs::read_to_string(dir.join("exit-code")).unwrap(), "0\n");
    assert!(dir.join("snapshots/0-before-host.txt").is_file());
    let manifest: Manifest = read_json(&RunDir::new(dir.join("run")).manifest()).unwrap();
    assert_eq!(manifest.segments[0].world_size, 2);
}

#[test]
fn zero1_and_smoke_are_what_they_are_called() {
    let folder = tempfile::tempdir().unwrap();
    let (zero1, smoke) = (folder.path().join("zero1"), folder.path().join("smoke"));
    here(&zero1, &["--job", "zero1", "-n", "3"], &[]).code(exit::OK);
    let manifest: Manifest = read_json(&RunDir::new(zero1.join("run")).manifest()).unwrap();
    assert_eq!((manifest.segments[0].strategy.as_str(), manifest.segments[0].world_size), ("zero1", 3));
    assert_equal(&golden(), &zero1.join("run"));
    here(&smoke, &["--job", "smoke"], &[]).code(exit::OK);
    let manifest: Manifest = read_json(&RunDir::new(smoke.join("run")).manifest()).unwrap();
    assert_eq!(manifest.segments[0].ended.clone().unwrap().step, 3);
}

/// A limit that nears its end saves; the same folder goes on, bit for bit.
#[test]
fn time_that_runs_out_saves_and_the_folder_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("job");
    let site = site(folder.path(), "grace_s: 20");
    let long =
        ["--set", "schedule.steps=100000", "--set", "record.digests_every=0", "--set", "evaluate.every=0"];
    let started = Instant::now();
    here(&dir, &["--job", "requeue", "-n", "2", "--time", "00:00:24", "--site", &site], &long)
        .code(exit::PREEMPTED)
        .says("saved; go on with");
    assert!(started.elapsed() < Duration::from_secs(24), "it outlived its limit");
    let run = RunDir::new(dir.join("run"));
    let ended = read_json::<Manifest>(&run.manifest()).unwrap().segments[0].ended.clone().unwrap();
    assert_eq!(ended.outcome, Outcome::Preempted);
    assert!(run.checkpoint(ended.step).is_dir());
    let stop = (ended.step + 2).to_string();
    here(&dir, &["-n", "2"], &[&long[..], &["--stop-after", &stop]].concat()).code(exit::OK);
    let segments = read_json::<Manifest>(&run.manifest()).unwrap().segments;
    assert_eq!((segments.len(), segments[1].from_step), (2, ended.step));
}

/// SIGUSR1 and SIGTERM to the job reach the ranks, which save. The run that goes on ends with the golden bits.
#[test]
fn a_signal_to_the_job_saves_and_the_rest_gives_the_golden_bits() {
    let folder = tempfile::tempdir().unwrap();
    // Long enough to be caught in the middle.
    let long = ["--set", "schedule.steps=400", "--set", "evaluate.every=0", "--set", "checkpoint.every=200"];
    let golden = folder.path().join("golden");
    here(&golden, &[], &long).code(exit::OK);
    for signal in [libc::SIGUSR1, libc::SIGTERM] {
        let dir = folder.path().join(signal.to_string());
        signalled(&dir, &long, signal).code(exit::PREEMPTED).says("saved; go on with");
        assert_eq!(fs::read_to_string(dir.join("exit-code")).unwrap(), "75\n");
        here(&dir, &["-n", "3"], &long).code(exit::OK);
        assert_equal(&golden.join("run"), &dir.join("run"));
    }
}

/// Sends a signal to a job of two ranks once it trains.
fn signalled(dir: &Path, training: &[&str], signal: i32) -> Ended {
    let mut command = launch_command(&["local", "-n", "2", "--dir", &dir.display().to_string()]);
    command.args(tiny()).args(training).stderr(Stdio::piped()).stdout(Stdio::piped());
    let _turn = take_turn();
    let child = command.spawn().unwrap();
    let metrics = RunDir::new(dir.join("run")).metrics();
    let started = Instant::now();
    while !fs::metadata(&metrics).is_ok_and(|metadata| metadata.len() > 0) {
        assert!(started.elapsed() < Duration::from_secs(60), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    let job = children(child.id())[0];
    // SAFETY: sends a signal to a child of our own child, which is still being waited for.
    unsafe { libc::kill(job, signal) };
    Ended::of(&child.wait_with_output().unwrap())
}

/// The control of the milestone: a job whose checkpoint cannot be loaded fails, although its training succeeded.
#[test]
fn a_checkpoint_that_does_not_load_fails_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("job");
    here(&dir, &[], &[]).code(exit::OK);
    let checkpoint = RunDir::new(dir.join("run")).checkpoint(5);
    let shard = fs::read_dir(checkpoint)
        .unwrap()
        .flatten()
        .find(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"));
    let shard = shard.unwrap().path();
    let mut bytes = fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&shard, bytes).unwrap();
    here(&dir, &[], &[]).code(exit::NO_CHECKPOINT).says("milestone: a checkpoint in");
    assert_eq!(fs::read_to_string(dir.join("exit-code")).unwrap(), "72\n");
}

#[test]
fn scaling_jobs_measure_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let site = site(folder.path(), &format!("programs: {{ harness: '{}' }}", harness().display()));
    for (job, batches) in [("strong-scaling", [8, 8]), ("weak-scaling", [2, 4])] {
        let dir = folder.path().join(job);
        let ended = here(&dir, &["--job", job, "-n", "2", "--site", &site], &[]).code(exit::OK);
        assert!(ended.stdout.contains("efficiency") && ended.stdout.lines().count() == 3, "{}", ended.stdout);
        let lines = fs::read_to_string(dir.join("measurements.jsonl")).unwrap();
        for (line, (ranks, batches)) in lines.lines().zip([1, 2].into_iter().zip(batches)) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["ranks"], &line["micro_batches"]), (&ranks.into(), &batches.into()), "{line}");
        }
    }
}

#[test]
fn the_sensitivity_job_trains_every_cell() {
    let folder = tempfile::tempdir().unwrap();
    let values = "jobs: { sensitivity: { bucket_mb: [0.01, 2], precisions: [fp32] } }";
    let site = site(folder.path(), &format!("{values}\nprograms: {{ harness: '{}' }}", harness().display()));
    let dir = folder.path().join("job");
    here(&dir, &["--job", "sensitivity", "-n", "2", "--site", &site], &[]).code(exit::OK);
    for cell in ["bucket-0.01-fp32", "bucket-2-fp32"] {
        assert_equal(&golden(), &dir.join("runs").join(cell));
    }
    assert_eq!(fs::read_to_string(dir.join("measurements.jsonl")).unwrap().lines().count(), 2);
}

#[test]
fn the_verify_job_starts_ranks_as_the_job_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.yaml");
    let plan = folder.path().join("plan.yaml");
    let text = format!(
        "groups:\n  - name: tiny\n    config: '{}'\n    golden: {{ stages: [{{ ranks: 1, strategy: single }}] }}\n    cases:\n      \
         - {{ name: ddp-2, stages: [{{ ranks: 2, strategy: ddp }}] }}\n      \
         - {{ name: zero1-3, stages: [{{ ranks: 3, strategy: zero1 }}] }}\n",
        config.display()
    );
    fs::write(&plan, text).unwrap();
    let text = format!(
        "jobs: {{ verify: {{ plan: '{}', only: ddp }} }}\nprograms: {{ harness: '{}' }}",
        plan.display(),
        harness().display()
    );
    let site = site(folder.path(), &text);
    let dir = folder.path().join("a job");
    let command = launch_command(&[
        "local",
        "--dir",
        &dir.display().to_string(),
        "--job",
        "verify",
        "-n",
        "2",
        "--site",
        &site,
    ]);
    let ended = finish(command).code(exit::OK);
    assert!(ended.stdout.contains("ddp-2") && !ended.stdout.contains("zero1-3"), "{}", ended.stdout);
    let report = fs::read_to_string(dir.join("verify-0/report.json")).unwrap();
    // The job's own starter was used, not an mpirun that the harness found.
    assert!(report.contains("a job/bin/ranks"), "{report}");
}

/// Without a profiler a profile cannot be made: said before anything runs.
#[test]
fn a_missing_profiler_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let site =
        site(folder.path(), "programs: { nsys: no-such-nsys, ncu: no-such-ncu, harness: no-such-harness }");
    for (job, missing) in [
        ("profile-nsys", "no-such-nsys"),
        ("profile-ncu", "no-such-ncu"),
        ("strong-scaling", "no-such-harness"),
    ] {
        let dir = folder.path().join(job);
        here(&dir, &["--job", job, "--site", &site], &[])
            .code(exit::CASE_FAILED)
            .says(&format!("{missing} is not here"));
        assert!(!dir.join("run").exists() && !dir.join("runs").exists());
    }
}

/// Nsight Systems puts itself before every rank's trainer: here a program that notes where, and then is the trainer.
#[test]
fn a_profiler_starts_every_rank() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let profiler = folder.path().join("profiler");
    let script = "#!/bin/bash\nfor word; do shift; case $word in --output=*) out=${word#*=} ;; */lockstep) break ;; esac; done\n\
                  touch \"${out//%q\\{OMPI_COMM_WORLD_RANK\\}/$OMPI_COMM_WORLD_RANK}.nsys-rep\"\nexec \"$word\" \"$@\"\n";
    fs::write(&profiler, script).unwrap();
    fs::set_permissions(&profiler, fs::Permissions::from_mode(0o755)).unwrap();
    let site = site(folder.path(), &format!("programs: {{ nsys: '{}' }}", profiler.display()));
    let dir = folder.path().join("job");
    here(&dir, &["--job", "profile-nsys", "-n", "2", "--site", &site], &[]).code(exit::OK);
    for rank in 0..2 {
        assert!(dir.join(format!("nsys/rank-{rank}.nsys-rep")).is_file());
    }
    assert!(RunDir::new(dir.join("run")).rank_trace(1).is_file());
}

#[test]
fn a_dry_run_prints_the_script_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("job");
    let dir_text = dir.display().to_string();
    for (kind, line) in
        [("slurm", "#SBATCH --ntasks=4"), ("pbs", "#PBS -l nodes=2:ppn=2"), ("local", "RANKS=4")]
    {
        let mut command = launch_command(&[kind, "-n", "4", "--nodes", "2", "--dir", &dir_text, "--dry-run"]);
        command.args(tiny());
        let ended = finish(command).code(exit::OK);
        assert!(ended.stdout.lines().any(|other| other == line), "{}", ended.stdout);
        assert!(!dir.exists());
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("job").display().to_string();
    let refused = |words: &[&str], training: &[&str], says: &str| {
        let mut command = launch_command(&["slurm", "--dir", &dir, "--dry-run"]);
        command.args(words).args(tiny()).args(training);
        let ended = finish(command).code(exit::USAGE).says(says);
        assert!(ended.stdout.is_empty());
    };
    refused(&["--job", "zero3"], &[], "there is no job `zero3`");
    refused(&["-n", "9"], &[], "8 micro-batches cannot be shared by 9 ranks");
    refused(&["-n", "0"], &[], "0 ranks");
    refused(&["-n", "2", "--nodes", "3"], &[], "take fewer nodes");
    refused(&["--time", "1h"], &[], "01:30:00");
    refused(&["--site", "/nowhere.yaml"], &[], "/nowhere.yaml");
    refused(&[], &["--run-dir", "x"], "choose its folder with --dir");
    refused(&[], &["--set", "optim.lr=fast"], "optim.lr");
    refused(&[], &["--sett", "optim.lr=1"], "--sett");
    refused(&["--name", "a b"], &[], "--name");
}

/// A job starts ranks; a rank starts none.
#[test]
fn launchers_are_not_nested() {
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_ID"] {
        let mut command = launch_command(&["local", "-n", "2", "--dry-run"]);
        command.args(tiny()).env(variable, "0");
        finish(command).code(exit::USAGE).says(variable).says("cannot be nested");
    }
}

#[test]
fn a_machine_without_the_scheduler_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bin")).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let timeout =
        std::env::split_paths(&path).map(|bin| bin.join("timeout")).find(|file| file.is_file()).unwrap();
    std::os::unix::fs::symlink(timeout, folder.path().join("bin/timeout")).unwrap();
    for (kind, program) in [("slurm", "sbatch"), ("pbs", "qsub")] {
        let dir = folder.path().join(kind).display().to_string();
        let mut command = launch_command(&[kind, "--dir", &dir]);
        command.args(tiny()).env("PATH", folder.path().join("bin"));
        finish(command).code(exit::CASE_FAILED).says(&format!("{program} is not on the PATH"));
    }
}
