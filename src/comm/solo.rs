//! One rank: every collective is a copy, or nothing.

use tch::Device;

use super::{Comm, CommError, Incoming, Outgoing, Region, RegionMut};
use crate::grad::home::Home;

/// The communicator of a world of one process, without MPI.
pub struct SoloComm;

impl Comm for SoloComm {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "solo"
    }

    fn home(&self, device: Device) -> Home {
        Home::beside(device)
    }

    fn for_another_thread(&self) -> Result<Option<Box<dyn Comm + Send>>, CommError> {
        Ok(None)
    }

    fn exchange(
        &self,
        _: &'static str,
        sends: &[Outgoing<'_>],
        recvs: &mut [Incoming<'_>],
    ) -> Result<(), CommError> {
        assert!(sends.is_empty() && recvs.is_empty(), "a message to oneself");
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        0
    }

    fn all_reduce_native(&self, _: RegionMut<'_>) -> Result<(), CommError> {
        Ok(())
    }

    fn reduce_scatter_native(
        &self,
        send: Region<'_>,
        mut recv: RegionMut<'_>,
        _: &[usize],
    ) -> Result<(), CommError> {
        let operation = "reduce-scatter";
        recv.host(operation)?.copy_from_slice(send.host(operation)?);
        Ok(())
    }

    fn all_gather_bytes(&self, _: &'static str, send: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![send.to_vec()])
    }

    fn broadcast(&self, _: usize, _: &mut [u8]) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }

    fn abort(&self, exit_code: i32) -> ! {
        std::process::exit(exit_code)
    }
}
