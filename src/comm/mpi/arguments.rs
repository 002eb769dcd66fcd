//! What MPI's C interface takes and returns.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use crate::comm::CommError;

/// MPI's own words for an error.
pub fn describe(code: c_int) -> String {
    let mut text = [0u8; 1024];
    let mut length: c_int = 0;
    // SAFETY: the buffer is larger than any MPI library's MPI_MAX_ERROR_STRING.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    String::from_utf8_lossy(&text[..length.clamp(0, 1023) as usize]).into_owned()
}

/// A count of elements as MPI takes it.
pub fn count(operation: &'static str, elements: usize) -> Result<c_int, CommError> {
    c_int::try_from(elements).map_err(|_| CommError::TooLarge { operation, elements })
}

/// MPI's counts and displacements of messages that lie back to back.
pub fn layout(operation: &'static str, counts: &[usize]) -> Result<(Vec<c_int>, Vec<c_int>), CommError> {
    count(operation, counts.iter().sum())?;
    let offsets = counts.iter().scan(0, |end, &count| {
        let start = *end;
        *end += count as c_int;
        Some(start)
    });
    Ok((counts.iter().map(|&count| count as c_int).collect(), offsets.collect()))
}

/// Where MPI reads from. Rust's empty slice of bytes lies at address 1, which is Open MPI's MPI_IN_PLACE,
/// so an empty slice is given another address.
pub fn read<T>(slice: &[T]) -> *const c_void {
    match slice.is_empty() {
        true => std::ptr::dangling::<u64>().cast(),
        false => slice.as_ptr().cast(),
    }
}

/// Where MPI writes to; see [`read`].
pub fn write<T>(slice: &mut [T]) -> *mut c_void {
    match slice.is_empty() {
        true => std::ptr::dangling_mut::<u64>().cast(),
        false => slice.as_mut_ptr().cast(),
    }
}
