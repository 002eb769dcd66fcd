//! `manifest.json`: what ran, where, and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a run was. Everything that may legitimately differ between two runs with the same result (world size,
/// strategy, hosts, versions) is in its segments; the rest must agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`crate::RECORD_VERSION`] of the writer.
    pub record_version: u32,
    pub program: Program,
    pub seed: u64,
    /// The resolved configuration as a tree.
    pub config: serde_json::Value,
    pub model: ModelInfo,
    pub data: DataInfo,
    /// One per start or resume, oldest first.
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub version: String,
    /// Commit that the program was built from; `-dirty` is appended if the tree had changes.
    pub git_commit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub parameters: u64,
    pub tensors: Vec<TensorInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Vec<u64>,
    /// As safetensors spells it, for example `F32`.
    pub dtype: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// BLAKE3 of the source bytes, hexadecimal.
    pub digest: String,
    pub tokenizer: String,
    /// BLAKE3 of the tokenizer's definition, hexadecimal.
    pub tokenizer_digest: String,
    pub vocabulary: u64,
    pub train_samples: u64,
    pub validation_samples: u64,
}

/// One execution: from a start or a resume to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The state that it started from: 0, or the step of the checkpoint.
    pub from_step: u64,
    pub started_unix_s: u64,
    pub world_size: u32,
    /// `single`, `ddp`, `zero1`, or a name that a foreign trainer chose.
    pub strategy: String,
    /// `ordered` or `native`.
    pub reduction: String,
    /// `bf16`, `fp16`, `powersgd-4`, ...: bits then depend on `world_size`. Absent where gradients travelled whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// The bug that was planted in this execution (`--mutate`); absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<String>,
    /// What was moved on purpose, to see how far the run moves; absent of any other run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perturbation: Option<Perturbation>,
    /// `solo`, `mpi`, `nccl`, `nccl-double` (a test double), `gloo`, ...
    pub backend: String,
    /// The NCCL that gradients and parameters took; absent of any other backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nccl: Option<Nccl>,
    /// Where parameters, gradients and the optimizer's state lay: `host`, or `device` for where the model computed. Absent if
    /// unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<String>,
    pub threads_per_rank: u32,
    /// Instruction set that the kernels use, for example `AVX512`: it moves bits.
    pub cpu_capability: String,
    /// Versions of the libraries that bits depend on.
    pub versions: BTreeMap<String, String>,
    /// Digest of the container image that it ran in, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_digest: Option<String>,
    pub ranks: Vec<RankInfo>,
    /// Absent while the run goes on, or when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// NVIDIA's library of collectives, or what stood in for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nccl {
    /// For example `2.29.7`; a test double says so behind it.
    pub version: String,
    /// The file that was loaded.
    pub library: String,
    /// Ways that data took between any two ranks, such as `P2P` (NVLink or PCIe), `SHM`, `NET/IB`, `NET/Socket`; empty where
    /// NCCL's log does not tell.
    pub transports: Vec<String>,
}

/// Values that a run moved at random, each by at most one unit in the last place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Perturbation {
    pub of: Perturbed,
    /// Runs of different seeds move by different amounts.
    pub seed: u64,
    pub unit: Unit,
}

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Perturbed {
    /// Each micro-batch's gradient, before it is added to anything.
    Gradients,
    /// That, and the parameters: at the start and after each update.
    All,
}

/// The format whose last place is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Fp32,
    Bf16,
    Fp16,
}

impl std::fmt::Display for Perturbed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Gradients => "gradients",
            Self::All => "all",
        })
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        })
    }
}

impl Unit {
    /// Bits of a significand after its leading one.
    pub fn fraction_bits(self) -> i32 {
        match self {
            Self::Fp32 => 23,
            Self::Bf16 => 7,
            Self::Fp16 => 10,
        }
    }
}

impl std::fmt::Display for Perturbation {
    /// As `lockstep train --perturb` takes it.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}:{}", self.of, self.seed, self.unit)
    }
}

impl std::str::FromStr for Perturbation {
    type Err = String;

    /// `gradients:7`, `all:7`, `gradients:7:bf16`.
    fn from_str(text: &str) -> Result<Self, String> {
        let fail =
            || format!("`{text}` is not WHAT:SEED or WHAT:SEED:UNIT, such as gradients:7 or all:7:bf16");
        let mut words = text.split(':');
        let of = match words.next() {
            Some("gradients") => Perturbed::Gradients,
            Some("all") => Perturbed::All,
            _ => return Err(fail()),
        };
        let seed = words.next().and_then(|seed| seed.parse().ok()).ok_or_else(fail)?;
        let unit = match (words.next(), words.next()) {
            (None | Some("fp32"), None) => Unit::Fp32,
            (Some("bf16"), None) => Unit::Bf16,
            (Some("fp16"), None) => Unit::Fp16,
            _ => return Err(fail()),
        };
        Ok(Self { of, seed, unit })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankInfo {
    pub rank: u32,
    pub host: String,
    /// Bytes of optimizer state that this rank holds.
    pub optimizer_bytes: u64,
    /// Bytes of fp32 master parameters that this rank updates.
    pub master_bytes: u64,
    /// What computes; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
}

/// A processor, as far as it decides which kernels a library takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Processor {
    pub kind: ProcessorKind,
    /// `GenuineIntel`, `AuthenticAMD`, `NVIDIA`, ...
    pub vendor: String,
    /// The number that CPUID tells; of a GPU its compute capability, for example `9.0`.
    pub family: String,
    /// Within the family, as CPUID tells; of a GPU its name.
    pub model: String,
    /// For people.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessorKind {
    Cpu,
    Gpu,
}

impl std::fmt::Display for ProcessorKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            ProcessorKind::Cpu => "CPU",
            ProcessorKind::Gpu => "GPU",
        })
    }
}

impl Processor {
    /// The first processor of a `/proc/cpuinfo`; None where it does not name its family, as on ARM.
    pub fn from_cpuinfo(text: &str) -> Option<Self> {
        let first = text.split("\n\n").next().unwrap_or_default();
        let fact = |wanted: &str| {
            let facts = first.lines().filter_map(|line| line.split_once(':'));
            facts
                .into_iter()
                .find(|(name, _)| name.trim() == wanted)
                .map(|(_, value)| value.trim().to_owned())
        };
        Some(Self {
            kind: ProcessorKind::Cpu,
            vendor: fact("vendor_id")?,
            family: fact("cpu family")?,
            model: fact("model")?,
            name: fact("model name").unwrap_or_else(|| "unknown".into()),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub step: u64,
    pub outcome: Outcome,
    pub unix_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All steps of the schedule were done.
    Finished,
    /// `--stop-after` was reached.
    Stopped,
    /// A signal asked for it; a checkpoint was saved.
    Preempted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_by_its_family() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon: x\n\n\
                    vendor_id\t: Other\n";
        let processor = Processor::from_cpuinfo(text).unwrap();
        let Processor { vendor, family, model, name, .. } = &processor;
        assert_eq!([vendor, family, model, name], ["GenuineIntel", "6", "143", "Xeon: x"]);
        assert_eq!(Processor::from_cpuinfo("Processor\t: AArch64\n"), None);
        assert_eq!(Processor::from_cpuinfo(""), None);
    }

    #[test]
    fn a_perturbation_is_read_as_it_is_written() {
        for of in [Perturbed::Gradients, Perturbed::All] {
            for unit in [Unit::Fp32, Unit::Bf16, Unit::Fp16] {
                let perturbation = Perturbation { of, seed: u64::MAX, unit };
                assert_eq!(perturbation.to_string().parse(), Ok(perturbation));
            }
        }
        assert_eq!("all:7".parse(), Ok(Perturbation { of: Perturbed::All, seed: 7, unit: Unit::Fp32 }));
        for text in ["", "7", "gradients", "gradients:-1", "weights:1", "all:1:fp64", "all:1:bf16:2"] {
            assert!(text.parse::<Perturbation>().unwrap_err().contains("WHAT:SEED"), "{text}");
        }
    }
}
