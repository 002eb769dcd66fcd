//! What the ranks compute on: decided before the world is joined, since it decides how ranks talk to one another.

use crate::comm::nccl::Memories;
use crate::config::schema::Device;

/// What this process computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    Cpu,
    Cuda,
}

impl Compute {
    /// What was asked for, or what is there. `gpus` tells how many GPUs this process sees, or why none; it is asked only
    /// if the answer matters, since CUDA takes seconds to load.
    pub fn choose(asked: Device, gpus: &dyn Fn() -> Result<usize, String>) -> Result<Self, String> {
        match asked {
            Device::Cpu => Ok(Self::Cpu),
            Device::Auto => Ok(if gpus().is_ok_and(|count| count > 0) { Self::Cuda } else { Self::Cpu }),
            Device::Cuda => match gpus() {
                Ok(count) if count > 0 => Ok(Self::Cuda),
                Ok(_) => Err("run.device is cuda, but CUDA shows this process no GPU: CUDA_VISIBLE_DEVICES hides them, the \
                              driver is too old for libtorch's CUDA, or the job has none (`lockstep doctor` says which); \
                              otherwise set run.device: cpu"
                    .into()),
                Err(why) => Err(format!("run.device is cuda, but {why}; otherwise set run.device: cpu")),
            },
        }
    }

    /// The device of the rank that has this number on its machine.
    pub fn device(self, local_rank: usize) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda => tch::Device::Cuda(local_rank % crate::torch::cuda_devices().max(1)),
        }
    }

    /// Where gradients come from.
    pub fn memories(self) -> Memories {
        match self {
            Self::Cpu => Memories::Host,
            Self::Cuda => Memories::Device,
        }
    }
}

/// GPUs that this process sees, or why it cannot see any.
pub fn visible_gpus() -> Result<usize, String> {
    crate::torch::load_cuda().map(|()| crate::torch::cuda_devices())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_or_what_is_there() {
        let two = || Ok(2);
        let none = || Ok(0);
        let no_driver = || Err("there is no NVIDIA driver".to_owned());
        assert_eq!(Compute::choose(Device::Auto, &two), Ok(Compute::Cuda));
        assert_eq!(Compute::choose(Device::Auto, &none), Ok(Compute::Cpu));
        assert_eq!(Compute::choose(Device::Auto, &no_driver), Ok(Compute::Cpu));
        assert_eq!(Compute::choose(Device::Cuda, &two), Ok(Compute::Cuda));
        assert!(Compute::choose(Device::Cuda, &none).unwrap_err().contains("CUDA_VISIBLE_DEVICES"));
        let error = Compute::choose(Device::Cuda, &no_driver).unwrap_err();
        assert!(error.contains("no NVIDIA driver") && error.contains("run.device: cpu"), "{error}");
        let never = || panic!("asked without need");
        assert_eq!(Compute::choose(Device::Cpu, &never), Ok(Compute::Cpu));
    }
}
