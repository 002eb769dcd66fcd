//! How watchdogs talk to one another while the ranks' collectives hang: point-to-point messages on a communicator of
//! their own. Nothing here waits, and no failure is reported: who cannot be reached gives no answer.

use std::ffi::c_int;
use std::sync::Mutex;

use mpi::ffi;

use super::CommError;
use super::inquiry::{ANSWER_BYTES_MAX, Message};

const QUESTION: c_int = 1;
const ANSWER: c_int = 2;

/// One rank's end.
pub struct SideChannel {
    comm: ffi::MPI_Comm,
    rank: usize,
    size: usize,
    /// Messages under way. They are sent once, shortly before the end, so their memory is never given back.
    sent: Mutex<Vec<Box<[u8]>>>,
}

// SAFETY: a communicator's handle may be used from any thread under MPI_THREAD_MULTIPLE, which `duplicate` demands.
unsafe impl Send for SideChannel {}
// SAFETY: as above.
unsafe impl Sync for SideChannel {}

impl SideChannel {
    /// A communicator with the same ranks as the world; all of them call this. MPI must be started with
    /// MPI_THREAD_MULTIPLE.
    pub fn duplicate(rank: usize, size: usize) -> Result<Self, CommError> {
        // SAFETY: any value may be overwritten.
        let mut comm = unsafe { ffi::RSMPI_COMM_NULL };
        // SAFETY: MPI is initialised, and the result has a place.
        match unsafe { ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut comm) } {
            0 => Ok(Self { comm, rank, size, sent: Mutex::new(Vec::new()) }),
            code => Err(CommError::Failed { operation: "MPI_Comm_dup", reason: super::mpi::describe(code) }),
        }
    }

    /// To all other ranks.
    pub fn ask_all(&self) {
        (0..self.size).filter(|&other| other != self.rank).for_each(|other| self.send(other, QUESTION, &[0]));
    }

    pub fn answer(&self, to: usize, text: &[u8]) {
        self.send(to, ANSWER, text);
    }

    fn send(&self, to: usize, tag: c_int, bytes: &[u8]) {
        let Ok(mut sent) = self.sent.lock() else { return };
        let bytes: Box<[u8]> = bytes.into();
        let mut request = std::mem::MaybeUninit::uninit();
        // SAFETY: the message stays where it is until the process ends; nobody waits for the request.
        unsafe {
            ffi::MPI_Isend(
                bytes.as_ptr().cast(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                self.comm,
                request.as_mut_ptr(),
            );
        }
        sent.push(bytes);
    }

    /// The next message that has come, with its sender. Only one thread may call it.
    pub fn receive(&self) -> Option<(usize, Message)> {
        let mut flag: c_int = 0;
        let mut status = std::mem::MaybeUninit::<ffi::MPI_Status>::zeroed();
        let mut length: c_int = 0;
        // SAFETY: the results have their places; a status of zeros is a valid value of the C struct.
        let status = unsafe {
            let code = ffi::MPI_Iprobe(
                ffi::RSMPI_ANY_SOURCE,
                ffi::RSMPI_ANY_TAG,
                self.comm,
                &mut flag,
                status.as_mut_ptr(),
            );
            if code != 0 || flag == 0 {
                return None;
            }
            ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut length);
            status.assume_init()
        };
        let mut bytes = vec![0u8; length.max(0) as usize];
        // SAFETY: the message is there, it is as long as the buffer, and no other thread takes it away.
        let code = unsafe {
            ffi::MPI_Recv(
                bytes.as_mut_ptr().cast(),
                length,
                ffi::RSMPI_UINT8_T,
                status.MPI_SOURCE,
                status.MPI_TAG,
                self.comm,
                ffi::RSMPI_STATUS_IGNORE,
            )
        };
        let from = usize::try_from(status.MPI_SOURCE).ok().filter(|_| code == 0)?;
        let readable = bytes.get(..).filter(|bytes| bytes.len() <= ANSWER_BYTES_MAX);
        Some(match status.MPI_TAG {
            QUESTION => (from, Message::Question),
            _ => (from, Message::Answer(readable.and_then(|bytes| serde_json::from_slice(bytes).ok()))),
        })
    }
}
