//! Readings of a GPU, from NVIDIA's management library and from libtorch's allocator.

use std::path::Path;

use lockstep_record::TelemetryLine;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};

use super::driver::Identity;
use super::sampler::Source;
use crate::torch::gpu_memory;

pub struct NvmlSource {
    device: Device<'static>,
    /// As this process counts, for libtorch.
    ordinal: usize,
}

impl NvmlSource {
    /// The GPU of this name, whichever number the library gives it.
    pub fn open(library: &Path, ordinal: usize, identity: &Identity) -> Result<Self, String> {
        let shown = library.display();
        let nvml = Nvml::builder()
            .lib_path(library.as_os_str())
            .init()
            .map_err(|error| format!("{shown}: {error}"))?;
        // Its devices borrow it, and it is needed to the end of the process.
        let nvml: &'static Nvml = Box::leak(Box::new(nvml));
        let by_uuid = identity.uuid_texts().into_iter().find_map(|uuid| nvml.device_by_uuid(uuid).ok());
        let by_bus = || nvml.device_by_pci_bus_id(identity.pci_bus_id.clone()?).ok();
        let device = by_uuid.or_else(by_bus).ok_or_else(|| {
            format!("{shown} does not know the GPU that CUDA calls {ordinal}: {identity:?}")
        })?;
        Ok(Self { device, ordinal })
    }
}

impl Source for NvmlSource {
    fn read(&mut self) -> TelemetryLine {
        let device = &self.device;
        let utilisation = device.utilization_rates().ok();
        let memory = device.memory_info().ok();
        let tensors = gpu_memory(self.ordinal);
        TelemetryLine {
            utilisation_percent: utilisation.as_ref().map(|percent| percent.gpu),
            memory_utilisation_percent: utilisation.as_ref().map(|percent| percent.memory),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
            tensor_bytes: tensors.map(|tensors| tensors.bytes),
            tensor_bytes_max: tensors.map(|tensors| tensors.bytes_max),
            power_mw: device.power_usage().ok(),
            temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            ..TelemetryLine::default()
        }
    }
}
