//! Libraries in this process and beside it: MPI, PMIx, libtorch, NCCL.

use std::ffi::{CStr, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::nccl_log;
use crate::comm::MpiComm;
use crate::doctor::facts::{Mpi, Nccl, Torch};

const NCCL: &str = "libnccl.so.2";

/// Paths of the libraries that this process has loaded.
fn loaded(name: &str) -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

pub fn mpi() -> Mpi {
    Mpi { library: MpiComm::library_version(), thread_level: None, pmix: pmix() }
}

/// Version of the PMIx library that MPI has loaded; none before MPI starts.
fn pmix() -> Option<String> {
    let path = loaded("libpmix.so").into_iter().next()?;
    // SAFETY: the library is loaded already, so no initialiser runs; the function takes nothing and returns a constant.
    let text = unsafe {
        let library = Library::new(&path).ok()?;
        let version = library.get::<unsafe extern "C" fn() -> *const c_char>(b"PMIx_Get_version\0").ok()?;
        CStr::from_ptr(version()).to_string_lossy().into_owned()
    };
    Some(pmix_version(&text))
}

/// `4.2.2rc2` of `OpenPMIx 4.2.2rc2 (PMIx Standard: …)`.
fn pmix_version(text: &str) -> String {
    let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    text.split([' ', ',', '(']).find(is_version).unwrap_or(text).to_owned()
}

pub fn torch() -> Torch {
    let folder = loaded("libtorch_cpu.so").first().and_then(|path| path.parent().map(Path::to_owned));
    Torch {
        version: crate::torch::version(),
        cuda: cuda_version(&crate::torch::build_config()),
        has_cuda_library: folder.is_some_and(|folder| folder.join("libtorch_cuda.so").is_file()),
        cpu_capability: crate::torch::cpu_capability(),
    }
}

/// `13.0`, from how libtorch was built.
fn cuda_version(build: &str) -> Option<String> {
    let (_, rest) = build.split_once("CUDA_VERSION=")?;
    let version = rest.split([',', ' ', '\n']).next()?;
    (!version.is_empty()).then(|| version.to_owned())
}

pub fn nccl(logs: &[PathBuf]) -> Nccl {
    let found = nccl_candidates().into_iter().find_map(|path| Some((nccl_version(&path)?, path)));
    let (version, name) = found.unzip();
    let path = name.map(|name| loaded(NCCL).into_iter().next().unwrap_or(name).display().to_string());
    Nccl { path, version, logs: nccl_log::paths(logs).iter().map(|path| nccl_log::read(path)).collect() }
}

/// As the dynamic linker looks for it; else where a Python wheel of libtorch has it.
fn nccl_candidates() -> Vec<PathBuf> {
    let site_packages = |path: &PathBuf| path.ancestors().nth(3).map(Path::to_owned);
    let wheel = loaded("libtorch_cpu.so").first().and_then(site_packages);
    let beside = wheel.map(|folder| folder.join("nvidia/nccl/lib").join(NCCL));
    std::iter::once(PathBuf::from(NCCL)).chain(beside.filter(|path| path.is_file())).collect()
}

/// Loads the library for good, as a training would: it has threads of its own.
fn nccl_version(path: &Path) -> Option<String> {
    let mut number: c_int = 0;
    // SAFETY: NVIDIA's library; the function has this type since NCCL 2.3, and fills in the number.
    let result = unsafe {
        let library = Library::new(path).ok()?;
        let version = *library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion\0").ok()?;
        std::mem::forget(library);
        version(&mut number)
    };
    (result == 0).then(|| version_text(number))
}

/// 22907 is 2.29.7; up to 2.8 it had a digit less: 2708 is 2.7.8.
fn version_text(number: c_int) -> String {
    let major_unit = if number < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", number / major_unit, number % major_unit / 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
        assert_eq!([22907, 21805, 2708].map(version_text), ["2.29.7", "2.18.5", "2.7.8"]);
        let text = "OpenPMIx 4.2.2rc2 (PMIx Standard: 4.1, Stable ABI: 0.0, Provisional ABI: 0.0)";
        assert_eq!(pmix_version(text), "4.2.2rc2");
        assert_eq!(cuda_version("A=1, CUDA_VERSION=13.0, B=2").as_deref(), Some("13.0"));
        assert_eq!(cuda_version("BLAS_INFO=mkl"), None);
    }

    #[test]
    fn this_process_runs_on_libtorch() {
        let torch = torch();
        assert!(torch.version.starts_with("2.") && !torch.cpu_capability.is_empty(), "{torch:?}");
    }
}
