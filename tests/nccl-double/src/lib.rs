//! A test double of NVIDIA's libnccl (2.29): a shared library with the same symbols, in which ranks are processes of one
//! machine, memory is the host's, and streams are its own ([`ncclDoubleStreamCreate`]): see `stream.rs`. It follows what NCCL's
//! documentation says of groups, operations in place, checks of arguments, non-blocking communicators, asynchronous errors
//! and abort; calls that do not match wait for ever or fail, as in NCCL. It proves the code around NCCL, and nothing of
//! NCCL's own: whoever shows results made with it must say so, which [`ncclDouble`] is for.
//!
//! Variables: `NCCL_DEBUG`, `NCCL_DEBUG_FILE` and `NCCL_SOCKET_IFNAME` as in NCCL; `NCCL_DOUBLE_FAULT` (see `fault.rs`),
//! `NCCL_DOUBLE_VERSION` (such as 30000) and `NCCL_DOUBLE_DEVICES`, how many GPUs there are said to be.
#![expect(clippy::missing_safety_doc, reason = "as in nccl.h")]

mod abi;
mod arithmetic;
mod communicator;
mod fault;
mod group;
mod interfaces;
mod last_error;
mod log;
mod mesh;
mod operation;
mod stream;

use std::ffi::{c_char, c_int, c_void};

use abi::{
    CONFIG_MAGIC, Code, Config, DataType, Error, IN_PROGRESS, INVALID_ARGUMENT, Reduction, SUCCESS, UniqueId,
};
use communicator::Communicator;
use operation::{Call, Operation};

/// `NCCL_VERSION_CODE` of the version that is imitated.
const VERSION: c_int = 22907;

type Comm = *mut Communicator;

fn answer(result: Result<Code, Error>) -> Code {
    result.unwrap_or_else(|error| {
        log::warn(&error.message);
        last_error::set(&error.message);
        error.code
    })
}

/// Only the double has this symbol: what results that were made with it are labelled by.
#[unsafe(no_mangle)]
pub extern "C" fn ncclDouble() -> *const c_char {
    c"test double of NCCL: host memory, ranks of one machine".as_ptr()
}

/// How many GPUs there are said to be; negative for as many as are wanted.
#[unsafe(no_mangle)]
pub extern "C" fn ncclDoubleDevices() -> c_int {
    std::env::var("NCCL_DOUBLE_DEVICES").ok().and_then(|text| text.parse().ok()).unwrap_or(-1)
}

/// A `cudaStream_t` for operations of the double; null is none, and its operations are done when the communicator says so.
#[unsafe(no_mangle)]
pub extern "C" fn ncclDoubleStreamCreate() -> *mut c_void {
    stream::create() as *mut c_void
}

/// `cudaStreamQuery`: 1 if everything on the stream is done, else 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclDoubleStreamQuery(stream: *mut c_void) -> c_int {
    // SAFETY: as of any operation, whoever waits for it keeps its memory.
    c_int::from(unsafe { stream::query(stream as usize) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Code {
    if version.is_null() {
        return INVALID_ARGUMENT;
    }
    let said = std::env::var("NCCL_DOUBLE_VERSION").ok().and_then(|text| text.parse().ok());
    // SAFETY: the caller's place for the answer.
    unsafe { *version = said.unwrap_or(VERSION) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Code {
    let made = interfaces::check().and_then(|()| mesh::unique_id());
    answer(made.and_then(|made| match id.is_null() {
        true => Err(Error::new(INVALID_ARGUMENT, "GetUniqueId : out argument is NULL")),
        false => {
            // SAFETY: the caller's place for the answer.
            unsafe { *id = made };
            Ok(SUCCESS)
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(comm: *mut Comm, ranks: c_int, id: UniqueId, rank: c_int) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { ncclCommInitRankConfig(comm, ranks, id, rank, std::ptr::null()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut Comm,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> Code {
    let start = || {
        let invalid = |message: String| Error::new(INVALID_ARGUMENT, message);
        if comm.is_null() {
            return Err(invalid("comm argument is NULL".into()));
        }
        if ranks < 1 || !(0..ranks).contains(&rank) {
            return Err(invalid(format!("Invalid rank requested : {rank}/{ranks}")));
        }
        // SAFETY: null, or the caller's.
        let config = unsafe { config.as_ref() };
        if config.is_some_and(|config| config.magic != CONFIG_MAGIC || config.size < size_of::<Config>()) {
            return Err(invalid("ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER".into()));
        }
        interfaces::check()?;
        log::version("2.29.7+double");
        let is_blocking = config.is_none_or(|config| config.blocking != 0);
        let communicator = Communicator::start(id, rank as usize, ranks as usize, is_blocking)?;
        // SAFETY: the caller's place for the answer.
        let communicator = unsafe {
            *comm = Box::into_raw(Box::new(communicator));
            &**comm
        };
        Ok(if is_blocking { communicator.wait() } else { IN_PROGRESS })
    };
    answer(start())
}

/// # Safety
/// The pointer is null or a communicator's.
unsafe fn valid<'a>(comm: Comm) -> Result<&'a mut Communicator, Error> {
    // SAFETY: as the caller promises.
    let communicator = unsafe { comm.as_mut() }.filter(|communicator| communicator.is_valid());
    communicator.ok_or_else(|| Error::new(INVALID_ARGUMENT, "comm argument is NULL or no communicator"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: Comm) -> Code {
    // SAFETY: as in nccl.h.
    answer(unsafe { valid(comm) }.and_then(|communicator| {
        communicator.finalize()?;
        Ok(if communicator.is_blocking { communicator.wait() } else { IN_PROGRESS })
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: Comm) -> Code {
    // SAFETY: as in nccl.h; a communicator was made by `Box::into_raw`.
    answer(unsafe { valid(comm) }.map(|_| unsafe { Box::from_raw(comm) }.destroy()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: Comm) -> Code {
    // SAFETY: as above.
    answer(unsafe { valid(comm) }.map(|_| {
        unsafe { Box::from_raw(comm) }.abort();
        SUCCESS
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: Comm, state: *mut Code) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { tell(comm, state, |communicator| communicator.state()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(comm: Comm, count: *mut c_int) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { tell(comm, count, |communicator| communicator.ranks as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(comm: Comm, rank: *mut c_int) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { tell(comm, rank, |communicator| communicator.rank as c_int) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(comm: Comm, device: *mut c_int) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { tell(comm, device, |_| 0) }
}

/// # Safety
/// As in nccl.h.
unsafe fn tell(comm: Comm, place: *mut c_int, what: impl Fn(&Communicator) -> c_int) -> Code {
    // SAFETY: as the caller promises.
    answer(unsafe { valid(comm) }.and_then(|communicator| match place.is_null() {
        true => Err(Error::new(INVALID_ARGUMENT, "the argument for the answer is NULL")),
        false => {
            // SAFETY: the caller's place for the answer.
            unsafe { *place = what(communicator) };
            Ok(SUCCESS)
        }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    abi::error_string(code).as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_: Comm) -> *const c_char {
    last_error::get().as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> Code {
    group::start();
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> Code {
    // SAFETY: as in nccl.h.
    answer(unsafe { group::end() })
}

/// Checks what all operations have in common, and begins one.
///
/// # Safety
/// As in nccl.h: the memory is there until the operation is done.
unsafe fn operate(
    comm: Comm,
    call: impl FnOnce(&Communicator) -> Result<Call, Error>,
    buffers: (*const c_void, *mut c_void),
    count: usize,
    data_type: c_int,
    stream: *mut c_void,
) -> Code {
    let begin = || {
        // SAFETY: as the caller promises.
        let communicator = unsafe { valid(comm)? };
        let call = call(communicator)?;
        let data_type = DataType::of(data_type)?;
        let (send, receive, stream) = (buffers.0 as usize, buffers.1 as usize, stream as usize);
        let operation = Operation { call, data_type, count, send, receive, stream };
        // SAFETY: as the caller promises.
        unsafe { group::add(comm, operation) }
    };
    answer(begin().inspect_err(group::note))
}

fn rank_of(name: &str, rank: c_int, communicator: &Communicator) -> Result<usize, Error> {
    let invalid = || {
        let message = format!("invalid {name} {rank} (should be in the 0..{} range)", communicator.ranks);
        Error::new(INVALID_ARGUMENT, message)
    };
    usize::try_from(rank).ok().filter(|&rank| rank < communicator.ranks).ok_or_else(invalid)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    reduction: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |_: &Communicator| Ok(Call::AllReduce(Reduction::of(reduction)?));
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (send, receive), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduce(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    reduction: c_int,
    root: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |communicator: &Communicator| {
        Ok(Call::Reduce(Reduction::of(reduction)?, rank_of("root", root, communicator)?))
    };
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (send, receive), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    reduction: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |_: &Communicator| Ok(Call::ReduceScatter(Reduction::of(reduction)?));
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (send, receive), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, |_| Ok(Call::AllGather), (send, receive), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    root: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |communicator: &Communicator| Ok(Call::Broadcast(rank_of("root", root, communicator)?));
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (send, receive), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    send: *const c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |communicator: &Communicator| Ok(Call::Send { to: rank_of("peer", peer, communicator)? });
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (send, std::ptr::null_mut()), count, data_type, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    receive: *mut c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: Comm,
    stream: *mut c_void,
) -> Code {
    let call = |communicator: &Communicator| Ok(Call::Receive { from: rank_of("peer", peer, communicator)? });
    // SAFETY: as in nccl.h.
    unsafe { operate(comm, call, (std::ptr::null(), receive), count, data_type, stream) }
}

#[cfg(test)]
mod tests;
