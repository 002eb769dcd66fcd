//! The envelope of a golden run: how far a candidate may be from it, by step and tensor. `RUN/tolerance/` holds it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use lockstep_record::{Digest, Manifest, Perturbed, Phase, Real, RunDir, Unit, read_lines};
use serde::{Deserialize, Serialize};

use crate::compare::{CompareError, compare_manifests, read_manifest};
use crate::report::write_whole;

/// What is followed from step to step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Series {
    /// None for a column of the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// A tensor, or a column of the metrics.
    pub name: String,
}

/// Which of a series' two measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The Euclidean distance of two tensors, by their sketches.
    Distance,
    /// The difference of two norms, or of two numbers of the metrics.
    Value,
}

/// How many times its spread a measure may be, for all series of a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factor {
    pub measure: Measure,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    pub factor: f64,
    /// Of each perturbed run: the largest of its distances, each ÷ the spread of the other runs.
    pub largest: Vec<f64>,
}

/// `envelope.json`: what the envelope is of, and how it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Of the record that it belongs to ([`lockstep_record::RECORD_VERSION`]).
    pub record_version: u32,
    /// The golden run's manifest, without its segments.
    pub golden: Manifest,
    /// Of the golden run's `digests.jsonl`.
    pub golden_digests: Digest,
    pub perturbed: Perturbed,
    pub unit: Unit,
    /// One a perturbed run.
    pub seeds: Vec<u64>,
    /// Micro-batches of a step: the terms of the sum.
    pub terms: u64,
    /// How many times farther another order of additions can move the sum than the perturbation did.
    pub sum_factor: f64,
    /// The probability, as argued in docs/tolerance.md, that a candidate without a fault is called different.
    pub false_alarms: f64,
    pub factors: Vec<Factor>,
    pub series: Vec<Series>,
}

/// A line of `envelope.jsonl`: the spreads of one step, by the header's list of series. None where nothing was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spreads {
    pub step: u64,
    pub distance: Vec<Option<Real>>,
    pub value: Vec<Option<Real>>,
}

/// An envelope in memory.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub header: Header,
    pub steps: Vec<Spreads>,
    places: HashMap<(Option<Phase>, Option<u32>), HashMap<String, usize>>,
    by_step: HashMap<u64, usize>,
    factors: HashMap<(Measure, Option<Phase>), f64>,
}

fn header_path(run: &RunDir) -> PathBuf {
    run.tolerance().join("envelope.json")
}

fn lines_path(run: &RunDir) -> PathBuf {
    run.tolerance().join("envelope.jsonl")
}

impl Envelope {
    pub fn new(header: Header, steps: Vec<Spreads>) -> Self {
        let mut places: HashMap<_, HashMap<String, usize>> = HashMap::new();
        for (index, series) in header.series.iter().enumerate() {
            let names = places.entry((series.phase, series.micro_batch)).or_default();
            names.insert(series.name.clone(), index);
        }
        let by_step = steps.iter().enumerate().map(|(index, spreads)| (spreads.step, index)).collect();
        let factor = |factor: &Factor| ((factor.measure, factor.phase), factor.factor);
        let factors = header.factors.iter().map(factor).collect();
        Self { header, steps, places, by_step, factors }
    }

    /// The files of a golden run's envelope.
    pub fn files(run: &RunDir) -> [PathBuf; 2] {
        [header_path(run), lines_path(run)]
    }

    /// Reads the envelope of a golden run, and refuses one that was made of another run.
    pub fn load(run: &RunDir, golden: &Manifest) -> Result<Self, CompareError> {
        let path = header_path(run);
        if !path.exists() {
            return Err(CompareError::NoEnvelope(run.path().to_owned()));
        }
        let header: Header = read_manifest(&path)?;
        let refuse = |problem: String| CompareError::malformed(&path, problem);
        let (checks, _) = compare_manifests(&header.golden, golden);
        if let Some(difference) = checks.iter().find_map(|check| check.first.as_ref()) {
            return Err(refuse(format!(
                "an envelope of another golden run: {}: the envelope's has {}, this one {}. Remove {} and make it anew with \
                 `lockstep-harness tolerance`",
                difference.place.what,
                difference.golden,
                difference.candidate,
                run.tolerance().display(),
            )));
        }
        if header.golden_digests != file_digest(&run.digests())? {
            return Err(refuse(format!(
                "the golden run's digests are not those that the envelope was made of: it was trained again. Remove {} and \
                 make it anew with `lockstep-harness tolerance`",
                run.tolerance().display()
            )));
        }
        let path = lines_path(run);
        let steps = read_lines::<Spreads>(&path)?.collect::<Result<Vec<_>, _>>()?;
        let series = header.series.len();
        if let Some(line) =
            steps.iter().position(|line| line.distance.len() != series || line.value.len() != series)
        {
            let problem = format!("line {}: not one entry for each of the {series} series", line + 1);
            return Err(CompareError::malformed(&path, problem));
        }
        Ok(Self::new(header, steps))
    }

    /// Writes the envelope beside the golden run's record.
    pub fn write(&self, run: &RunDir) -> Result<(), CompareError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| CompareError::malformed(&path, error)
        };
        let folder = run.tolerance();
        std::fs::create_dir_all(&folder).map_err(fail(&folder))?;
        let mut lines = String::new();
        for spreads in &self.steps {
            let line = serde_json::to_string(spreads)
                .map_err(|error| CompareError::malformed(&lines_path(run), error))?;
            lines += &line;
            lines.push('\n');
        }
        write_whole(&lines_path(run), &lines).map_err(fail(&lines_path(run)))?;
        let header = serde_json::to_string_pretty(&self.header)
            .map_err(|error| CompareError::malformed(&header_path(run), error))?;
        write_whole(&header_path(run), &(header + "\n")).map_err(fail(&header_path(run)))
    }

    /// How far a candidate may be at a place. None where the envelope knows nothing.
    pub fn bound(&self, measure: Measure, step: u64, at: (Option<Phase>, Option<u32>, &str)) -> Option<f64> {
        let (phase, micro_batch, name) = at;
        let series = *self.places.get(&(phase, micro_batch))?.get(name)?;
        self.bound_of(measure, *self.by_step.get(&step)?, series)
    }

    /// The same by position in the lists of steps and series.
    pub fn bound_of(&self, measure: Measure, step: usize, series: usize) -> Option<f64> {
        let spreads = match measure {
            Measure::Distance => &self.steps[step].distance,
            Measure::Value => &self.steps[step].value,
        };
        let factor = self.factors.get(&(measure, self.header.series[series].phase))?;
        Some(spreads[series]?.0 * factor * self.header.sum_factor)
    }

    /// What a comparison prints of it.
    pub fn describe(&self) -> String {
        let Header { perturbed, unit, seeds, false_alarms, .. } = &self.header;
        let alarms = 100.0 * false_alarms;
        format!(
            "the bounds are those of {} runs with --perturb {perturbed} in units of {unit}; a false alarm is to come in {alarms}% \
             of comparisons",
            seeds.len()
        )
    }
}

/// A digest of a file, in constant memory.
pub fn file_digest(path: &Path) -> Result<Digest, CompareError> {
    use std::io::Read;
    let fail = |error: io::Error| CompareError::malformed(path, error);
    let (mut file, _) = lockstep_record::open_plain_file(path)?;
    let (mut window, mut blocks) = (vec![0; 1 << 20], Vec::new());
    loop {
        let mut filled = 0;
        while filled < window.len() {
            match file.read(&mut window[filled..]).map_err(fail)? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        blocks.extend(lockstep_record::block_digests(&window[..filled], window.len()));
        if filled < window.len() {
            return Ok(lockstep_record::tensor_digest(blocks));
        }
    }
}
