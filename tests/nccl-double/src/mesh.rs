//! Sockets between all pairs of ranks, and messages over them. Their names live in Linux's abstract namespace, so that
//! nothing is left on a disk; the ranks must share a network namespace, that is a machine.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::abi::{Error, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, SYSTEM_ERROR, UniqueId};

/// How a unique id of the double begins.
const ID_MAGIC: &[u8; 8] = b"NCCLDBL1";
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a wait for sockets may keep a rank from seeing that it is to stop, in milliseconds.
const POLL_MS: i32 = 20;

/// A new id, from the system's random numbers.
pub fn unique_id() -> Result<UniqueId, Error> {
    let mut bytes = [0u8; 24];
    bytes[..8].copy_from_slice(ID_MAGIC);
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes[8..]))
        .map_err(|error| Error::new(SYSTEM_ERROR, format!("/dev/urandom: {error}")))?;
    let mut id = UniqueId { internal: [0; 128] };
    id.internal.iter_mut().zip(bytes).for_each(|(to, from)| *to = from as _);
    Ok(id)
}

fn name(id: &UniqueId, rank: usize) -> Result<SocketAddr, Error> {
    let bytes: Vec<u8> = id.internal[..24].iter().map(|&byte| byte as u8).collect();
    if !bytes.starts_with(ID_MAGIC) {
        return Err(Error::new(INVALID_ARGUMENT, "the unique id is none of the double's"));
    }
    let hex: String = bytes[8..].iter().map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("nccl-double-{hex}-{rank}")).map_err(system)
}

fn system(error: std::io::Error) -> Error {
    Error::new(SYSTEM_ERROR, error.to_string())
}

fn stopped() -> Error {
    Error::new(SYSTEM_ERROR, "the communicator was aborted")
}

/// What a message is, so that calls that do not match are not taken for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which collective, with its reduction and its root.
    pub call: [u8; 8],
    pub bytes: u64,
}

const HEADER_BYTES: usize = 16;

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.call);
        bytes[8..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let half = |at: usize| std::array::from_fn(|index| bytes[at + index]);
        Self { call: half(0), bytes: u64::from_le_bytes(half(8)) }
    }
}

/// Memory of a message, on either side.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub peer: usize,
    pub call: [u8; 8],
    pub address: usize,
    pub bytes: usize,
}

/// A transfer under way.
struct Progress {
    transfer: Transfer,
    header: [u8; HEADER_BYTES],
    /// Of header and payload.
    done: usize,
}

impl Progress {
    fn new(transfer: Transfer) -> Self {
        let header = Header { call: transfer.call, bytes: transfer.bytes as u64 }.encode();
        Self { transfer, header, done: 0 }
    }

    fn is_done(&self) -> bool {
        self.done == HEADER_BYTES + self.transfer.bytes
    }

    /// What is still to be sent, or where the next bytes go.
    fn rest(&mut self) -> &mut [u8] {
        match self.done.checked_sub(HEADER_BYTES) {
            None => &mut self.header[self.done..],
            // SAFETY: whoever started the operation keeps its memory until the operation is done.
            Some(done) => unsafe {
                let start = (self.transfer.address as *mut u8).add(done);
                std::slice::from_raw_parts_mut(start, self.transfer.bytes - done)
            },
        }
    }
}

/// This rank's sockets.
pub struct Mesh {
    /// By rank; none for this one.
    peers: Vec<Option<UnixStream>>,
}

impl Mesh {
    /// Connects all ranks with one another; waits for them until `stop`.
    pub fn connect(id: &UniqueId, rank: usize, ranks: usize, stop: &AtomicBool) -> Result<Self, Error> {
        let listener = UnixListener::bind_addr(&name(id, rank)?).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => Error::new(INVALID_USAGE, format!("two processes are rank {rank}")),
            _ => system(error),
        })?;
        listener.set_nonblocking(true).map_err(system)?;
        let mut peers: Vec<Option<UnixStream>> = (0..ranks).map(|_| None).collect();
        for (lower, peer) in peers.iter_mut().enumerate().take(rank) {
            let address = name(id, lower)?;
            let mut stream = retry(stop, || UnixStream::connect_addr(&address))?;
            stream.write_all(&[rank as u32, ranks as u32].map(u32::to_le_bytes).concat()).map_err(system)?;
            *peer = Some(stream);
        }
        for _ in rank + 1..ranks {
            let (mut stream, _) = retry(stop, || listener.accept())?;
            let mut hello = [0u8; 8];
            stream.set_nonblocking(false).and_then(|()| stream.read_exact(&mut hello)).map_err(system)?;
            let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| hello[at + index]));
            let (from, of) = (number(0) as usize, number(4) as usize);
            if of != ranks || peers.get(from).is_none_or(Option::is_some) || from == rank {
                let message = format!("rank {from} of {of} came to rank {rank} of {ranks}");
                return Err(Error::new(INVALID_USAGE, message));
            }
            peers[from] = Some(stream);
        }
        for stream in peers.iter().flatten() {
            stream.set_nonblocking(true).map_err(system)?;
        }
        Ok(Self { peers })
    }

    /// Moves all messages; those between two ranks in the order given. Calls that do not match wait until `stop`, as in
    /// NCCL.
    pub fn exchange(
        &self,
        sends: &[Transfer],
        receives: &[Transfer],
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let queues = |transfers: &[Transfer]| {
            let mut queues: Vec<VecDeque<Progress>> = self.peers.iter().map(|_| VecDeque::new()).collect();
            transfers.iter().for_each(|&transfer| queues[transfer.peer].push_back(Progress::new(transfer)));
            queues
        };
        let (mut sends, mut receives) = (queues(sends), queues(receives));
        loop {
            let mut moved = false;
            for (peer, stream) in self.peers.iter().enumerate() {
                let Some(stream) = stream else { continue };
                moved |= send(stream, &mut sends[peer]).map_err(|error| gone(peer, &error))?;
                moved |= receive(stream, peer, &mut receives[peer])?;
            }
            if sends.iter().chain(&receives).all(VecDeque::is_empty) {
                return Ok(());
            }
            if stop.load(Relaxed) {
                return Err(stopped());
            }
            if !moved {
                self.wait(&sends, &receives);
            }
        }
    }

    /// Until a socket is ready for what is still to be moved.
    fn wait(&self, sends: &[VecDeque<Progress>], receives: &[VecDeque<Progress>]) {
        let mut sockets: Vec<libc::pollfd> = Vec::new();
        for (peer, stream) in self.peers.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let mut events = 0;
            events |= if sends[peer].is_empty() { 0 } else { libc::POLLOUT };
            // What does not match is left where it is.
            let is_stuck = receives[peer].front().is_some_and(|first| first.is_mismatched());
            events |= if receives[peer].is_empty() || is_stuck { 0 } else { libc::POLLIN };
            if events != 0 {
                sockets.push(libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 });
            }
        }
        // SAFETY: the array is as long as said.
        unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, POLL_MS) };
    }

    /// Breaks all connections, as the end of the process would.
    pub fn hang_up(&self) {
        for stream in self.peers.iter().flatten() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Progress {
    /// Whether the peer's message has come, and is of another call, or shorter than it should be.
    fn is_mismatched(&self) -> bool {
        let header = Header::decode(self.header);
        self.done >= HEADER_BYTES
            && (header.call != self.transfer.call || header.bytes < self.transfer.bytes as u64)
    }
}

fn retry<T>(stop: &AtomicBool, mut attempt: impl FnMut() -> std::io::Result<T>) -> Result<T, Error> {
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {
                if stop.load(Relaxed) {
                    return Err(stopped());
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(error) => return Err(system(error)),
        }
    }
}

fn gone(peer: usize, error: &std::io::Error) -> Error {
    Error::new(REMOTE_ERROR, format!("socket: connection to rank {peer} failed: {error}"))
}

/// Whether anything was sent.
fn send(mut stream: &UnixStream, queue: &mut VecDeque<Progress>) -> std::io::Result<bool> {
    let mut moved = false;
    while let Some(first) = queue.front_mut() {
        if first.is_done() {
            queue.pop_front();
            continue;
        }
        match stream.write(first.rest()) {
            Ok(bytes) => first.done += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        moved = true;
    }
    Ok(moved)
}

/// Whether anything has come.
fn receive(mut stream: &UnixStream, peer: usize, queue: &mut VecDeque<Progress>) -> Result<bool, Error> {
    let mut moved = false;
    while let Some(first) = queue.front_mut() {
        if first.done == HEADER_BYTES {
            let (came, expected) = (Header::decode(first.header).bytes, first.transfer.bytes);
            if came > expected as u64 && Header::decode(first.header).call == first.transfer.call {
                let message = format!("Message truncated : received {came} bytes instead of {expected}");
                return Err(Error::new(INVALID_USAGE, message));
            }
        }
        if first.is_mismatched() {
            break;
        }
        if first.is_done() {
            queue.pop_front();
            continue;
        }
        match stream.read(first.rest()) {
            Ok(0) => return Err(gone(peer, &ErrorKind::ConnectionReset.into())),
            Ok(bytes) => first.done += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(gone(peer, &error)),
        }
        moved = true;
    }
    Ok(moved)
}
