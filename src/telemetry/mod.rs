//! Telemetry: a thread that looks at this rank's GPU now and then, and writes what it sees to a file of its own. It takes
//! nothing from the training but the number of its step, and gives it nothing: no bit depends on it.

mod driver;
mod nvml;
mod sampler;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use lockstep_record::RunDir;
use tch::Device;

use driver::identity;
use nvml::NvmlSource;
pub use sampler::{Source, Telemetry};

/// NVIDIA's libraries: the driver's own, which knows what this process's device 0 is, and the one that reads sensors.
const DRIVER: &str = "libcuda.so.1";
const NVML: &str = "libnvidia-ml.so.1";

/// Starts to look at the GPU that this rank computes on. Where there is none, or nobody to ask about it, there is no
/// telemetry, and the log says why to whoever debugs: a training needs none.
pub fn of_rank(device: Device, run: &RunDir, rank: usize, every_s: f64) -> Option<Telemetry> {
    let started = match device {
        Device::Cuda(ordinal) if every_s > 0.0 => start(ordinal, run, rank, every_s),
        Device::Cuda(_) => Err("record.telemetry_every_s is 0".into()),
        _ => Err("this rank computes on no GPU".into()),
    };
    started.inspect_err(|why| tracing::debug!("no telemetry: {why}")).ok()
}

fn start(ordinal: usize, run: &RunDir, rank: usize, every_s: f64) -> Result<Telemetry, String> {
    let identity = identity(Path::new(DRIVER), ordinal)?;
    let source = NvmlSource::open(Path::new(NVML), ordinal, &identity)?;
    let path = run.rank_telemetry(rank);
    Telemetry::start(Box::new(source), &path, Duration::from_secs_f64(every_s))
        .map_err(|error| format!("{}: {error}", path.display()))
}
