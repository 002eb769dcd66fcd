//! libtorch, CUDA, the driver, and which GPUs a rank sees.

use super::mpi::major;
use super::or_ok;
use crate::doctor::catalogue::{
    CUDA_CPU_BUILD, CUDA_DRIVER, CUDA_HIDDEN, GPU_NONE, GPU_SHARED, GPU_UNKNOWN, TORCH_VERSION,
};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, agreement, count, distinct, each, hosts};

/// The oldest driver for a CUDA of this major version, where the driver does not say which CUDA it runs.
const OLDEST_DRIVERS: [(u32, u32); 3] = [(11, 450), (12, 525), (13, 580)];

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let torch = agreement(&TORCH_VERSION, "libtorch", all, |facts| facts.torch.version.clone());
    let mut findings =
        or_ok(torch.into_iter().collect(), || Finding::ok("torch", distinct(all, describe_torch)));
    let problems = [
        each(&CUDA_DRIVER, all, old_driver),
        each(&CUDA_HIDDEN, all, |facts| {
            let driver = facts.gpu.driver.as_ref().filter(|_| facts.gpu.driver_cuda.is_none())?;
            Some(format!("the kernel has driver {driver}, but libnvidia-ml.so.1 does not answer"))
        }),
        each(&CUDA_CPU_BUILD, all, |facts| {
            (facts.has_gpu() && !facts.torch.has_cuda_library)
                .then(|| "there are GPUs, but no libtorch_cuda.so beside libtorch".into())
        }),
        each(&GPU_NONE, all, sees_none),
        each(&GPU_UNKNOWN, all, unknown),
        shared(all),
    ]
    .concat();
    findings.extend(or_ok(problems, || Finding::ok("gpu", distinct(all, describe_gpu))));
    findings
}

fn describe_torch(facts: &Facts) -> String {
    let cuda = match (&facts.torch.cuda, facts.torch.has_cuda_library) {
        (Some(version), true) => format!("built for CUDA {version}"),
        (Some(version), false) => format!("the CPU half of a build for CUDA {version}"),
        (None, _) => "built for the CPU".into(),
    };
    format!("libtorch {}, {cuda}", facts.torch.version)
}

fn describe_gpu(facts: &Facts) -> String {
    match (&facts.gpu.driver, facts.gpu.devices) {
        (Some(driver), Some(devices)) => {
            let newest = facts.gpu.driver_cuda.as_deref().unwrap_or("unknown");
            let devices = count(devices, "GPU");
            format!(
                "{devices}, of which a rank sees {}, driver {driver}, CUDA up to {newest}",
                visible(facts)
            )
        }
        (Some(driver), None) => format!("driver {driver}"),
        _ => "none, and no driver: a training runs on the CPU".into(),
    }
}

/// Only major versions count: within one, CUDA promises that newer programs run on older drivers.
fn old_driver(facts: &Facts) -> Option<String> {
    let wanted = facts.torch.cuda.as_ref().filter(|_| facts.torch.has_cuda_library)?;
    let driver = facts.gpu.driver.as_ref()?;
    let message = |newest: &str| {
        format!("libtorch is built for CUDA {wanted}, but driver {driver} runs CUDA {newest} at most")
    };
    if let Some(newest) = &facts.gpu.driver_cuda {
        return (major(newest)? < major(wanted)?).then(|| message(newest));
    }
    let (_, oldest) = OLDEST_DRIVERS.into_iter().find(|(cuda, _)| Some(*cuda) == major(wanted))?;
    (major(driver)? < oldest).then(|| {
        format!("libtorch is built for CUDA {wanted}, which needs driver {oldest}, but this is {driver}")
    })
}

/// Number of GPUs that CUDA shows to this rank: entries up to the first that names none.
fn visible(facts: &Facts) -> usize {
    let devices = facts.gpu.devices.unwrap_or(0);
    let Some(list) = facts.variable("CUDA_VISIBLE_DEVICES") else { return devices };
    list.split(',').take_while(|entry| is_device(entry, devices)).count().min(devices)
}

/// A number within bounds, or the name of a GPU or of a part of one, which only the driver can judge.
fn is_device(entry: &str, devices: usize) -> bool {
    let entry = entry.trim();
    let named = ["GPU-", "MIG-"].iter().any(|prefix| entry.starts_with(prefix));
    named || entry.parse::<usize>().is_ok_and(|index| index < devices)
}

fn sees_none(facts: &Facts) -> Option<String> {
    let devices = facts.gpu.devices.filter(|devices| *devices > 0)?;
    let list = facts.variable("CUDA_VISIBLE_DEVICES")?;
    let hides_all = matches!(list.trim(), "" | "-1" | "NoDevFiles");
    hides_all.then(|| format!("CUDA_VISIBLE_DEVICES={list} hides the host's {}", count(devices, "GPU")))
}

fn unknown(facts: &Facts) -> Option<String> {
    let devices = facts.gpu.devices.filter(|devices| *devices > 0)?;
    let list = facts.variable("CUDA_VISIBLE_DEVICES").filter(|_| sees_none(facts).is_none())?;
    let wrong = list.split(',').find(|entry| !is_device(entry, devices))?;
    Some(format!("CUDA_VISIBLE_DEVICES={list}: there is no GPU {wrong} among the host's {devices}"))
}

/// Hosts whose ranks cannot have a GPU each.
fn shared(all: &[Facts]) -> Vec<Finding> {
    let crowded = |ranks: Vec<&Facts>| {
        // Ranks that see different ones, as `--gpu-bind` has it, have them together.
        let mut lists: Vec<Option<String>> =
            ranks.iter().map(|facts| facts.variable("CUDA_VISIBLE_DEVICES")).collect();
        lists.sort();
        lists.dedup();
        let fewest = ranks.iter().map(|facts| visible(facts)).min()?;
        let gpus = (fewest * lists.len()).min(ranks.first()?.gpu.devices.unwrap_or(0));
        (fewest > 0 && gpus < ranks.len()).then(|| {
            let (ranks_text, gpus_text) = (count(ranks.len(), "rank"), count(gpus, "GPU"));
            let ranks = ranks.iter().map(|facts| facts.rank).collect();
            Finding::of(&GPU_SHARED, format!("{ranks_text} of a host share {gpus_text}"), ranks)
        })
    };
    hosts(all).into_values().filter_map(crowded).collect()
}
