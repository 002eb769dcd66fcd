//! One measured run as a line of JSON, and what makes a set of them usable.

use std::collections::HashMap;
use std::path::PathBuf;

use lockstep_record::{RecordError, read_named_lines};
use serde::{Deserialize, Serialize};

/// Lines that are read, at most.
const MEASUREMENTS_MAX: usize = 1_000;
/// A step of a training takes less than this.
const SECONDS_MAX: f64 = 1e6;
const RANKS_MAX: u32 = 1 << 16;
/// Phases are medians of their own, so together they may exceed the step's by a little.
const ROUNDING: f64 = 1.1;

/// What one run took: a line of a measurements file. All times are medians over its steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Model, micro-batch size, threads and machine under one name: what takes the same time a micro-batch.
    pub workload: String,
    /// A name for what lies between the ranks, such as `1gbit`.
    pub link: String,
    pub ranks: u32,
    pub strategy: Strategy,
    pub reduction: Reduction,
    /// Whether buckets travel while backward goes on.
    pub overlap: bool,
    /// Of one step, over all ranks.
    pub micro_batches: u32,
    /// Of the whole gradient.
    pub gradient_bytes: u64,
    pub buckets: u32,
    pub step_s: f64,
    /// Of one micro-batch.
    pub forward_s: f64,
    /// Of one micro-batch.
    pub backward_s: f64,
    /// Of a step, on one rank: under ZeRO-1 that of its shard.
    pub optimizer_s: f64,
    /// Of a step: time during which a collective was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communication_s: Option<f64>,
    /// The part of `communication_s` during which the training thread waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    Single,
    Ddp,
    Zero1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    Ordered,
    Native,
}

/// Why measurements cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeasurementError {
    #[error("{source}; docs/scaling.md lists the keys of a measurement")]
    Read { source: RecordError },
    #[error("{}:{line}: {problem}", path.display())]
    Line { path: PathBuf, line: u64, problem: String },
    #[error(
        "{count} measurement(s): at least two are needed, of different settings; add some with `measure`"
    )]
    TooFew { count: usize },
    #[error("more than {MEASUREMENTS_MAX} measurements: give one line a setting, the median of its runs")]
    TooMany,
}

/// Reads all files. Every line must make sense alone and beside the others.
pub fn read_measurements(paths: &[PathBuf]) -> Result<Vec<Measurement>, MeasurementError> {
    let mut known = Known::default();
    let mut measurements = Vec::new();
    for path in paths {
        let lines =
            read_named_lines::<Measurement>(path).map_err(|source| MeasurementError::Read { source })?;
        for (line, number) in lines.zip(1u64..) {
            let measurement = line.map_err(|source| MeasurementError::Read { source })?;
            if measurements.len() == MEASUREMENTS_MAX {
                return Err(MeasurementError::TooMany);
            }
            let malformed = |problem| MeasurementError::Line { path: path.clone(), line: number, problem };
            measurement.check().map_err(malformed)?;
            known.check(&measurement, &format!("{}:{number}", path.display())).map_err(malformed)?;
            measurements.push(measurement);
        }
    }
    match measurements.len() {
        count @ 0..2 => Err(MeasurementError::TooFew { count }),
        _ => Ok(measurements),
    }
}

/// What earlier lines said.
#[derive(Default)]
struct Known {
    /// By text, which is equal only for the same run.
    lines: HashMap<String, String>,
    /// Bytes of each workload's gradient.
    workloads: HashMap<String, (u64, String)>,
}

impl Known {
    fn check(&mut self, measurement: &Measurement, place: &str) -> Result<(), String> {
        let text = serde_json::to_string(measurement).unwrap_or_default();
        if let Some(earlier) = self.lines.insert(text, place.to_owned()) {
            return Err(format!("the same measurement as {earlier}, to the last digit: remove one of them"));
        }
        let (bytes, earlier) = self
            .workloads
            .entry(measurement.workload.clone())
            .or_insert((measurement.gradient_bytes, place.to_owned()));
        if *bytes != measurement.gradient_bytes {
            return Err(format!(
                "workload `{}` has gradient_bytes {}, but {bytes} in {earlier}: give another model another name",
                measurement.workload, measurement.gradient_bytes
            ));
        }
        Ok(())
    }
}

impl Measurement {
    /// Whether one run can have been so; the message names the key.
    pub fn check(&self) -> Result<(), String> {
        self.check_counts()?;
        let optional = [("communication_s", self.communication_s), ("exposed_s", self.exposed_s)];
        let optional = optional.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
        let required = [
            ("step_s", self.step_s),
            ("forward_s", self.forward_s),
            ("backward_s", self.backward_s),
            ("optimizer_s", self.optimizer_s),
        ];
        if let Some((key, value)) =
            required.into_iter().find(|(_, value)| !(*value > 0.0 && *value <= SECONDS_MAX))
        {
            return Err(format!("{key} is {value}, but must be seconds above 0: measure again"));
        }
        for (key, value) in optional {
            if !(0.0..=self.step_s * 100.0).contains(&value) {
                return Err(format!("{key} is {value}, which no step of {} s can have", self.step_s));
            }
        }
        if let (Some(communication), Some(exposed)) = (self.communication_s, self.exposed_s)
            && exposed > communication
        {
            return Err(format!(
                "exposed_s {exposed} is more than communication_s {communication}, of which it is a part"
            ));
        }
        let computing = f64::from(self.micro_batches_a_rank()) * (self.forward_s + self.backward_s);
        if computing > self.step_s * ROUNDING {
            return Err(format!(
                "{} micro-batches a rank of forward_s + backward_s take {computing} s, more than step_s {}: those two are \
                 of one micro-batch, not of a step",
                self.micro_batches_a_rank(),
                self.step_s
            ));
        }
        Ok(())
    }

    fn check_counts(&self) -> Result<(), String> {
        if self.workload.is_empty() || self.link.is_empty() {
            return Err("workload and link need a name".into());
        }
        if !(1..=RANKS_MAX).contains(&self.ranks) {
            return Err(format!("ranks is {}, but must be 1 to {RANKS_MAX}", self.ranks));
        }
        if self.micro_batches < self.ranks {
            return Err(format!(
                "{} micro-batches cannot be shared by {} ranks: micro_batches is the number of a step over all ranks",
                self.micro_batches, self.ranks
            ));
        }
        if self.buckets == 0 || self.gradient_bytes == 0 {
            return Err("buckets and gradient_bytes must be above 0".into());
        }
        if self.strategy == Strategy::Single && self.ranks > 1 {
            return Err(format!("strategy single has one rank, not {}", self.ranks));
        }
        Ok(())
    }

    /// Micro-batches of the rank that has most.
    pub fn micro_batches_a_rank(&self) -> u32 {
        self.micro_batches.div_ceil(self.ranks.max(1))
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Single => "single",
            Self::Ddp => "ddp",
            Self::Zero1 => "zero1",
        })
    }
}

impl std::fmt::Display for Reduction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Ordered => "ordered",
            Self::Native => "native",
        })
    }
}

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Single, Self::Ddp, Self::Zero1];
        known.into_iter().find(|strategy| strategy.to_string() == text).ok_or_else(|| {
            format!("strategy `{text}` has no cost model: it is made for single, ddp and zero1")
        })
    }
}

impl std::str::FromStr for Reduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Ordered, Self::Native];
        known
            .into_iter()
            .find(|reduction| reduction.to_string() == text)
            .ok_or_else(|| format!("reduction `{text}` has no cost model: it is made for ordered and native"))
    }
}
