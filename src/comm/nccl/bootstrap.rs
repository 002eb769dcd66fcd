//! What the ranks agree on, over MPI, before NCCL connects them: which library and memory, whose GPU, and the unique id.

use std::ffi::c_char;

use super::abi::{UNIQUE_ID_BYTES, UniqueId};
use super::library::Library;
use super::seat::{self, Seat};
use crate::comm::mpi::MpiComm;
use crate::comm::{Comm, CommError, agree};

/// Which memory data lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memories {
    Host,
    Device,
}

/// NVIDIA's NCCL moves the memory of GPUs alone, and the double that of the host.
pub fn usable(library: &Library, memories: Memories) -> Result<(), String> {
    match (memories, &library.double) {
        (Memories::Host, Some(_)) | (Memories::Device, None) => Ok(()),
        (Memories::Host, None) => {
            Err("parallel.backend: nccl moves data between GPUs, but run.device is cpu: set \
                                       run.device: cuda, or parallel.backend: mpi"
                .into())
        }
        (Memories::Device, Some(double)) => {
            Err(format!("{} is a {}: set run.device: cpu", library.path.display(), double.description))
        }
    }
}

/// What any rank's failure makes of all ranks' results.
pub fn shared<T>(mpi: &MpiComm, mine: Result<T, String>) -> Result<T, CommError> {
    let refused = |message: String| CommError::Refused { message };
    agree(mpi, mine.as_ref().map(|_| ()).map_err(Clone::clone))?.map_err(refused)?;
    mine.map_err(refused)
}

/// This rank's device.
pub fn give_out(mpi: &MpiComm, visible: Option<usize>) -> Result<usize, CommError> {
    let first_line = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let seat = Seat {
        machine: first_line("/proc/sys/kernel/hostname"),
        local_rank: mpi.local_rank(),
        visible,
        list: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
    };
    let unreadable = |error: serde_json::Error| CommError::Refused { message: error.to_string() };
    let all = mpi.all_gather_bytes("gather of seats", &serde_json::to_vec(&seat).map_err(unreadable)?)?;
    let seats: Result<Vec<Seat>, _> = all.iter().map(|seat| serde_json::from_slice(seat)).collect();
    let devices = seat::assign(&seats.map_err(unreadable)?);
    devices.map(|devices| devices[mpi.rank()]).map_err(|message| CommError::Refused { message })
}

/// A unique id or why there is none, as rank 0 tells the others.
pub fn told(message: &[u8]) -> Result<UniqueId, String> {
    match message.split_first() {
        Some((0, id)) if id.len() == UNIQUE_ID_BYTES => {
            Ok(UniqueId(std::array::from_fn(|index| id[index] as c_char)))
        }
        Some((_, error)) => Err(String::from_utf8_lossy(error).into_owned()),
        None => Err("rank 0 sent no unique id".into()),
    }
}

pub fn telling(id: Result<UniqueId, String>) -> Vec<u8> {
    match id {
        Ok(id) => std::iter::once(0).chain(id.0.iter().map(|&byte| byte as u8)).collect(),
        Err(error) => std::iter::once(1).chain(error.into_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_or_an_error_is_told_to_all() {
        let id = UniqueId(std::array::from_fn(|index| index as c_char));
        assert!(told(&telling(Ok(id))).is_ok_and(|told| told.0 == id.0));
        assert_eq!(told(&telling(Err("no interface".into()))).err().as_deref(), Some("no interface"));
        assert!(told(&[]).is_err() && told(&[0, 1, 2]).is_err());
    }
}
