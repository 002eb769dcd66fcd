//! `ncclGetLastError`: one text a process, as in NCCL.

use std::ffi::{CStr, CString};
use std::sync::Mutex;

static LAST: Mutex<&'static CStr> = Mutex::new(c"");

/// The text is never given back: whoever asked may still read it, and errors are few.
pub fn set(message: &str) {
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    if let Ok(mut last) = LAST.lock() {
        *last = Box::leak(text.into_boxed_c_str());
    }
}

pub fn get() -> &'static CStr {
    LAST.lock().map_or(c"", |last| *last)
}
