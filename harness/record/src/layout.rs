//! Where the files of a run lie.

use std::path::{Path, PathBuf};

/// A run directory: every path of the record is spelled here and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    pub fn config(&self) -> PathBuf {
        self.0.join("config.yaml")
    }

    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Derived from [`RunDir::metrics`], for spreadsheets.
    pub fn metrics_csv(&self) -> PathBuf {
        self.0.join("metrics.csv")
    }

    pub fn samples(&self) -> PathBuf {
        self.0.join("samples.jsonl")
    }

    pub fn digests(&self) -> PathBuf {
        self.0.join("digests.jsonl")
    }

    /// Held locked by rank 0 for as long as it writes here.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    pub fn rank_log(&self, rank: usize) -> PathBuf {
        self.logs().join(format!("rank-{rank:05}.jsonl"))
    }

    /// Held by runs on GPUs.
    pub fn telemetry(&self) -> PathBuf {
        self.0.join("telemetry")
    }

    pub fn rank_telemetry(&self, rank: usize) -> PathBuf {
        self.telemetry().join(format!("rank-{rank:05}.jsonl"))
    }

    /// Held by runs with `--trace`.
    pub fn traces(&self) -> PathBuf {
        self.0.join("trace")
    }

    pub fn rank_trace(&self, rank: usize) -> PathBuf {
        self.traces().join(format!("rank-{rank:05}.json"))
    }

    /// The ranks that left a trace, in order; empty without any.
    pub fn traced_ranks(&self) -> std::io::Result<Vec<usize>> {
        let entries = match std::fs::read_dir(self.traces()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut ranks = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let rank = name.to_str().and_then(|name| name.strip_prefix("rank-")?.strip_suffix(".json"));
            // Only the spelling that the trainer uses: `rank-1.json` would be a second file of rank 1.
            let is_its_file =
                |rank: &u32| self.rank_trace(*rank as usize).file_name() == Some(name.as_os_str());
            ranks.extend(
                rank.and_then(|rank| rank.parse().ok()).filter(is_its_file).map(|rank| rank as usize),
            );
        }
        ranks.sort_unstable();
        Ok(ranks)
    }

    /// All ranks' traces in one file, derived from [`RunDir::rank_trace`].
    pub fn merged_trace(&self) -> PathBuf {
        self.traces().join("trace.json")
    }

    /// What the ranks' last collectives were, if the run broke.
    pub fn flight(&self) -> PathBuf {
        self.0.join("flight")
    }

    /// [`RunDir::flight`] of the execution before this one, kept when a run is resumed.
    pub fn earlier_flight(&self) -> PathBuf {
        self.0.join("flight-earlier")
    }

    pub fn rank_flight(&self, rank: usize) -> PathBuf {
        self.flight().join(format!("rank-{rank:05}.jsonl"))
    }

    /// Steps in full, of runs with `--capture`.
    pub fn captures(&self) -> PathBuf {
        self.0.join("capture")
    }

    pub fn capture(&self, step: u64) -> PathBuf {
        self.captures().join(format!("step-{step:08}"))
    }

    /// The header of a run that was stored as a golden run.
    pub fn golden_header(&self) -> PathBuf {
        self.0.join("golden.json")
    }

    /// How far a candidate that cannot have the same bits may be from this run; the harness makes it.
    pub fn tolerance(&self) -> PathBuf {
        self.0.join("tolerance")
    }

    pub fn report(&self) -> PathBuf {
        self.0.join("report")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// The steps of all published checkpoints, oldest first. A folder without a manifest, or with a name of
    /// another form (a write that was cut short), is not a checkpoint.
    pub fn checkpoint_steps(&self) -> std::io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(self.checkpoints()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry?;
            let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
            if let Some(step) = step
                && entry.path().join("manifest.json").is_file()
            {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }
}
