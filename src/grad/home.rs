//! Where buckets lie: parameters, gradients and the optimizer's state.

use tch::Device;

/// The memory of one rank's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The host's. Arithmetic runs over slices, in loops of ours.
    Host,
    /// Where the model computes. Arithmetic is libtorch's, on that device, and NCCL reads and writes in place. Over a double of
    /// NCCL the device is the CPU: the same code, whose every bit can be compared.
    Device(Device),
}

impl Home {
    /// Of a rank that exchanges nothing: beside its model.
    pub fn beside(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Host,
            device => Self::Device(device),
        }
    }

    /// Where tensors of this home are made.
    pub fn device(self) -> Device {
        match self {
            Self::Host => Device::Cpu,
            Self::Device(device) => device,
        }
    }

    /// As the run record spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Device(_) => "device",
        }
    }
}
