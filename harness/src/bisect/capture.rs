//! The second pass: two captures of one step side by side, down to the element.

use std::collections::BTreeMap;
use std::path::Path;

use lockstep_record::{
    CaptureGroup, CaptureManifest, CapturedTensor, CheckpointManifest, Digest, RankRange, RunDir,
    TensorEntry, TrainingState,
};

use super::elements::compare_streams;
use super::explain;
use super::finding::{Evidence, Finding, Phase};
use super::part::{joined, rank_count};
use crate::compare::{Checkpoint, CompareError, Format, Scalar, Value, read_manifest};

/// The largest tensor, in elements, of which causes are tried.
const EXPLAINED_MAX: u64 = 1 << 24;

/// A captured step of a run.
pub struct Capture {
    pub manifest: CaptureManifest,
    pub archive: Checkpoint,
}

impl Capture {
    /// None if the run has no capture of this step.
    pub fn open(run: &RunDir, step: u64) -> Result<Option<Self>, CompareError> {
        let folder = run.capture(step);
        if !folder.join("manifest.json").exists() {
            return Ok(None);
        }
        let manifest: CaptureManifest = read_manifest(&folder.join("manifest.json"))?;
        if manifest.step != step {
            let problem = format!("it is of step {}, not {step}", manifest.step);
            return Err(CompareError::malformed(&folder.join("manifest.json"), problem));
        }
        let archive = Checkpoint::of(folder, files_only(&manifest));
        Ok(Some(Self { manifest, archive }))
    }

    /// All values that ranks hold of a tensor.
    pub fn values(&self, group: CaptureGroup, micro_batch: Option<u32>, name: &str) -> Vec<&CapturedTensor> {
        let wanted = |tensor: &&CapturedTensor| {
            tensor.group == group && tensor.micro_batch == micro_batch && tensor.tensor.name == name
        };
        self.manifest.tensors.iter().filter(wanted).collect()
    }

    /// The value that most ranks hold; of equals, the first.
    pub fn majority(
        &self,
        group: CaptureGroup,
        micro_batch: Option<u32>,
        name: &str,
    ) -> Option<&CapturedTensor> {
        self.values(group, micro_batch, name).into_iter().rev().max_by_key(|tensor| rank_count(&tensor.ranks))
    }

    fn has(&self, group: CaptureGroup) -> bool {
        self.manifest.tensors.iter().any(|tensor| tensor.group == group)
    }

    /// The bucket of a parameter, and its first element there.
    pub fn slot(&self, name: &str) -> Option<(usize, u64)> {
        let parameter = name.rsplit_once('/').map_or(name, |(_, name)| name);
        self.manifest.buckets.iter().enumerate().find_map(|(index, bucket)| {
            let slot = bucket.parameters.iter().find(|slot| slot.tensor == parameter)?;
            Some((index, slot.offset))
        })
    }

    /// The rank whose shard of the bucket holds all elements from `first` to `last` of a parameter.
    pub fn owner(&self, name: &str, (first, last): (u64, u64)) -> Option<u32> {
        let (bucket, offset) = self.slot(name)?;
        let shards = &self.manifest.buckets.get(bucket)?.shards;
        let (first, last) = (offset.checked_add(first)?, offset.checked_add(last)?);
        let inside = |&(start, end): &(u64, u64)| start <= first && last < end;
        shards.iter().position(inside).filter(|_| shards.len() > 1).and_then(|rank| u32::try_from(rank).ok())
    }
}

/// What reading tensors by their pieces needs of a manifest.
fn files_only(manifest: &CaptureManifest) -> CheckpointManifest {
    let state = TrainingState {
        step: manifest.step,
        seed: 0,
        samples_seen: 0,
        optimizer: String::new(),
        tokenizer_digest: String::new(),
        data_digest: String::new(),
        world_size: manifest.world_size,
        strategy: manifest.strategy.clone(),
        updates_left_out: Default::default(),
        skipped_in_a_row: 0,
        loss_scale: None,
    };
    let files = manifest.files.clone();
    CheckpointManifest { record_version: manifest.record_version, state, files, tensors: Vec::new() }
}

/// The first place, in the order of events, at which two captures of a step part.
pub fn compare_captures(
    golden: &mut Capture,
    candidate: &mut Capture,
) -> Result<Option<Finding>, CompareError> {
    let mut agree: Vec<Phase> = Vec::new();
    for stage in STAGES {
        let found = match stage {
            Stage::Inputs => inputs(golden, candidate),
            Stage::Losses => losses(golden, candidate),
            Stage::Norm => norm(golden, candidate)?,
            Stage::Rate => rate(golden, candidate),
            Stage::Tensors(group) => tensors(golden, candidate, group)?,
        };
        if let Some(mut finding) = found {
            finding.evidence = Evidence::Capture;
            agree.retain(|phase| *phase != finding.phase);
            finding.agree = agree;
            return Ok(Some(finding));
        }
        if let Some(phase) = stage.phase().filter(|phase| !agree.contains(phase)) {
            agree.push(phase);
        }
    }
    Ok(None)
}

/// What is compared, in the order of events.
#[derive(Clone, Copy)]
enum Stage {
    Inputs,
    Losses,
    Norm,
    Rate,
    Tensors(CaptureGroup),
}

const STAGES: [Stage; 10] = [
    Stage::Tensors(CaptureGroup::ParametersBefore),
    Stage::Tensors(CaptureGroup::OptimizerBefore),
    Stage::Inputs,
    Stage::Losses,
    Stage::Tensors(CaptureGroup::LocalGradient),
    Stage::Tensors(CaptureGroup::ReducedGradient),
    Stage::Norm,
    Stage::Rate,
    Stage::Tensors(CaptureGroup::Optimizer),
    Stage::Tensors(CaptureGroup::Parameters),
];

impl Stage {
    /// What agrees once it is passed; the state before the step is said otherwise.
    fn phase(self) -> Option<Phase> {
        match self {
            Self::Inputs => Some(Phase::Data),
            Self::Losses => Some(Phase::Forward),
            Self::Norm => Some(Phase::Norm),
            Self::Rate => Some(Phase::Schedule),
            Self::Tensors(CaptureGroup::ParametersBefore | CaptureGroup::OptimizerBefore) => None,
            Self::Tensors(group) => Some(phase(group)),
        }
    }
}

fn phase(group: CaptureGroup) -> Phase {
    match group {
        CaptureGroup::ParametersBefore | CaptureGroup::Parameters => Phase::Parameters,
        CaptureGroup::OptimizerBefore | CaptureGroup::Optimizer => Phase::Optimizer,
        CaptureGroup::LocalGradient => Phase::LocalGradient,
        CaptureGroup::ReducedGradient => Phase::ReducedGradient,
    }
}

fn number(
    finding: Finding,
    golden: lockstep_record::Real,
    candidate: lockstep_record::Real,
    format: Format,
) -> Finding {
    let (left, right) = (Scalar::of_real(golden, format), Scalar::of_real(candidate, format));
    finding.with_values(&Value::Scalar(left), &Value::Scalar(right))
}

fn inputs(golden: &Capture, candidate: &Capture) -> Option<Finding> {
    let (left, right) = (&golden.manifest.micro_batches, &candidate.manifest.micro_batches);
    let step = Some(candidate.manifest.step);
    if left.len() != right.len() {
        let count = |count: usize| Value::text(format!("{count} micro-batches"));
        let mut finding =
            Finding::new(step, Phase::Data).with_values(&count(left.len()), &count(right.len()));
        finding.tensor = Some("sample ids".into());
        return Some(finding);
    }
    let fact = |index: usize| {
        let (left, right) = (&left[index], &right[index]);
        if left.samples != right.samples {
            let ids = |ids: &[u64]| Value::text(format!("{ids:?}"));
            return Some(("sample ids", ids(&left.samples), ids(&right.samples)));
        }
        let facts = [("inputs", left.inputs, right.inputs), ("targets", left.targets, right.targets)];
        if let Some((what, left, right)) = facts.into_iter().find(|(_, left, right)| left != right) {
            return Some((what, Value::Digest(left), Value::Digest(right)));
        }
        let other = |others: &BTreeMap<String, Digest>, name: &str| {
            others.get(name).map_or(Value::Absent, |&digest| Value::Digest(digest))
        };
        let names = left.others.keys().chain(right.others.keys());
        let name = names.into_iter().find(|&name| left.others.get(name) != right.others.get(name))?;
        Some((name.as_str(), other(&left.others, name), other(&right.others, name)))
    };
    let different: Vec<usize> = (0..left.len()).filter(|&index| fact(index).is_some()).collect();
    let (what, golden, other) = fact(*different.first()?)?;
    let mut finding = Finding::new(step, Phase::Data).with_values(&golden, &other);
    finding.tensor = Some(what.into());
    Some(of_micro_batches(finding, &different, candidate))
}

/// Names the first of the micro-batches that differ, and who computed them.
fn of_micro_batches(finding: Finding, different: &[usize], candidate: &Capture) -> Finding {
    let ranks = different.iter().filter_map(|&index| candidate.manifest.micro_batches.get(index));
    let ranks = joined(ranks.map(|micro_batch| (micro_batch.rank, micro_batch.rank)));
    let mut finding = finding.with_ranks(ranks, Some(candidate.manifest.world_size));
    finding.micro_batch = different.first().and_then(|&index| u32::try_from(index).ok());
    finding.count = different.len() as u64;
    finding
}

fn losses(golden: &Capture, candidate: &Capture) -> Option<Finding> {
    let pairs = golden.manifest.micro_batches.iter().zip(&candidate.manifest.micro_batches).enumerate();
    let different: Vec<_> = pairs.filter(|(_, (left, right))| left.loss != right.loss).collect();
    let (_, (left, right)) = different.first()?;
    let finding = Finding::new(Some(candidate.manifest.step), Phase::Forward);
    let mut finding = number(finding, left.loss, right.loss, Format::F32);
    finding.tensor = Some("the loss".into());
    let indices: Vec<usize> = different.iter().map(|(index, _)| *index).collect();
    let mut finding = of_micro_batches(finding, &indices, candidate);
    finding.hints.push("the parameters and the inputs are the same".into());
    Some(finding)
}

fn norm(golden: &mut Capture, candidate: &mut Capture) -> Result<Option<Finding>, CompareError> {
    let (left, right) = (&golden.manifest, &candidate.manifest);
    let columns = [
        ("gradient_norm", left.gradient_norm, right.gradient_norm, Format::F64),
        ("clip_coefficient", left.clip_coefficient, right.clip_coefficient, Format::F32),
    ];
    let Some((what, left, right, format)) = columns.into_iter().find(|(_, left, right, _)| left != right)
    else {
        return Ok(None);
    };
    let mut finding = number(Finding::new(Some(candidate.manifest.step), Phase::Norm), left, right, format);
    finding.tensor = Some(what.into());
    if what == "gradient_norm" {
        finding.hints.extend(explain::norm(candidate)?);
    }
    Ok(Some(finding))
}

fn rate(golden: &Capture, candidate: &Capture) -> Option<Finding> {
    let (left, right) = (golden.manifest.learning_rate, candidate.manifest.learning_rate);
    let finding = Finding::new(Some(candidate.manifest.step), Phase::Schedule);
    let mut finding = (left != right).then(|| number(finding, left, right, Format::F64))?;
    finding.tensor = Some("learning_rate".into());
    Some(finding)
}

/// A tensor of which some ranks of the candidate hold another value than most ranks of the golden run.
struct Different {
    name: String,
    micro_batch: Option<u32>,
    golden: CapturedTensor,
    /// The first of the candidate's values that differ.
    candidate: CapturedTensor,
    /// All ranks that hold such values.
    ranks: Vec<RankRange>,
}

fn tensors(
    golden: &mut Capture,
    candidate: &mut Capture,
    group: CaptureGroup,
) -> Result<Option<Finding>, CompareError> {
    if !golden.has(group) || !candidate.has(group) {
        return Ok(None);
    }
    let (different, missing) = differences(golden, candidate, group);
    let step = Some(candidate.manifest.step);
    if let Some((name, in_golden)) = missing {
        let sides = [Value::text("captured"), Value::Absent];
        let [left, right] = if in_golden { sides } else { [Value::Absent, Value::text("captured")] };
        let mut finding = Finding::new(step, phase(group)).with_values(&left, &right);
        finding.tensor = Some(name);
        return Ok(Some(finding));
    }
    let Some(first) = different.first() else { return Ok(None) };
    let world = candidate.manifest.world_size;
    let ranks = match group {
        CaptureGroup::LocalGradient => joined(different.iter().flat_map(|other| other.ranks.iter().copied())),
        _ if rank_count(&first.ranks) >= u64::from(world) => Vec::new(),
        _ => joined(first.ranks.iter().copied()),
    };
    let mut finding = Finding::new(step, phase(group)).with_ranks(ranks, Some(world));
    finding.tensor = Some(first.name.clone());
    finding.micro_batch = first.micro_batch;
    finding.count = different.len() as u64;
    finding.bucket = candidate.slot(&first.name).map(|(bucket, _)| bucket);
    locate(&mut finding, first, golden, candidate)?;
    if matches!(group, CaptureGroup::ParametersBefore | CaptureGroup::OptimizerBefore) {
        finding.hints.insert(0, "it differs before the step begins".into());
    }
    finding.hints.extend(explain_tensor(first, &finding, golden, candidate)?);
    Ok(Some(finding))
}

/// All tensors of a group that differ, the likeliest cause first; or one that only one run has, and whether that is the
/// golden one.
fn differences(
    golden: &Capture,
    candidate: &Capture,
    group: CaptureGroup,
) -> (Vec<Different>, Option<(String, bool)>) {
    let mut different: Vec<Different> = Vec::new();
    let mut seen = Vec::new();
    for tensor in candidate.manifest.tensors.iter().filter(|tensor| tensor.group == group) {
        let (name, micro_batch) = (&tensor.tensor.name, tensor.micro_batch);
        seen.push((micro_batch, name.as_str()));
        let Some(reference) = golden.majority(group, micro_batch, name) else {
            return (Vec::new(), Some((name.clone(), false)));
        };
        if reference.tensor.digest == tensor.tensor.digest {
            continue;
        }
        match different.last_mut().filter(|last| last.name == *name && last.micro_batch == micro_batch) {
            Some(last) => last.ranks.extend(&tensor.ranks),
            None => different.push(Different {
                name: name.clone(),
                micro_batch,
                golden: reference.clone(),
                candidate: tensor.clone(),
                ranks: tensor.ranks.clone(),
            }),
        }
    }
    let absent = |tensor: &&CapturedTensor| {
        tensor.group == group && !seen.contains(&(tensor.micro_batch, tensor.tensor.name.as_str()))
    };
    let missing =
        golden.manifest.tensors.iter().find(absent).map(|tensor| (tensor.tensor.name.clone(), true));
    // Backward runs from the last layer to the first.
    if matches!(group, CaptureGroup::LocalGradient | CaptureGroup::ReducedGradient) {
        different.reverse();
        different.sort_by_key(|different| different.micro_batch);
    }
    (different, missing)
}

/// Adds the elements, their values, and the rank that owns them all.
fn locate(
    finding: &mut Finding,
    different: &Different,
    golden: &mut Capture,
    candidate: &mut Capture,
) -> Result<(), CompareError> {
    let (left, right) = (&different.golden.tensor, &different.candidate.tensor);
    if (&left.dtype, &left.shape) != (&right.dtype, &right.shape) {
        let form = |tensor: &TensorEntry| Value::text(format!("{} {:?}", tensor.dtype, tensor.shape));
        *finding = finding.clone().with_values(&form(left), &form(right));
        return Ok(());
    }
    let streams = [golden.archive.stream(left)?, candidate.archive.stream(right)?];
    let reading = compare_streams(&right.dtype, streams)?;
    for (capture, (entry, digest)) in
        [("golden", (left, reading.digests[0])), ("candidate", (right, reading.digests[1]))]
    {
        if entry.digest != digest {
            let problem = format!(
                "{}: the {capture} capture is damaged: its file does not have the digest of its manifest",
                entry.name
            );
            return Err(CompareError::malformed(Path::new("capture"), problem));
        }
    }
    let Some(elements) = reading.elements else { return Ok(()) };
    *finding = finding.clone().with_values(&elements.golden, &elements.candidate);
    finding.elements = Some((elements.first, elements.last));
    finding.differing = Some(elements.differing);
    let computed_by_shard =
        matches!(finding.phase, Phase::ReducedGradient | Phase::Optimizer | Phase::Parameters);
    if let Some(owner) = candidate.owner(&different.name, (elements.first, elements.last))
        && computed_by_shard
        && finding.rank.is_none()
    {
        let length = elements_of(right);
        let whole = elements.differing == length;
        finding.rank = usize::try_from(owner).ok();
        finding.hints.push(match different.candidate.sharded {
            _ if whole => format!("rank {owner} owns all of it"),
            true => format!("all of them in rank {owner}'s shard"),
            false => format!("all of them in the part that rank {owner} reduces"),
        });
        if different.candidate.sharded {
            finding.ranks = vec![(owner, owner)];
        }
    }
    Ok(())
}

fn elements_of(tensor: &TensorEntry) -> u64 {
    tensor.shape.iter().fold(1, |product: u64, &size| product.saturating_mul(size))
}

/// What the values themselves say about the cause.
fn explain_tensor(
    different: &Different,
    finding: &Finding,
    golden: &mut Capture,
    candidate: &mut Capture,
) -> Result<Vec<String>, CompareError> {
    let elements = elements_of(&different.candidate.tensor);
    let Some(range) = finding.elements.filter(|_| elements <= EXPLAINED_MAX) else { return Ok(Vec::new()) };
    if different.candidate.tensor.dtype != "F32" || different.golden.tensor.dtype != "F32" {
        return Ok(Vec::new());
    }
    let sides = explain::Sides { golden, candidate };
    explain::tensor(sides, &different.golden, &different.candidate, range)
}
