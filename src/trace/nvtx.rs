//! NVTX ranges, for Nsight Systems and other tools of NVIDIA. The library is loaded if it is there; without it, or without
//! a tool that listens, ranges do nothing.

use std::ffi::{CString, c_char, c_int};

use libloading::Library;

/// CUDA 13's library, and the one of CUDA 12 and earlier.
const LIBRARIES: [&str; 2] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1"];

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// The two functions of NVTX that a trace needs.
pub struct Ranges(Option<Loaded>);

struct Loaded {
    push: Push,
    pop: Pop,
    /// The functions live as long as their library.
    _library: Library,
}

impl Ranges {
    /// Looks on the library path.
    pub fn load() -> Self {
        Self(LIBRARIES.into_iter().find_map(|name| {
            // SAFETY: NVIDIA's library, whose initialisers do nothing; the functions have these types since NVTX 1.
            unsafe {
                let library = Library::new(name).ok()?;
                let push = *library.get::<Push>(b"nvtxRangePushA\0").ok()?;
                let pop = *library.get::<Pop>(b"nvtxRangePop\0").ok()?;
                Some(Loaded { push, pop, _library: library })
            }
        }))
    }

    /// Begins a range of this thread.
    pub fn push(&self, name: &str) {
        if let Some(loaded) = &self.0
            && let Ok(name) = CString::new(name)
        {
            // SAFETY: a C string, which NVTX copies.
            unsafe { (loaded.push)(name.as_ptr()) };
        }
    }

    /// Ends this thread's latest range.
    pub fn pop(&self) {
        if let Some(loaded) = &self.0 {
            // SAFETY: takes nothing.
            unsafe { (loaded.pop)() };
        }
    }
}
