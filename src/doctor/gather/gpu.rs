//! The driver and its GPUs, from the kernel and from NVIDIA's management library where it is there.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::Library;

use super::system::first_line;
use crate::doctor::facts::Gpu;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// Longer than any version that NVML returns (`NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE` is 80).
const VERSION_BYTES: usize = 128;

pub fn gpu() -> Gpu {
    let kernel = first_line("/proc/driver/nvidia/version").and_then(|line| driver_version(&line));
    match ask_library() {
        Some(gpu) => Gpu { driver: gpu.driver.or(kernel), ..gpu },
        None => Gpu { driver: kernel, ..Gpu::default() },
    }
}

/// `535.104.05` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat …`.
fn driver_version(line: &str) -> Option<String> {
    let is_version = |word: &&str| {
        let mut parts = word.split('.');
        word.contains('.') && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    line.split_whitespace().find(is_version).map(ToOwned::to_owned)
}

/// None where the library is missing or has no driver to talk to.
fn ask_library() -> Option<Gpu> {
    // SAFETY: NVIDIA's library, with the types of its header, unchanged since driver 384; the library stays loaded while its
    // functions are called. Each answer goes into memory that is large enough.
    unsafe {
        let library = Library::new(LIBRARY).ok()?;
        let init = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
        if init() != 0 {
            return None;
        }
        let mut gpu = Gpu::default();
        if let Ok(version) =
            library.get::<unsafe extern "C" fn(*mut c_char, c_uint) -> c_int>(b"nvmlSystemGetDriverVersion\0")
        {
            let mut text = [0 as c_char; VERSION_BYTES];
            // The last byte stays 0 whatever is written.
            if version(text.as_mut_ptr(), VERSION_BYTES as c_uint - 1) == 0 {
                gpu.driver = Some(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned());
            }
        }
        let number = |name: &[u8]| {
            let ask = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(name).ok()?;
            let mut answer: c_int = 0;
            (ask(&mut answer) == 0).then_some(answer)
        };
        gpu.driver_cuda = number(b"nvmlSystemGetCudaDriverVersion_v2\0").map(cuda_version);
        gpu.devices =
            number(b"nvmlDeviceGetCount_v2\0").map(|count| usize::try_from(count).unwrap_or_default());
        if let Ok(shutdown) = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlShutdown\0") {
            shutdown();
        }
        Some(gpu)
    }
}

/// 12020 is 12.2.
fn cuda_version(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023";
        assert_eq!(driver_version(line).as_deref(), Some("535.104.05"));
        let line =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a@b)  Sun";
        assert_eq!(driver_version(line).as_deref(), Some("580.65.06"));
        assert_eq!([12020, 13000, 11080].map(cuda_version), ["12.2", "13.0", "11.8"]);
    }
}
