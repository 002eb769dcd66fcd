//! What of `nccl.h` this program uses: numbers, types and the table of functions.
//!
//! The table is our own, over `libloading`, and not cudarc's `sys` layer, for three reasons that no version of cudarc so
//! far takes care of: the library's path can be chosen (a wheel's NCCL, the tests' double), a symbol that is missing is
//! an error with a remedy and not a panic in the middle of a training, and a result that a later NCCL adds is a number
//! here, where an `enum` returned from C would be undefined behaviour. It is 20 functions long.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libloading::Library;

/// `ncclComm_t`.
pub type RawComm = *mut c_void;
/// `cudaStream_t`; null for the default stream, and for memory of the host.
pub type RawStream = *mut c_void;

/// `ncclResult_t`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub c_int);

impl Code {
    pub const SUCCESS: Self = Self(0);
    pub const IN_PROGRESS: Self = Self(7);
}

/// `ncclUniqueId`: names a communicator to be, to all its ranks.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [c_char; UNIQUE_ID_BYTES]);

pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclConfig_t` as of 2.14, which brought it: later versions take it for what it says in `size` and `version`, and give
/// fields that it lacks their defaults.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

impl Config {
    /// Of communicators whose calls return at once: see `ncclCommGetAsyncError`.
    pub fn non_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: 21400, blocking: 0 }
    }
}

/// `ncclDataType_t`: what is exchanged, or added up.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    Uint8 = 1,
    Float16 = 6,
    Float32 = 7,
    Bfloat16 = 9,
}

/// `ncclSum` of `ncclRedOp_t`.
pub const SUM: c_int = 0;

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident: $symbol:literal ($($argument:ty),*);)*) => {
        /// NCCL's functions by their C names, all of which return an `ncclResult_t`.
        pub struct Table {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            /// `ncclGetErrorString`.
            pub error_string: unsafe extern "C" fn(Code) -> *const c_char,
            /// `ncclGetLastError`.
            pub last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
        }

        impl Table {
            /// # Safety
            /// The library is NCCL, 2.14 or later, and is never unloaded.
            pub unsafe fn load(library: &Library) -> Result<Self, String> {
                // SAFETY: the types are those of nccl.h.
                unsafe {
                    Ok(Self {
                        $($name: *library.get($symbol).map_err(missing($symbol))?,)*
                        error_string: *library.get(b"ncclGetErrorString").map_err(missing(b"ncclGetErrorString"))?,
                        last_error: *library.get(b"ncclGetLastError").map_err(missing(b"ncclGetLastError"))?,
                    })
                }
            }
        }
    };
}

fn missing(symbol: &[u8]) -> impl FnOnce(libloading::Error) -> String {
    let symbol = String::from_utf8_lossy(symbol).into_owned();
    move |_| format!("it has no function {symbol}")
}

type In = *const c_void;
type Out = *mut c_void;

table! {
    version: b"ncclGetVersion" (*mut c_int);
    unique_id: b"ncclGetUniqueId" (*mut UniqueId);
    init: b"ncclCommInitRankConfig" (*mut RawComm, c_int, UniqueId, c_int, *const Config);
    finalize: b"ncclCommFinalize" (RawComm);
    destroy: b"ncclCommDestroy" (RawComm);
    abort: b"ncclCommAbort" (RawComm);
    async_error: b"ncclCommGetAsyncError" (RawComm, *mut Code);
    group_start: b"ncclGroupStart" ();
    group_end: b"ncclGroupEnd" ();
    send: b"ncclSend" (In, usize, DataType, c_int, RawComm, RawStream);
    receive: b"ncclRecv" (Out, usize, DataType, c_int, RawComm, RawStream);
    all_reduce: b"ncclAllReduce" (In, Out, usize, DataType, c_int, RawComm, RawStream);
    reduce: b"ncclReduce" (In, Out, usize, DataType, c_int, c_int, RawComm, RawStream);
    reduce_scatter: b"ncclReduceScatter" (In, Out, usize, DataType, c_int, RawComm, RawStream);
    all_gather: b"ncclAllGather" (In, Out, usize, DataType, RawComm, RawStream);
    broadcast: b"ncclBroadcast" (In, Out, usize, DataType, c_int, RawComm, RawStream);
}
