//! Finding and loading NCCL, at run time: the same program runs where there is none.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use super::abi::{Code, RawStream, Table, UNIQUE_ID_BYTES, UniqueId};
use crate::config::env::NCCL_LIBRARY;

/// As NVIDIA names it.
pub const NAME: &str = "libnccl.so.2";
/// Non-blocking communicators came with it, and without them nothing that hangs can be ended in order.
const OLDEST: c_int = 21400;

/// A loaded NCCL. It is never unloaded: it has threads of its own.
pub struct Library {
    pub table: Table,
    pub path: PathBuf,
    /// `NCCL_VERSION_CODE`, such as 22907.
    pub version: c_int,
    /// There if the library only stands in for NCCL in tests.
    pub double: Option<Double>,
}

/// Why there is no NCCL to use, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No file of that name is found.
    #[error("{0}")]
    Missing(String),
    /// There is one, or the environment names one, but it cannot be used.
    #[error("{0}")]
    Unusable(String),
}

/// What a library that stands in for NCCL says of itself, and its streams.
#[derive(Clone, Debug)]
pub struct Double {
    pub description: String,
    /// How many GPUs it says there are; none for as many as are wanted.
    pub devices: Option<usize>,
    pub stream_create: extern "C" fn() -> RawStream,
    /// 1 if everything on the stream is done.
    pub stream_query: unsafe extern "C" fn(RawStream) -> c_int,
}

impl Library {
    /// The one that the environment names; else as the dynamic linker finds it; else where a Python wheel of libtorch has
    /// it. An error says what was tried and the remedy.
    pub fn load() -> Result<&'static Self, LoadError> {
        let named = std::env::var_os(NCCL_LIBRARY).filter(|path| !path.is_empty()).map(PathBuf::from);
        let candidates = named.as_ref().map_or_else(candidates, |path| vec![path.clone()]);
        let mut tried = Vec::new();
        for path in &candidates {
            match Self::open(path) {
                Ok(library) => {
                    library.check().map_err(LoadError::Unusable)?;
                    return Ok(Box::leak(Box::new(library)));
                }
                Err(error) => tried.push(error),
            }
        }
        let text = |remedy: &str| {
            format!("NCCL cannot be loaded: {}; {remedy}, or set parallel.backend: mpi", tried.join("; "))
        };
        Err(match named {
            Some(_) => LoadError::Unusable(text(&format!("correct {NCCL_LIBRARY}, or unset it"))),
            None => LoadError::Missing(text(&format!(
                "install NCCL 2 (Debian and Ubuntu: libnccl2), or name its file by {NCCL_LIBRARY}"
            ))),
        })
    }

    fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        // SAFETY: NCCL's initialisers may run at any time.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
            let error = error.to_string();
            // The linker's message begins with the path.
            if error.contains(&*shown.to_string()) { error } else { format!("{shown}: {error}") }
        })?;
        // SAFETY: the file that was asked for; it stays loaded.
        let table = unsafe { Table::load(&library) }.map_err(|error| format!("{shown}: {error}"))?;
        let double = double(&library);
        std::mem::forget(library);
        let mut version: c_int = 0;
        // SAFETY: a place for the answer.
        if unsafe { (table.version)(&mut version) } != Code::SUCCESS {
            return Err(format!("{shown}: it does not tell its version"));
        }
        Ok(Self { table, path: path.into(), version, double })
    }

    /// Whether this program knows how to talk to it.
    fn check(&self) -> Result<(), String> {
        let remedy = match self.version {
            version if version < OLDEST => "install 2.14 or later",
            version if version >= 30_000 => "install NCCL 2, or a lockstep that is made for this one",
            _ => return Ok(()),
        };
        let (path, version) = (self.path.display(), version_text(self.version));
        Err(format!("{path} is NCCL {version}, but lockstep talks to NCCL 2 from 2.14 on: {remedy}"))
    }

    /// For the run record and for people: `2.29.7`, or `2.29.7 (test double ...)`.
    pub fn description(&self) -> String {
        let version = version_text(self.version);
        self.double.as_ref().map_or(version.clone(), |double| format!("{version} ({})", double.description))
    }

    /// A name for a new communicator.
    pub fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: a place for the answer.
        let code = unsafe { (self.table.unique_id)(&mut id) };
        match code {
            Code::SUCCESS => Ok(id),
            code => Err(self.explain(code)),
        }
    }

    /// What a result means, and NCCL's last words if it has any, with the remedy where it is known.
    pub fn explain(&self, code: Code) -> String {
        // SAFETY: both return C strings that NCCL keeps.
        let (meaning, last) = unsafe {
            (text((self.table.error_string)(code)), text((self.table.last_error)(std::ptr::null_mut())))
        };
        let mut message = format!("NCCL: {meaning}");
        if !last.is_empty() {
            message += &format!(": {last}");
        }
        if let Some(remedy) = remedy(&last) {
            message += &format!("; {remedy}");
        }
        message
    }
}

/// What helps against what NCCL says most often.
fn remedy(last: &str) -> Option<&'static str> {
    let known = [
        (
            "no socket interface found",
            "name an interface that is there by NCCL_SOCKET_IFNAME (`ip -brief address` lists them), or unset it",
        ),
        (
            "driver version is insufficient",
            "install NVIDIA's driver, or a newer one (CUDA 13 needs 580, CUDA 12 525)",
        ),
        ("Duplicate GPU", "start one rank for each GPU"),
        ("no CUDA-capable device", "look at CUDA_VISIBLE_DEVICES, and ask the scheduler for GPUs"),
    ];
    known.iter().find(|(words, _)| last.contains(words)).map(|(_, remedy)| *remedy)
}

/// # Safety
/// Null, or a C string.
unsafe fn text(pointer: *const c_char) -> String {
    match pointer.is_null() {
        true => String::new(),
        // SAFETY: as the caller promises.
        false => unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned(),
    }
}

/// Only the tests' double has these functions.
fn double(library: &libloading::Library) -> Option<Double> {
    // SAFETY: the types of the double's functions; NCCL has no such names.
    unsafe {
        let describe = *library.get::<unsafe extern "C" fn() -> *const c_char>(b"ncclDouble").ok()?;
        let devices = *library.get::<unsafe extern "C" fn() -> c_int>(b"ncclDoubleDevices").ok()?;
        Some(Double {
            description: text(describe()),
            devices: usize::try_from(devices()).ok(),
            stream_create: *library.get(b"ncclDoubleStreamCreate").ok()?,
            stream_query: *library.get(b"ncclDoubleStreamQuery").ok()?,
        })
    }
}

/// Where NCCL may lie, the likeliest first.
pub fn candidates() -> Vec<PathBuf> {
    let site_packages = |path: &PathBuf| path.ancestors().nth(3).map(Path::to_owned);
    let wheel = loaded("libtorch_cpu.so").first().and_then(site_packages);
    let beside = wheel.map(|folder| folder.join("nvidia/nccl/lib").join(NAME));
    std::iter::once(PathBuf::from(NAME)).chain(beside.filter(|path| path.is_file())).collect()
}

/// Paths of the libraries in this process whose names begin so.
pub fn loaded(name: &str) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// 22907 is 2.29.7; up to 2.8 it had a digit less: 2708 is 2.7.8.
pub fn version_text(number: c_int) -> String {
    let major_unit = if number < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", number / major_unit, number % major_unit / 100, number % 100)
}

#[cfg(test)]
#[path = "library_tests.rs"]
mod tests;
