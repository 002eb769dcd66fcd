//! What bits depend on besides program and configuration: processor, instruction set, libraries, threads.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_record::{Manifest, Processor, Segment};
use serde::{Deserialize, Serialize};

/// Libraries that compute. They are compared where both runs name them: another trainer uses others.
const LIBRARIES: [&str; 6] = ["libtorch", "torch", "mkl", "onednn", "cuda", "cudnn"];
/// Switches of theirs that choose other kernels: absent is a setting, too.
const SWITCHES: [&str; 3] = ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"];

/// Of all segments of a run together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Those of all ranks, each once; empty where the record does not name them.
    pub processors: BTreeSet<Processor>,
    /// The instruction set that kernels were chosen for, for example `AVX512`.
    pub cpu_capability: BTreeSet<String>,
    pub threads_per_rank: BTreeSet<u32>,
    /// Of every library that the record names, those that do not compute included.
    pub versions: BTreeMap<String, BTreeSet<String>>,
}

/// One thing in which two families differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FamilyDifference {
    pub field: String,
    pub golden: String,
    pub candidate: String,
}

impl std::fmt::Display for FamilyDifference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}, the candidate's {}", self.field, self.golden, self.candidate)
    }
}

impl Family {
    pub fn of(manifest: &Manifest) -> Self {
        let mut family = Self::default();
        manifest.segments.iter().for_each(|segment| family.add(segment));
        family
    }

    fn add(&mut self, segment: &Segment) {
        self.processors.extend(segment.ranks.iter().filter_map(|rank| rank.processor.clone()));
        self.cpu_capability.insert(segment.cpu_capability.clone());
        self.threads_per_rank.insert(segment.threads_per_rank);
        for (name, version) in &segment.versions {
            self.versions.entry(name.clone()).or_default().insert(version.clone());
        }
    }

    /// Where bits may part between a golden run of this family and a candidate of the other.
    pub fn differences(&self, candidate: &Self) -> Vec<FamilyDifference> {
        let mut differences = Vec::new();
        let mut compare = |field: &str, golden: String, candidate: String| {
            if golden != candidate {
                differences.push(FamilyDifference { field: field.to_owned(), golden, candidate });
            }
        };
        if !self.processors.is_empty()
            && !candidate.processors.is_empty()
            && self.models() != candidate.models()
        {
            compare("processor", names(&self.processors), names(&candidate.processors));
        }
        compare("cpu_capability", list(&self.cpu_capability), list(&candidate.cpu_capability));
        compare("threads_per_rank", list(&self.threads_per_rank), list(&candidate.threads_per_rank));
        for library in LIBRARIES {
            if let (Some(golden), Some(candidate)) =
                (self.versions.get(library), candidate.versions.get(library))
            {
                compare(library, list(golden), list(candidate));
            }
        }
        for switch in SWITCHES {
            let setting = |family: &Self| family.versions.get(switch).map_or("unset".into(), list);
            compare(switch, setting(self), setting(candidate));
        }
        differences
    }

    /// Names are for people: a vendor may sell one model under several.
    fn models(&self) -> BTreeSet<(String, &str, &str, &str)> {
        let model = |processor: &Processor| processor.kind.to_string();
        self.processors
            .iter()
            .map(|p| (model(p), p.vendor.as_str(), p.family.as_str(), p.model.as_str()))
            .collect()
    }

    /// In a few words, for a table.
    pub fn brief(&self) -> String {
        let processor = match self.processors.is_empty() {
            true => "unknown processor".to_owned(),
            false => names(&self.processors),
        };
        format!("{processor}, {}", list(&self.cpu_capability))
    }
}

fn names(processors: &BTreeSet<Processor>) -> String {
    let name = |p: &Processor| format!("{} {} {}/{} ({})", p.kind, p.vendor, p.family, p.model, p.name);
    processors.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn list<T: std::fmt::Display>(values: &BTreeSet<T>) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_record::ProcessorKind;

    fn processor(model: &str) -> Processor {
        Processor {
            kind: ProcessorKind::Cpu,
            vendor: "GenuineIntel".into(),
            family: "6".into(),
            model: model.into(),
            name: "Xeon".into(),
        }
    }

    fn family(model: &str) -> Family {
        Family {
            processors: [processor(model)].into(),
            cpu_capability: ["AVX2".to_owned()].into(),
            threads_per_rank: [1].into(),
            versions: [("libtorch".to_owned(), ["2.13.0".to_owned()].into())].into(),
        }
    }

    fn fields(golden: &Family, candidate: &Family) -> Vec<String> {
        golden.differences(candidate).into_iter().map(|difference| difference.field).collect()
    }

    #[test]
    fn each_field_that_moves_bits_is_told() {
        let golden = family("143");
        assert_eq!(golden.differences(&golden), []);
        assert_eq!(fields(&golden, &family("85")), ["processor"]);
        let mut other = golden.clone();
        other.cpu_capability = ["AVX512".to_owned()].into();
        other.threads_per_rank = [2].into();
        other.versions.insert("libtorch".into(), ["2.14.0".to_owned()].into());
        other.versions.insert("MKL_CBWR".into(), ["COMPATIBLE".to_owned()].into());
        assert_eq!(fields(&golden, &other), ["cpu_capability", "threads_per_rank", "libtorch", "MKL_CBWR"]);
        assert_eq!(golden.differences(&other)[3].to_string(), "MKL_CBWR unset, the candidate's COMPATIBLE");
    }

    #[test]
    fn what_only_one_names_and_what_moves_no_bits_is_no_difference() {
        let golden = family("143");
        let mut other = golden.clone();
        other.versions.insert("mpi".into(), ["Open MPI 5".to_owned()].into());
        other.versions.insert("torch".into(), ["2.13.0".to_owned()].into());
        other.processors = BTreeSet::new();
        assert_eq!(golden.differences(&other), []);
        let renamed = Processor { name: "Another name".into(), ..processor("143") };
        let other = Family { processors: [renamed].into(), ..golden.clone() };
        assert_eq!(golden.differences(&other), []);
    }
}
