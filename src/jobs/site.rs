//! The site file: what is the same for all jobs on one cluster. `docs/jobs.md` describes every key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::JobError;
use super::catalogue::Values;

/// The largest site file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;
/// What aliases may copy at most, in bytes.
const COPIES_BYTES_MAX: usize = 64 << 20;

/// A site file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Site {
    pub account: Option<String>,
    pub queue: Option<String>,
    pub pbs: Pbs,
    pub gpus_per_node: u32,
    pub ranks_per_node: Option<u32>,
    pub cpus_per_rank: u32,
    pub threads_per_rank: Option<u32>,
    pub memory_gb: Option<u32>,
    pub time: String,
    pub grace_s: u32,
    pub mail: Option<Mail>,
    pub directives: Vec<String>,
    pub modules: Modules,
    pub container: Option<Container>,
    pub env: BTreeMap<String, String>,
    pub programs: Programs,
    pub mpi: String,
    pub launcher: Vec<String>,
    pub link: String,
    pub jobs: BTreeMap<String, Values>,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            account: None,
            queue: None,
            pbs: Pbs::Torque,
            gpus_per_node: 0,
            ranks_per_node: None,
            cpus_per_rank: 1,
            threads_per_rank: None,
            memory_gb: None,
            time: "01:00:00".into(),
            grace_s: 120,
            mail: None,
            directives: Vec::new(),
            modules: Modules::default(),
            container: None,
            env: BTreeMap::new(),
            programs: Programs::default(),
            mpi: "pmix".into(),
            launcher: Vec::new(),
            link: "site".into(),
            jobs: BTreeMap::new(),
        }
    }
}

/// Which PBS: they ask for nodes in different words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pbs {
    Torque,
    OpenPbs,
}

/// Who is told of a job, and when.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    pub to: String,
    #[serde(default = "Mail::when")]
    pub when: Vec<When>,
}

impl Mail {
    fn when() -> Vec<When> {
        vec![When::End, When::Fail]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    Begin,
    End,
    Fail,
}

/// Environment modules.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modules {
    pub init: Option<String>,
    #[serde(rename = "use")]
    pub folders: Vec<String>,
    pub load: Vec<String>,
}

/// The image that ranks run in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    pub image: String,
    #[serde(default = "Container::runtime")]
    pub runtime: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default)]
    pub binds: Vec<String>,
}

impl Container {
    fn runtime() -> String {
        "apptainer".into()
    }

    /// What starts a program inside.
    pub fn prefix(&self) -> Vec<String> {
        let mut words = vec![self.runtime.clone(), "exec".into()];
        words.extend(self.options.iter().cloned());
        for bind in &self.binds {
            words.extend(["--bind".into(), bind.clone()]);
        }
        words.push(self.image.clone());
        words
    }
}

/// Where programs are, if not where they are looked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Programs {
    pub trainer: Option<String>,
    pub harness: Option<String>,
    pub mpirun: Option<String>,
    pub nsys: Option<String>,
    pub ncu: Option<String>,
}

impl Site {
    /// Reads a site file; an error names the file and the key.
    pub fn read(path: &Path) -> Result<Self, JobError> {
        let fail = |problem: String| JobError::new(format!("site file {}: {problem}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > BYTES_MAX {
            return Err(fail(format!("it is no plain file of up to {BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Self::parse(&text).map_err(|error| fail(error.0))
    }

    /// Reads the text of a site file; an empty one is a site of defaults.
    pub fn parse(text: &str) -> Result<Self, JobError> {
        let is_empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if is_empty {
            return Ok(Self::default());
        }
        // Each alias is a copy: a short file could fill the memory with copies of one long value.
        if text.matches('*').count().saturating_mul(text.len()) > COPIES_BYTES_MAX {
            return Err(JobError::new("too many aliases (*NAME) for its length: write the values out"));
        }
        let deserializer = serde_yaml::Deserializer::from_str(text);
        serde_path_to_error::deserialize(deserializer).map_err(|error| JobError::new(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_can_be_read() {
        for text in [
            include_str!("../../slurm/site.yaml"),
            include_str!("../../pbs/site-torque.yaml"),
            include_str!("../../pbs/site-openpbs.yaml"),
        ] {
            Site::parse(text).unwrap();
        }
        assert_eq!(Site::parse("# nothing\n\n").unwrap().mpi, "pmix");
    }

    #[test]
    fn a_wrong_key_or_type_is_named() {
        let error = Site::parse("modules: { laod: [cuda] }").unwrap_err();
        assert!(error.0.contains("modules") && error.0.contains("laod"), "{error}");
        let error = Site::parse("gpus_per_node: many").unwrap_err();
        assert!(error.0.contains("gpus_per_node"), "{error}");
    }
}
