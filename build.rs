//! Compiles the C++ files against libtorch, lets the binaries find libtorch at run time, and notes the commit.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let lib =
        PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder"));
    let lib = lib.canonicalize().unwrap_or(lib);
    compile_shim(&lib);
    set_rpath(&lib);
    note_commit();
}

fn compile_shim(lib: &Path) {
    let include = lib.with_file_name("include");
    const FILES: [&str; 2] = ["src/torch/shim.cpp", "src/torch/gelu.cpp"];
    FILES.iter().for_each(|file| println!("cargo:rerun-if-changed={file}"));
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .pic(true)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // Products and sums are contracted where the code says so, and nowhere else.
        .flag("-ffp-contract=off")
        .files(FILES)
        .compile("lockstep_shim");
}

/// libtorch and, in a Python wheel, the CUDA libraries that libtorch_cpu needs lie outside the system's folders.
fn set_rpath(lib: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if let Some(mpi) = mpi_lib_dir() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", mpi.display());
    }
}

/// The folder that `mpicc` links from, so that an MPI outside the system's folders is found at run time too.
fn mpi_lib_dir() -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed=MPICC");
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    let output = Command::new(mpicc).arg("-show").output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    let dir = PathBuf::from(line.split_whitespace().find_map(|word| word.strip_prefix("-L"))?);
    (!dir.starts_with("/usr/lib") && dir.is_dir()).then_some(dir)
}

fn note_commit() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    println!("cargo:rerun-if-env-changed=LOCKSTEP_GIT_COMMIT");
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = std::env::var("LOCKSTEP_GIT_COMMIT").ok().or_else(|| {
        let dirty = git(&["status", "--porcelain", "--untracked-files=no"])?;
        let suffix = if dirty.is_empty() { "" } else { "-dirty" };
        Some(git(&["rev-parse", "HEAD"])? + suffix)
    });
    println!("cargo:rustc-env=LOCKSTEP_GIT_COMMIT={}", commit.unwrap_or_else(|| "unknown".into()));
}
