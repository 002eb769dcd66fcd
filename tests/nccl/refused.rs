//! What cannot work is refused before any step, once, with exit code 70 and the remedy.

use std::path::Path;
use std::process::Command;

use lockstep_record::{RunDir, exit};

use super::over_nccl;
use crate::launch::Launch;

/// Exits with 70, before any step, with one message.
fn is_refused(launch: Launch, words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let ended = launch.run(folder.path()).code(exit::BOOTSTRAP).says(words);
    assert_eq!(ended.stderr.matches(words).count(), 1, "{}", ended.stderr);
    assert_eq!(std::fs::read(RunDir::new(folder.path()).metrics()).unwrap_or_default(), b"");
}

#[test]
fn an_nccl_that_is_missing_or_of_another_kind_is_refused() {
    let with = |name: &str, value: &str| over_nccl(Launch::ranks(2)).env(name, value);
    is_refused(
        with("LOCKSTEP_NCCL_LIBRARY", "/no/such/libnccl.so.2"),
        "correct LOCKSTEP_NCCL_LIBRARY, or unset it",
    );
    is_refused(
        with("NCCL_DOUBLE_VERSION", "30100"),
        "is NCCL 3.1.0, but lockstep talks to NCCL 2 from 2.14 on",
    );
    is_refused(with("NCCL_DOUBLE_VERSION", "21305"), "install 2.14 or later");
}

#[test]
fn ranks_without_a_gpu_of_their_own_are_refused() {
    let with = |name: &str, value: &str| over_nccl(Launch::ranks(2)).env(name, value);
    is_refused(with("NCCL_DOUBLE_DEVICES", "1"), "ranks 0 and 1 would share GPU 0");
    is_refused(
        with("NCCL_DOUBLE_DEVICES", "0").env("CUDA_VISIBLE_DEVICES", ""),
        "CUDA_VISIBLE_DEVICES= leaves none",
    );
}

#[test]
fn an_interface_that_is_not_there_is_refused() {
    let launch = over_nccl(Launch::ranks(2)).env("NCCL_SOCKET_IFNAME", "nope9");
    is_refused(launch, "no socket interface found; name an interface that is there by NCCL_SOCKET_IFNAME");
}

/// Where there is no driver; elsewhere this test has nothing to say.
#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_refused() {
    // SAFETY: the driver's initialiser may run at any time.
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
        eprintln!("skipped: there is a driver here");
        return;
    }
    is_refused(Launch::ranks(2).set("run.device=cuda"), "run.device is cuda, but there is no NVIDIA driver");
}

/// A file that is no library, and a library that is none of NCCL.
#[test]
fn a_file_that_is_no_nccl_is_refused() {
    let with = |path: &str| over_nccl(Launch::ranks(2)).env("LOCKSTEP_NCCL_LIBRARY", path);
    is_refused(with("/proc/self/status"), "correct LOCKSTEP_NCCL_LIBRARY, or unset it");
    let folder = tempfile::tempdir().unwrap();
    let other = compiled(folder.path(), "int a_function(void) { return 0; }");
    is_refused(with(&other), "it has no function ncclGetVersion");
}

/// Every function that is asked for, and none of a double's.
const REAL: &str = r#"
int ncclGetVersion(int *version) { *version = 22907; return 0; }
const char *ncclGetErrorString(int code) { return ""; }
const char *ncclGetLastError(void *comm) { return ""; }
#define FAILS(name) int name(void) { return 1; }
FAILS(ncclGetUniqueId) FAILS(ncclCommInitRankConfig) FAILS(ncclCommFinalize) FAILS(ncclCommDestroy)
FAILS(ncclCommAbort) FAILS(ncclCommGetAsyncError) FAILS(ncclGroupStart) FAILS(ncclGroupEnd) FAILS(ncclSend)
FAILS(ncclRecv) FAILS(ncclAllReduce) FAILS(ncclReduce) FAILS(ncclReduceScatter) FAILS(ncclAllGather)
FAILS(ncclBroadcast)
"#;

fn compiled(folder: &Path, source: &str) -> String {
    let (code, library) = (folder.join("library.c"), folder.join("library.so"));
    std::fs::write(&code, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
    assert!(status.is_ok_and(|status| status.success()), "a C compiler, which building lockstep needs");
    library.display().to_string()
}

/// NVIDIA's library moves the memory of GPUs, and must not be given the host's.
#[test]
fn the_real_nccl_without_a_gpu_to_compute_on_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let real = compiled(folder.path(), REAL);
    is_refused(
        over_nccl(Launch::ranks(2)).env("LOCKSTEP_NCCL_LIBRARY", &real),
        "parallel.backend: nccl moves data between GPUs, but run.device is cpu: set run.device: cuda, or \
         parallel.backend: mpi",
    );
}

#[test]
fn a_list_of_gpus_that_are_not_there_is_refused() {
    let launch =
        over_nccl(Launch::ranks(2)).env("NCCL_DOUBLE_DEVICES", "0").env("CUDA_VISIBLE_DEVICES", "7,8");
    is_refused(launch, "CUDA_VISIBLE_DEVICES=7,8 leaves none; set it to GPUs of this machine");
}

/// Both ranks were bound to the machine's fourth GPU.
#[test]
fn ranks_that_were_bound_to_one_gpu_are_refused() {
    let launch = over_nccl(Launch::ranks(2)).env("NCCL_DOUBLE_DEVICES", "1").env("CUDA_VISIBLE_DEVICES", "3");
    is_refused(launch, "ranks 0 and 1 would share GPU 3");
}
