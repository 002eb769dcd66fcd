//! Libraries in this process and beside it: MPI, PMIx, libtorch, NCCL.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use crate::comm::MpiComm;
use crate::comm::nccl::{LIBRARY_NAME, Library, LoadError, loaded, log_paths, read_log, version_text};
use crate::doctor::facts::{Mpi, Nccl, Torch};

pub fn mpi() -> Mpi {
    Mpi { library: MpiComm::library_version(), thread_level: None, pmix: pmix() }
}

/// Version of the PMIx library that MPI has loaded; none before MPI starts.
fn pmix() -> Option<String> {
    let path = loaded("libpmix.so").into_iter().next()?;
    // SAFETY: the library is loaded already, so no initialiser runs; the function takes nothing and returns a constant.
    let text = unsafe {
        let library = libloading::Library::new(&path).ok()?;
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
    let found = Library::load();
    let library = found.as_ref().ok();
    // The name alone says little: the linker knows where it found it.
    let path =
        |library: &Library| loaded(LIBRARY_NAME).into_iter().next().unwrap_or_else(|| library.path.clone());
    Nccl {
        path: library.map(|library| match library.path.is_absolute() {
            true => library.path.display().to_string(),
            false => path(library).display().to_string(),
        }),
        version: library.map(|library| version_text(library.version)),
        double: library.and_then(|library| library.double.as_ref()).map(|double| double.description.clone()),
        problem: match &found {
            Err(LoadError::Unusable(problem)) => Some(problem.clone()),
            _ => None,
        },
        logs: log_paths(logs).iter().map(|path| read_log(path)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
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
