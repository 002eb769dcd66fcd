//! Which GPU belongs to which rank: device = local rank modulo the devices that the process sees. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one rank says before GPUs are given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The same for ranks of one machine.
    pub machine: String,
    /// Among the ranks of its machine, by a split of the world into those that share memory.
    pub local_rank: usize,
    /// Devices that this process sees; none for as many as are wanted (a double of NCCL).
    pub visible: Option<usize>,
    /// `CUDA_VISIBLE_DEVICES`, where it is set: ranks that see different devices count theirs from 0 alike.
    pub list: Option<String>,
}

impl Seat {
    /// The device of this rank, as the process counts, and what it is called on its machine.
    fn device(&self) -> Option<(usize, String)> {
        let Some(visible) = self.visible else { return Some((self.local_rank, self.local_rank.to_string())) };
        let index = self.local_rank.checked_rem(visible)?;
        let entry = self.list.as_deref().and_then(|list| list.split(',').nth(index)).map(str::trim);
        Some((index, entry.map_or_else(|| index.to_string(), ToOwned::to_owned)))
    }
}

/// Every rank's device, as its process counts. An error names the ranks that have none of their own, and the remedy.
pub fn assign(seats: &[Seat]) -> Result<Vec<usize>, String> {
    let mut taken = BTreeMap::<(&str, String), usize>::new();
    let mut devices = Vec::with_capacity(seats.len());
    for (rank, seat) in seats.iter().enumerate() {
        let (device, name) = seat.device().ok_or_else(|| none_visible(rank, seat))?;
        if let Some(other) = taken.insert((&seat.machine, name.clone()), rank) {
            let ranks = seats.iter().filter(|other| other.machine == seat.machine).count();
            let visible = seat.visible.unwrap_or_default();
            return Err(format!(
                "ranks {other} and {rank} would share GPU {name} of {}: it has {ranks} ranks, which see {visible} GPU(s); \
                 start one rank for each GPU (mpirun --map-by ppr:{visible}:node, srun --ntasks-per-node={visible}), or let \
                 each rank see more of them (CUDA_VISIBLE_DEVICES, srun --gpu-bind=none)",
                seat.machine
            ));
        }
        devices.push(device);
    }
    Ok(devices)
}

fn none_visible(rank: usize, seat: &Seat) -> String {
    let (why, remedy) = match seat.list.as_deref() {
        Some(list) => (
            format!("CUDA_VISIBLE_DEVICES={list} leaves none"),
            "set it to GPUs of this machine, such as 0,1, or unset it",
        ),
        None => (
            "CUDA shows none".to_owned(),
            "ask the scheduler for GPUs, start a container with --nv (Apptainer) or --gpus all (Docker), or set run.device: \
             cpu",
        ),
    };
    format!("rank {rank} on {} sees no GPU: {why}; {remedy} (`lockstep doctor` says more)", seat.machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(machine: &str, local_rank: usize, visible: usize, list: Option<&str>) -> Seat {
        let list = list.map(ToOwned::to_owned);
        Seat { machine: machine.into(), local_rank, visible: Some(visible), list }
    }

    #[test]
    fn the_local_rank_is_the_device() {
        let seats = [seat("a", 0, 2, None), seat("a", 1, 2, None), seat("b", 0, 4, None)];
        assert_eq!(assign(&seats), Ok(vec![0, 1, 0]));
        let anything = Seat { visible: None, ..seat("a", 3, 0, None) };
        assert_eq!(assign(&[anything]), Ok(vec![3]));
    }

    /// As `srun --gpu-bind=single:1` has it: each sees one, and calls it 0.
    #[test]
    fn ranks_that_see_different_devices_do_not_share() {
        assert_eq!(assign(&[seat("a", 0, 1, Some("2")), seat("a", 1, 1, Some("3"))]), Ok(vec![0, 0]));
        assert_eq!(assign(&[seat("a", 0, 2, Some("4,5")), seat("a", 1, 2, Some("4,5"))]), Ok(vec![0, 1]));
    }

    #[test]
    fn two_ranks_on_one_device_are_refused() {
        let error =
            assign(&[seat("a", 0, 1, None), seat("b", 0, 1, None), seat("a", 1, 1, None)]).unwrap_err();
        assert!(error.contains("ranks 0 and 2 would share GPU 0 of a: it has 2 ranks"), "{error}");
        assert!(error.contains("start one rank for each GPU"), "{error}");
        assert!(assign(&[seat("a", 0, 1, Some("3")), seat("a", 1, 1, Some("3"))]).is_err());
    }

    #[test]
    fn a_rank_without_a_device_is_refused() {
        let error = assign(&[seat("a", 0, 0, Some(""))]).unwrap_err();
        assert!(error.contains("CUDA_VISIBLE_DEVICES= leaves none"), "{error}");
        let error = assign(&[seat("a", 0, 0, None)]).unwrap_err();
        assert!(error.contains("rank 0 on a sees no GPU") && error.contains("run.device: cpu"), "{error}");
    }
}
