//! From a run directory to a measurement.

use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, RecordError, RunDir, Seconds, Segment, StepLine, read_json, read_lines};

use super::measurement::{Measurement, Reduction, Strategy};
use crate::median;
use crate::trace::{Steps, TraceError, traced_figures};

/// Steps at the start of an execution that are slower: allocations, and the order of buckets.
const WARM_UP_STEPS: u64 = 2;

/// What the run directory does not say.
#[derive(Clone, Debug)]
pub struct Extraction {
    pub run: PathBuf,
    pub workload: String,
    pub link: String,
    /// Instead of the number that the trace has, or that `parallel.bucket_mb` makes likely.
    pub buckets: Option<u32>,
    /// Instead of `parallel.overlap` of the run's configuration.
    pub overlap: Option<bool>,
}

/// Why a run gives no measurement.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("{}: not a run directory: it has no manifest.json", .0.display())]
    NotARun(PathBuf),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("{}: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
}

/// Reads the newest execution of a run: medians over its steps after a warm-up of two.
pub fn extract(request: &Extraction) -> Result<Measurement, ExtractError> {
    let run = RunDir::new(&request.run);
    if !run.manifest().exists() {
        return Err(ExtractError::NotARun(request.run.clone()));
    }
    let manifest: Manifest = read_json(&run.manifest())?;
    let unusable = |problem: String| ExtractError::Unusable { path: run.manifest(), problem };
    let segment = manifest.segments.last().ok_or_else(|| unusable("no execution in it".into()))?;
    let strategy: Strategy = segment.strategy.parse().map_err(unusable)?;
    let reduction: Reduction = segment.reduction.parse().map_err(unusable)?;
    let micro_batches = config_number(&manifest, &["batch", "micro_batches"])
        .filter(|number| *number >= 1.0)
        .ok_or_else(|| unusable("config.batch.micro_batches is missing".into()))?
        as u32;
    let times = StepTimes::read(&run.metrics(), segment)?;
    let overlap = request.overlap.unwrap_or_else(|| config_flag(&manifest, &["parallel", "overlap"]));
    let traffic = Traffic::of(&run, segment, &times, overlap)?;
    let gradient_bytes = gradient_bytes(&manifest);
    let a_rank = f64::from(micro_batches.div_ceil(segment.world_size.max(1)));
    let measurement = Measurement {
        workload: request.workload.clone(),
        link: request.link.clone(),
        ranks: segment.world_size,
        strategy,
        reduction,
        overlap,
        micro_batches,
        gradient_bytes,
        buckets: request
            .buckets
            .or(traffic.buckets)
            .unwrap_or_else(|| likely_buckets(&manifest, gradient_bytes)),
        step_s: times.median(|seconds| seconds.total),
        forward_s: times.median(|seconds| seconds.forward) / a_rank,
        backward_s: times.median(|seconds| seconds.backward) / a_rank,
        optimizer_s: times.median(|seconds| seconds.optimizer),
        communication_s: traffic.communication_s,
        exposed_s: traffic.exposed_s,
    };
    let path = run.metrics();
    measurement.check().map_err(|problem| ExtractError::Unusable { path, problem })?;
    Ok(measurement)
}

/// Rank 0's times of the steps that count.
struct StepTimes {
    first: u64,
    seconds: Vec<Seconds>,
}

impl StepTimes {
    fn read(path: &Path, segment: &Segment) -> Result<Self, ExtractError> {
        let first = segment.from_step.saturating_add(WARM_UP_STEPS + 1);
        let mut seconds = Vec::new();
        for line in read_lines::<StepLine>(path)? {
            let line = line?;
            if line.step >= first {
                seconds.push(line.seconds);
            }
        }
        if seconds.is_empty() {
            let problem = format!(
                "no step after {first}, where the warm-up of {WARM_UP_STEPS} steps ends: train longer"
            );
            return Err(ExtractError::Unusable { path: path.to_owned(), problem });
        }
        Ok(Self { first, seconds })
    }

    fn median(&self, of: fn(&Seconds) -> f64) -> f64 {
        median(&self.seconds.iter().map(of).collect::<Vec<_>>()).unwrap_or(0.0)
    }
}

/// What is known about the communication.
#[derive(Default)]
struct Traffic {
    buckets: Option<u32>,
    communication_s: Option<f64>,
    exposed_s: Option<f64>,
}

impl Traffic {
    /// From the traces, if there are some; else what the training thread spent on it, which is exposed by
    /// definition, and without overlap is all of it.
    fn of(run: &RunDir, segment: &Segment, times: &StepTimes, overlap: bool) -> Result<Self, ExtractError> {
        if segment.world_size == 1 {
            return Ok(Self { buckets: Some(1), ..Self::default() });
        }
        let traced = run.traced_ranks().map_err(|source| RecordError::Io { path: run.traces(), source })?;
        if traced.is_empty() {
            let exposed_s = times.median(|seconds| seconds.communication);
            let communication_s = (!overlap).then_some(exposed_s);
            return Ok(Self { buckets: None, communication_s, exposed_s: Some(exposed_s) });
        }
        let figures = traced_figures(run, Steps { first: times.first, last: u64::MAX })?;
        Ok(Self {
            buckets: u32::try_from(figures.buckets.len()).ok().filter(|number| *number > 0),
            communication_s: Some(figures.communication_us / 1e6),
            exposed_s: Some(figures.exposed_us / 1e6),
        })
    }
}

fn config_value<'a>(manifest: &'a Manifest, path: &[&str]) -> Option<&'a serde_json::Value> {
    path.iter().try_fold(&manifest.config, |tree, key| tree.get(key))
}

fn config_number(manifest: &Manifest, path: &[&str]) -> Option<f64> {
    config_value(manifest, path)?.as_f64()
}

fn config_flag(manifest: &Manifest, path: &[&str]) -> bool {
    config_value(manifest, path).and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// Gradients have their parameters' types.
fn gradient_bytes(manifest: &Manifest) -> u64 {
    let bytes = |dtype: &str| match dtype {
        "F64" => 8,
        "F16" | "BF16" => 2,
        _ => 4,
    };
    let elements = |shape: &[u64]| shape.iter().fold(1u64, |product, size| product.saturating_mul(*size));
    let tensors = manifest.model.tensors.iter();
    tensors.fold(0, |sum, tensor| {
        sum.saturating_add(elements(&tensor.shape).saturating_mul(bytes(&tensor.dtype)))
    })
}

/// As many buckets of the configured size as the gradient fills.
fn likely_buckets(manifest: &Manifest, gradient_bytes: u64) -> u32 {
    let bucket_mb = config_number(manifest, &["parallel", "bucket_mb"]).filter(|size| *size > 0.0);
    let buckets = bucket_mb.map_or(1.0, |size| (gradient_bytes as f64 / (size * f64::from(1 << 20))).ceil());
    buckets.clamp(1.0, f64::from(u32::MAX)) as u32
}
