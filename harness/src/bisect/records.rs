//! The first pass: where two runs part, from what they wrote down anyway. Nothing is launched.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use lockstep_record::{
    DigestLine, Outcome, Phase as Recorded, RunDir, SampleLine, Segment, StepLine, read_lines,
};

use super::checkpoints::{self, Own};
use super::ending;
use super::finding::{Finding, Phase, Seen};
use super::masks;
use super::part::{Item, Pair, Parted, joined, part};
use super::segments::{execution_of, resumed_before};
use super::steps::{StepRecord, Steps};
use crate::compare::{CompareError, Join, Run, Value, compare_manifests};

/// The first place at which two run directories part; None if everything that both recorded agrees.
pub fn bisect_records(golden: &Path, candidate: &Path) -> anyhow::Result<Option<Finding>> {
    let golden = Run::open(golden)?;
    let candidate = match Run::open(candidate) {
        Err(CompareError::NotARun(path)) if path.is_dir() => {
            return Ok(Some(ending::never_began(&RunDir::new(path))));
        }
        run => run?,
    };
    let walk = Walk::along(&golden, &candidate)?;
    if walk.compared == 0 && walk.first.is_none() {
        bail!(
            "{} and {} have no step in common, so nothing is known about them",
            golden.dir.path().display(),
            candidate.dir.path().display()
        );
    }
    let before = walk.first.as_ref().and_then(|finding| finding.step);
    let checkpoint = checkpoints::first_difference(&golden.dir, &candidate.dir, before, &walk.own)?;
    let first = checkpoint.or(walk.first).or_else(|| ending::compare(&golden, &candidate));
    let (configuration, reasons) = compare_manifests(&golden.manifest, &candidate.manifest);
    let asked = configuration.iter().find_map(|check| check.first.as_ref());
    let mut finding = match (first, asked) {
        (None, None) => return Ok(None),
        (Some(finding), _) => finding,
        (None, Some(_)) => {
            let mut finding = Finding::new(None, Phase::Outcome);
            finding.candidate.text =
                "all that both runs recorded agrees, but they were asked for different results".into();
            finding
        }
    };
    if let Some(difference) = asked {
        let (what, left, right) = (&difference.place.what, &difference.golden, &difference.candidate);
        finding.hints.push(format!("the runs were asked for different results: {what} is {left} in the golden run and {right} in the candidate"));
    }
    finding.hints.extend(reasons.into_iter().take(3));
    Ok(Some(finding.conclude()))
}

/// What came of walking both records step by step.
struct Walk {
    /// Steps that both have.
    compared: u64,
    first: Option<Finding>,
    /// What the candidate's digests said at the steps of its checkpoints.
    own: Own,
}

impl Walk {
    fn along(golden: &Run, candidate: &Run) -> anyhow::Result<Self> {
        let segments = &candidate.manifest.segments;
        let first_step = first_step(golden).max(first_step(candidate));
        let saved = candidate.dir.checkpoint_steps().context("the candidate's checkpoints")?;
        let mut walk = Self { compared: 0, first: None, own: BTreeMap::new() };
        let mut agreed_until = None;
        for pair in Join::new(Steps::open(&golden.dir)?, Steps::open(&candidate.dir)?) {
            let pair = pair?;
            if pair.step.saturating_add(1) < first_step {
                continue;
            }
            let (left, right) = match (pair.golden, pair.candidate) {
                (Some(left), Some(right)) => (left, right),
                (left, _) if pair.step >= first_step => {
                    walk.first = Some(ending::at(golden, candidate, pair.step, left.is_some(), agreed_until));
                    return Ok(walk);
                }
                _ => continue,
            };
            if saved.contains(&pair.step) {
                walk.own.insert(pair.step, state_lines(&right.digests));
            }
            let world = execution_of(segments, pair.step)
                .and_then(|at| segments.get(at.segment))
                .map(|s| s.world_size);
            let sides = Pair { golden: &left, candidate: &right, world };
            if let Some(parted) = part(sides) {
                let mut finding = tell(pair.step, &parted, world);
                finding.agreed_until = agreed_until;
                if golden.manifest.program.name == candidate.manifest.program.name {
                    finding.masks = masks::apart(sides, &finding);
                }
                finding.hints.extend(hints(golden, &right, &finding, segments));
                walk.first = Some(finding);
                return Ok(walk);
            }
            if left.metrics.is_some() != right.metrics.is_some() {
                let finding = ending::at(golden, candidate, pair.step, left.metrics.is_some(), agreed_until);
                walk.first = Some(finding);
                return Ok(walk);
            }
            walk.compared += u64::from(left.metrics.is_some());
            if left.has(Recorded::Parameters) && right.has(Recorded::Parameters) {
                agreed_until = Some(pair.step);
            }
        }
        Ok(walk)
    }
}

/// The first step that a run itself took.
pub fn first_step(run: &Run) -> u64 {
    run.manifest
        .segments
        .iter()
        .map(|segment| segment.from_step)
        .min()
        .map_or(1, |from| from.saturating_add(1))
}

/// Digests of the state, without those of gradients.
fn state_lines(lines: &[DigestLine]) -> Vec<DigestLine> {
    let state = |line: &&DigestLine| matches!(line.phase, Recorded::Parameters | Recorded::Optimizer);
    lines.iter().filter(state).cloned().collect()
}

/// A finding from the first phase that differs.
fn tell(step: u64, parted: &Parted, world: Option<u32>) -> Finding {
    let item = &parted.items[0];
    let computed = matches!(parted.phase, Phase::Data | Phase::Forward | Phase::LocalGradient);
    let ranks = match computed {
        true => joined(parted.items.iter().flat_map(|item| item.ranks.iter().copied())),
        false => item.ranks.clone(),
    };
    let mut finding = Finding::new(Some(step), parted.phase)
        .with_values(&item.golden, &item.candidate)
        .with_ranks(ranks, world);
    if let Some((golden, candidate)) = item.norms {
        let seen = |value: &Value, norm: f64| Seen {
            text: format!("{value} with norm {norm:?}"),
            ..Seen::default()
        };
        finding.golden = seen(&item.golden, golden);
        finding.candidate = seen(&item.candidate, candidate);
    }
    finding.tensor = Some(item.what.clone());
    finding.micro_batch = item.micro_batch;
    finding.count = parted.items.len() as u64;
    finding.agree.clone_from(&parted.agree);
    finding.unknown.clone_from(&parted.unknown);
    finding.hints.extend(ratio(item));
    finding
}

/// A factor that is a whole number, or one over one, says much.
fn ratio(item: &Item) -> Option<String> {
    let (golden, candidate) = match (item.norms, &item.golden, &item.candidate) {
        (Some(norms), ..) => norms,
        (None, Value::Scalar(golden), Value::Scalar(candidate)) => (golden.to_f64(), candidate.to_f64()),
        _ => return None,
    };
    let whose = if item.norms.is_some() { "its norm is" } else { "the candidate's is" };
    whole_ratio(golden, candidate).map(|ratio| format!("{whose} {ratio} the golden one"))
}

/// `4 times` or `1/4 of`.
pub fn whole_ratio(golden: f64, candidate: f64) -> Option<String> {
    let near = |ratio: f64| (2..=1024).find(|&k| (ratio / f64::from(k) - 1.0).abs() < 1e-5);
    match (near(candidate / golden), near(golden / candidate)) {
        _ if candidate == 0.0 && golden != 0.0 => Some("zero instead of".into()),
        (Some(k), _) => Some(format!("{k} times")),
        (_, Some(k)) => Some(format!("1/{k} of")),
        _ => None,
    }
}

/// What else in the records speaks for a cause.
fn hints(golden: &Run, candidate: &StepRecord, finding: &Finding, segments: &[Segment]) -> Vec<String> {
    let mut hints = Vec::new();
    let step = candidate.step;
    if resumed_before(segments, step)
        && let Some(segment) = execution_of(segments, step).and_then(|at| segments.get(at.segment))
    {
        let (from, ranks, strategy) = (step - 1, segment.world_size, &segment.strategy);
        hints.push(format!(
            "the candidate had just been resumed from step {from}, on {ranks} rank(s) with {strategy}"
        ));
    }
    match (finding.phase, finding.tensor.as_deref()) {
        (Phase::Schedule, _) => {
            let rate = candidate.metrics.as_ref().map(|line| line.learning_rate);
            let same = |line: &StepLine| Some(line.learning_rate) == rate;
            hints.extend(
                elsewhere(&golden.dir.metrics(), step, same, |line: &StepLine| line.step)
                    .map(|other| format!("it is the golden run's rate of step {other}")),
            );
        }
        (Phase::Data, Some("sample ids")) => {
            let same = |line: &SampleLine| {
                candidate.samples.as_ref().is_some_and(|samples| samples.micro_batches == line.micro_batches)
            };
            hints.extend(
                elsewhere(&golden.dir.samples(), step, same, |line: &SampleLine| line.step)
                    .map(|other| format!("they are the golden run's samples of step {other}")),
            );
            hints.extend(twice(candidate));
        }
        _ => {}
    }
    hints
}

/// The nearest other step whose line is the same.
fn elsewhere<T: serde::de::DeserializeOwned>(
    path: &Path,
    step: u64,
    same: impl Fn(&T) -> bool,
    step_of: impl Fn(&T) -> u64,
) -> Option<u64> {
    let lines = read_lines::<T>(path).ok()?.map_while(Result::ok);
    lines
        .filter(same)
        .map(|line| step_of(&line))
        .filter(|&other| other != step)
        .min_by_key(|other| other.abs_diff(step))
}

/// Whether a sample is in the step more than once, which a sampler without replacement never does within an epoch.
fn twice(record: &StepRecord) -> Option<String> {
    let ids = record.samples.as_ref()?.micro_batches.iter().enumerate();
    let mut seen = BTreeMap::new();
    for (index, id) in ids.flat_map(|(index, ids)| ids.iter().map(move |id| (index, *id))) {
        if let Some(other) = seen.insert(id, index) {
            return Some(format!("sample {id} is in micro-batches {other} and {index}"));
        }
    }
    None
}

/// How a run ended, for people.
pub fn outcome_text(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Finished) => "finished",
        Some(Outcome::Stopped) => "stopped as asked",
        Some(Outcome::Preempted) => "stopped by a signal",
        None => "recorded no end: killed, crashed, hung, or still running",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_factors_are_noticed_and_others_are_not() {
        assert_eq!(whole_ratio(0.5, 2.0).as_deref(), Some("4 times"));
        assert_eq!(whole_ratio(3.0, 1.000_001).as_deref(), Some("1/3 of"));
        assert_eq!(whole_ratio(3.0, 0.0).as_deref(), Some("zero instead of"));
        for (golden, candidate) in [(1.0, 1.0), (1.0, 1.5), (0.0, 0.0), (f64::NAN, 2.0), (1.0, f64::INFINITY)]
        {
            assert_eq!(whole_ratio(golden, candidate), None, "{golden} {candidate}");
        }
    }
}
