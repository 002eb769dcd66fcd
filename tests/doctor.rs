//! `lockstep doctor` on machines that have something wrong with them, as far as a test can make it so for real.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lockstep_record::exit;
use serde_json::Value;

use crate::launch::{Ended, Launch};

fn doctor(ranks: usize) -> Launch {
    Launch::command("doctor", ranks)
}

/// What one examination said.
struct Report(Value);

impl Report {
    /// Runs it; there is one document, whatever the number of ranks, and the exit code is the one in it.
    fn of(launch: Launch) -> Self {
        let (report, ended) = Self::and_end(launch);
        assert_eq!(report.0["exit_code"].as_i64(), ended.exit_code.map(i64::from), "{}", ended.stderr);
        report
    }

    fn and_end(launch: Launch) -> (Self, Ended) {
        let ended = launch.argument("--json").begin().wait();
        let value = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", ended.stdout, ended.stderr));
        (Self(value), ended)
    }

    fn finding(&self, id: &str, severity: &str) -> Option<&Value> {
        let findings = self.0["findings"].as_array().expect("a list");
        findings.iter().find(|finding| finding["id"] == id && finding["severity"] == severity)
    }

    fn all(&self) -> String {
        format!("{:#}", self.0["findings"])
    }

    /// Asserts a finding, and returns its message.
    fn has(&self, id: &str, severity: &str) -> String {
        let finding =
            self.finding(id, severity).unwrap_or_else(|| panic!("no {severity} {id}: {}", self.all()));
        assert_eq!(finding["remedy"].is_string(), severity != "ok", "{finding}");
        let expected = if severity == "error" { exit::BOOTSTRAP.into() } else { self.0["exit_code"].clone() };
        assert_eq!(self.0["exit_code"], expected);
        finding["message"].as_str().expect("a text").to_owned()
    }

    fn ranks(&self, id: &str, severity: &str) -> Vec<u64> {
        let ranks = self.finding(id, severity).and_then(|finding| finding["ranks"].as_array());
        ranks.into_iter().flatten().filter_map(Value::as_u64).collect()
    }
}

/// The command that gives a process mounts and a name of its own, as root or by a user namespace. Says so where neither
/// is allowed.
pub fn unshare() -> Option<&'static str> {
    let works = |command: &&str| {
        let probe = format!("{command} sh -c 'mount -t tmpfs tmpfs /mnt'");
        let status = Command::new("/bin/sh").args(["-c", &probe]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let found = ["unshare -mu", "unshare -rmu"].into_iter().find(works);
    if found.is_none() {
        eprintln!("skipped: this user may not make mount namespaces");
    }
    found
}

/// A report of a rank (`None`: of one process) after shell commands in mounts of its own.
fn elsewhere(launch: Launch, rank: Option<usize>, commands: &str) -> Option<Report> {
    let unshare = unshare()?;
    let only = rank.map(|rank| format!("[ \"$OMPI_COMM_WORLD_RANK\" = {rank} ] && ")).unwrap_or_default();
    let script = format!("{only}exec {unshare} sh -c '{commands}; exec \"$@\"' sh \"$@\"");
    Some(Report::of(launch.each_rank_after(&script)))
}

#[test]
fn ranks_make_one_report() {
    let ended = doctor(4).begin().wait().ok();
    assert_eq!(ended.stdout.matches("lockstep doctor: 4 ranks (mpi) on 1 host: ranks 0-3").count(), 1);
    assert!(ended.stdout.contains("thread level `multiple`"), "{}", ended.stdout);
    let closing = ended.stdout.lines().last().expect("a line");
    assert!(closing.starts_with("0 errors, "), "{}", ended.stdout);
    let alone = doctor(1).begin().wait().ok();
    assert!(alone.stdout.contains("1 rank (solo)"), "{}", alone.stdout);
    assert!(alone.stdout.contains("not started: one process without a launcher"), "{}", alone.stdout);
}

#[test]
fn the_facts_of_all_ranks_are_in_the_json() {
    let report = Report::of(doctor(2));
    let ranks = report.0["ranks"].as_array().expect("facts");
    assert_eq!(ranks.iter().filter_map(|facts| facts["rank"].as_u64()).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(report.0["world_size"], 2);
    assert!(report.has("mpi", "ok").starts_with(ranks[0]["mpi"]["library"].as_str().expect("a name")));
    // Of the environment only what the checks know.
    let secret = Report::of(doctor(1).env("SLURM_JWT", "hush").env("SLURM_JOB_ID", "17"));
    let text = secret.0.to_string();
    assert!(text.contains("SLURM_JOB_ID") && !text.contains("hush"), "{text}");
}

#[test]
fn a_world_of_one_under_a_launcher_of_many_is_an_error() {
    let message = Report::of(doctor(1).env("PMI_SIZE", "4")).has("mpi.world", "error");
    assert!(message.contains("PMI_SIZE=4") && message.contains("a world of 1"), "{message}");
    // Three processes that MPI does not join: what a mismatch of PMIx does.
    let forget = "for name in $(env | sed -n 's/^\\(PMIX_[A-Za-z0-9_]*\\|OMPI_MCA_[A-Za-z0-9_]*\\)=.*/\\1/p'); do \
                  unset \"$name\"; done";
    let report = Report::of(doctor(3).each_rank_after(forget));
    let message = report.has("mpi.world", "error");
    assert!(message.contains("OMPI_COMM_WORLD_SIZE=3"), "{message}");
}

#[test]
fn a_launcher_of_another_protocol() {
    let message = Report::of(doctor(1).env("PMI_RANK", "0")).has("mpi.launcher", "error");
    assert!(message.contains("the launcher speaks PMI, but Open MPI"), "{message}");
    let version =
        Report::of(doctor(2).each_rank_after("export PMIX_VERSION=1.2.5")).has("pmix.version", "warning");
    assert!(version.contains("the launcher has PMIx 1.2.5"), "{version}");
}

/// MPI ends the process by itself, which must not cost the report.
#[test]
fn an_mpi_that_does_not_start() {
    // One process needs a reason to start MPI. Under mpirun all are ended when one fails, and there is a moment to report.
    for broken in [doctor(1).set("parallel.backend=mpi"), doctor(2)] {
        let (report, ended) = Report::and_end(broken.env("OMPI_MCA_pml", "no_such_component"));
        assert!(ended.exit_code.is_some_and(|code| code != exit::OK), "{ended:?}");
        report.has("mpi.start", "error");
        assert!(ended.stderr.contains("no_such_component"), "MPI's own message: {}", ended.stderr);
        report.has("path.temporary", "ok");
    }
}

/// A rank that never comes: the wait is limited, and what can be said is said.
#[test]
fn an_mpi_that_hangs() {
    let late = doctor(2).each_rank_after("[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && sleep 60");
    let started = std::time::Instant::now();
    let message = Report::of(late.argument("--limit").argument("4")).has("mpi.start", "error");
    assert!(message.contains("had not answered after 4 s"), "{message}");
    assert!(started.elapsed().as_secs() < 30);
}

#[test]
fn limits_of_the_process() {
    let limited = doctor(1).after("ulimit -l 0 && ulimit -n 90 && ulimit -f 20480 && ulimit -v 68719476736");
    let report = Report::of(limited);
    for id in ["limits.memlock", "limits.files", "limits.file_size", "limits.memory"] {
        report.has(id, "warning");
    }
    assert!(report.has("limits.files", "warning").contains("90 files may be open"));
}

#[test]
fn threads_and_cores() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("skipped: this needs two cores");
        return;
    }
    let two = "run.threads_per_rank=2";
    let tied = doctor(1).set(two).after("taskset -p -c 0 $$ >/dev/null");
    assert!(Report::of(tied).has("cpu.bound", "warning").starts_with("2 threads a rank on 1 core"));
    // What mpirun does unless it is told otherwise.
    let report = Report::of(doctor(2).set(two).bind_to("core"));
    report.has("cpu.bound", "warning");
    assert_eq!(report.ranks("cpu.bound", "warning"), [0, 1]);
    let many = Report::of(doctor(2).set("run.threads_per_rank=500"));
    assert!(many.has("cpu.oversubscribed", "warning").starts_with("2 ranks with 1000 threads on"));
    let omp = Report::of(doctor(1).env("OMP_NUM_THREADS", "7"));
    assert!(omp.has("cpu.omp", "warning").contains("OMP_NUM_THREADS=7"));
}

#[test]
fn ranks_with_unlike_instruction_sets() {
    let unlike = "[ \"$OMPI_COMM_WORLD_RANK\" = 2 ] && export ATEN_CPU_CAPABILITY=default";
    let report = Report::of(doctor(3).each_rank_after(unlike));
    let message = report.has("cpu.capability", "error");
    assert!(message.contains("ATEN_CPU_CAPABILITY=default on rank 2 ("), "{message}");
    assert!(message.contains("on ranks 0-1 ("), "{message}");
    assert_eq!(report.ranks("cpu.switched", "note"), [2]);
}

#[test]
fn interfaces_that_are_not_there() {
    for name in ["NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "OMPI_MCA_btl_tcp_if_include"] {
        let message = Report::of(doctor(1).env(name, "nosuch0")).has("network.named", "error");
        assert!(message.contains(&format!("{name}=nosuch0: there is no interface nosuch0")), "{message}");
    }
    Report::of(doctor(1).env("NCCL_SOCKET_IFNAME", "lo,nosuch0")).has("network", "ok");
}

#[test]
fn a_scheduler_that_says_something_else() {
    let one = |name: &str, value: &str| Report::of(doctor(1).env(name, value));
    one("SLURM_PROCID", "0").has("scheduler.stale", "warning");
    let message = one("PBS_NODEFILE", "/no/such/file").has("scheduler.nodefile", "warning");
    assert!(message.contains("/no/such/file: No such file"), "{message}");
    let job = |ranks| doctor(ranks).env("SLURM_JOB_ID", "17").env("SLURM_JOB_NUM_NODES", "3");
    let report = Report::of(job(2).env("SLURM_NTASKS", "1"));
    assert_eq!(report.has("scheduler.tasks", "warning"), "a world of 2 in a job of 1 task (SLURM_NTASKS)");
    report.has("scheduler.nodes", "warning");
    Report::of(job(1).env("SLURM_NTASKS", "3")).has("scheduler.alone", "note");
    let renumbered = "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && export PMI_RANK=0";
    let report = Report::of(doctor(2).each_rank_after(renumbered));
    assert_eq!(report.has("scheduler.rank", "error"), "PMI_RANK=0, but MPI's rank is 1");
    assert_eq!(report.ranks("scheduler.rank", "error"), [1]);
}

#[test]
fn folders_that_cannot_be_written() {
    // Not even root can write there.
    let report = Report::of(doctor(1).set("run.dir=/proc/runs").set("data.cache_dir=/proc/cache"));
    assert!(report.has("path.runs", "error").starts_with("run directory /proc: "), "{}", report.all());
    report.has("path.cache", "warning");
    Report::of(doctor(1).env("TMPDIR", "/proc")).has("path.temporary", "error");
}

#[test]
fn file_systems_that_are_full_or_too_small() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let mount = |size: &str, place: &str| format!("mount -t tmpfs -o size={size} tmpfs {place}");
    let runs = || doctor(1).set(&format!("run.dir={place}"));
    let Some(full) = elsewhere(runs(), None, &mount("512k", &place.to_string())) else { return };
    assert!(full.has("path.full", "error").contains("No space left on device"), "{}", full.all());
    let low = elsewhere(runs(), None, &mount("100m", &place.to_string())).unwrap();
    assert!(low.has("path.low", "warning").contains("100 MiB are left"), "{}", low.all());
    // Ranks of one host need some of /dev/shm each.
    let shm = elsewhere(doctor(2), Some(1), &mount("2m", "/dev/shm")).unwrap();
    let message = shm.has("shm.small", "error");
    assert!(message.contains("of 2 MiB are free in /dev/shm, but 2 ranks need 8 MiB"), "{message}");
    let setting = folder.path().join("enabled");
    fs::write(&setting, "always madvise [never]\n").unwrap();
    let bind = format!("mount --bind {} /sys/kernel/mm/transparent_hugepage/enabled", setting.display());
    if Path::new("/sys/kernel/mm/transparent_hugepage/enabled").exists() {
        elsewhere(doctor(1), None, &bind).unwrap().has("memory.huge_pages", "note");
    }
}

/// A second host, as far as names and mounts go: its own run directory, and, since the network is the same one, the same
/// addresses.
#[test]
fn two_hosts_that_do_not_share_a_run_directory() {
    let folder = tempfile::tempdir().unwrap();
    let (place, boot) = (folder.path().join("runs"), folder.path().join("boot"));
    fs::create_dir(&place).unwrap();
    fs::write(&boot, "another boot\n").unwrap();
    let runs = |ranks| doctor(ranks).set(&format!("run.dir={}", place.display()));
    let other = format!("hostname venus; mount --bind {} /proc/sys/kernel/random/boot_id", boot.display());
    let apart = format!("{other}; mount -t tmpfs tmpfs {}", place.display());
    let Some(report) = elsewhere(runs(2), Some(1), &apart) else { return };
    assert!(report.has("path.apart", "error").contains("does not have a file that rank 0 made"));
    assert_eq!(report.ranks("path.apart", "error"), [1]);
    if report.0.to_string().contains("\"is_loopback\":false") {
        let usable =
            report.finding("network.same_address", "warning").or(report.finding("network.none", "error"));
        assert!(usable.is_some(), "{}", report.all());
    }
    // Another machine's clock is asked for the time; it is the same one.
    let ahead = report.0["ranks"][1]["clock"]["ahead_s"].as_f64().expect("a number");
    assert!(ahead != 0.0 && ahead.abs() < 0.5, "{ahead}");
    let shared = elsewhere(runs(2), Some(1), &other).unwrap();
    assert!(shared.has("path.runs", "ok").contains("the same on all hosts"), "{}", shared.all());
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn what_dead_programs_left() {
    let path = Path::new("/dev/shm").join(format!("vader_segment.test.{}", std::process::id()));
    if fs::write(&path, [1; 100_000]).is_err() {
        eprintln!("skipped: /dev/shm cannot be written");
        return;
    }
    let report = Report::of(doctor(2));
    fs::remove_file(&path).unwrap();
    let message = report.has("shm.leftovers", "note");
    assert!(message.contains("of dead programs in /dev/shm"), "{message}");
}

#[test]
fn ranks_in_unlike_images() {
    let unlike = "export APPTAINER_CONTAINER=/images/$OMPI_COMM_WORLD_RANK.sif";
    let message = Report::of(doctor(2).each_rank_after(unlike)).has("container.image", "error");
    assert!(
        message.contains("/images/0.sif on rank 0") && message.contains("/images/1.sif on rank 1"),
        "{message}"
    );
    let known =
        doctor(1).env("APPTAINER_CONTAINER", "/images/a.sif").env("LOCKSTEP_IMAGE_DIGEST", "sha256:12");
    assert_eq!(Report::of(known).has("container", "ok"), "apptainer, /images/a.sif, sha256:12");
}

#[test]
fn logs_of_nccl() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("nccl.17");
    let lines = "NCCL version 2.19.3+cuda12.2\n\
                 mars:919:1150 [0] NCCL INFO Channel 01/0 : 8[0] -> 15[7] via SHM/direct/direct\n\
                 mars:926:1151 [7] NCCL INFO Channel 03/0 : 15[7] -> 6[6] [send] via NET/Socket/3\n\
                 mars:926:1151 [7] misc/ibvwrap.cc:94 NCCL WARN Call to ibv_reg_mr failed\n";
    fs::write(&log, lines).unwrap();
    let report = Report::of(doctor(1).argument("--nccl-log").argument(&log));
    assert!(report.has("nccl.warned", "warning").ends_with("Call to ibv_reg_mr failed"));
    report.has("nccl.no_p2p", "note");
    assert!(report.has("nccl.transport", "ok").contains("NCCL 2.19.3+cuda12.2, NET/Socket 1, SHM 1"));
    let pattern = folder.path().join("nccl.%p");
    Report::of(doctor(2).env("NCCL_DEBUG_FILE", pattern.to_str().unwrap())).has("nccl.warned", "warning");
    let absent = Report::of(doctor(1).argument("--nccl-log").argument("/no/such/log"));
    assert!(absent.has("nccl.log", "warning").contains("No such file"));
}

/// A machine without a GPU cannot run NVIDIA's management library, so one with its interface stands in for it: what is
/// tested is everything from the loading of a library to the verdict.
const GPUS: &str = r#"
#include <stdio.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "535.104.05"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12020; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
"#;

#[test]
fn gpus_and_their_driver() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("nvml.c");
    fs::write(&source, GPUS).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.path().join("libnvidia-ml.so.1")).arg(&source);
    assert!(
        compiler.status().is_ok_and(|status| status.success()),
        "a C compiler, which building lockstep needs"
    );
    let path = folder.path().to_str().unwrap().to_owned()
        + &std::env::var("LD_LIBRARY_PATH").map(|rest| format!(":{rest}")).unwrap_or_default();
    let gpus = |ranks| doctor(ranks).env("LD_LIBRARY_PATH", &path);
    let report = Report::of(gpus(3));
    assert_eq!(report.has("gpu.shared", "warning"), "3 ranks of a host share 2 GPUs");
    assert_eq!(report.0["ranks"][0]["gpu"]["driver"], "535.104.05");
    let torch = &report.0["ranks"][0]["torch"];
    if torch["has_cuda_library"] == true && torch["cuda"].as_str().is_some_and(|version| version > "13") {
        let message = report.has("cuda.driver", "error");
        assert!(message.contains("driver 535.104.05 runs CUDA 12.2 at most"), "{message}");
    } else {
        report.has("cuda.cpu_build", "note");
    }
    let hidden = Report::of(gpus(1).env("CUDA_VISIBLE_DEVICES", ""));
    assert_eq!(hidden.has("gpu.none", "warning"), "CUDA_VISIBLE_DEVICES= hides the host's 2 GPUs");
    let wrong = Report::of(gpus(1).env("CUDA_VISIBLE_DEVICES", "1,5"));
    assert!(wrong.has("gpu.unknown", "error").contains("there is no GPU 5"), "{}", wrong.all());
}

#[test]
fn a_command_line_that_is_wrong() {
    let refuse = |launch: Launch| -> Ended { launch.begin().wait().code(exit::USAGE) };
    refuse(doctor(1).argument("--limit").argument("0")).says("0.1 to 86400");
    refuse(doctor(1).set("run.threads_per_rank=none")).says("run.threads_per_rank");
    let twice = refuse(doctor(2).set("optim.learning_rate=1"));
    assert_eq!(twice.stderr.matches("did you mean optim.lr").count(), 1, "{}", twice.stderr);
}
