//! Whether all ranks hold the same, and all of it was recorded.

use std::collections::{BTreeSet, HashMap, HashSet};

use lockstep_record::{Digest, DigestLine, Phase, RankRange, rank_ranges};

use super::super::facts::{Context, File, Numbered, StepFacts};
use super::super::finding::{Finding, Looked};
use crate::compare::rank_text;

fn rank_count(ranks: &[RankRange]) -> u64 {
    ranks.iter().map(|&(first, last)| (u64::from(last) + 1).saturating_sub(u64::from(first))).sum()
}

type Key<'a> = (Phase, Option<u32>, &'a str);

/// Lines of the same thing, in the order of the file.
fn by_tensor(step: &StepFacts) -> (Vec<Key<'_>>, HashMap<Key<'_>, Vec<&Numbered<DigestLine>>>) {
    let (mut order, mut lines) = (Vec::new(), HashMap::<_, Vec<_>>::new());
    for line in &step.digests {
        let key = (line.phase, line.micro_batch, line.tensor.as_str());
        let held = lines.entry(key).or_default();
        if held.is_empty() {
            order.push(key);
        }
        held.push(line);
    }
    (order, lines)
}

/// All ranks that have a tensor have the same bits of it.
pub fn agreement(_: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let (order, lines) = by_tensor(step);
    for key in order {
        let lines = &lines[&key];
        let Some(most) = lines.iter().rev().max_by_key(|line| rank_count(&line.ranks)) else { continue };
        if lines.len() == 1 && rank_count(&most.ranks) < 2 {
            continue;
        }
        looked.facts += 1;
        for line in lines.iter().filter(|line| line.digest != most.digest) {
            let message = format!(
                "{}: not the bits that rank {} holds (line {}): norm {} against {}",
                line.phase,
                rank_text(&most.ranks),
                most.line,
                line.norm,
                most.norm
            );
            let finding = Finding::new(File::Digests.name(), Some(line.line), message).at(step.step);
            looked
                .findings
                .push(finding.of(&line.tensor).in_micro_batch(line.micro_batch).on(line.ranks.clone()));
        }
    }
    looked
}

/// The ranks of the world recorded their copies, and no others did.
pub fn coverage(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let world = context.world(step.step);
    let (order, lines) = by_tensor(step);
    // What a micro-batch has is recorded by the rank that worked on it.
    for key in order.into_iter().filter(|key| key.0 != Phase::LocalGradient && key.1.is_none()) {
        let lines = &lines[&key];
        // Ranges as they stand: a hostile one may span four billion ranks.
        let mut ranges: Vec<RankRange> = lines.iter().flat_map(|line| line.ranks.iter().copied()).collect();
        ranges.sort_unstable();
        let mut next = 0u64;
        let mut gap = false;
        for (first, last) in ranges {
            gap |= u64::from(first) > next;
            next = next.max(u64::from(last) + 1);
        }
        looked.holds(!gap && next == u64::from(world), || {
            let ranks: Vec<RankRange> = lines.iter().flat_map(|line| line.ranks.iter().copied()).collect();
            let message =
                format!("{}: {world} ranks were at work, but rank {} recorded it", key.0, rank_text(&ranks));
            Finding::new(File::Digests.name(), Some(lines[0].line), message).at(step.step).of(key.2)
        });
    }
    looked
}

/// A phase that is there has every tensor of the model, in its order, once.
pub fn tensors(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let model: Vec<&str> = context.manifest.model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let known: HashSet<&str> = model.iter().copied().collect();
    for phase in [Phase::ReducedGradient, Phase::Parameters] {
        let lines = step.tensors(phase);
        let Some(first) = lines.first() else { continue };
        let found: Vec<&str> = lines.iter().map(|line| line.tensor.as_str()).collect();
        let missing: Vec<&str> = match phase {
            Phase::Parameters => {
                let found: HashSet<&str> = found.iter().copied().collect();
                model.iter().copied().filter(|name| !found.contains(name)).collect()
            }
            // Those of frozen and of unused parameters are absent.
            _ => Vec::new(),
        };
        let strange = lines.iter().find(|line| !known.contains(line.tensor.as_str()));
        let expected: Vec<&str> = model.iter().copied().filter(|name| found.contains(name)).collect();
        let finding = |line: u64, message: String| {
            Finding::new(File::Digests.name(), Some(line), message).at(step.step)
        };
        looked.fact(if let Some(line) = strange {
            Some(
                finding(line.line, format!("the model has no tensor of this name ({phase})"))
                    .of(&line.tensor),
            )
        } else if let Some(name) = missing.first() {
            let message =
                format!("{} of the model's tensors have no digest in this phase ({phase})", missing.len());
            Some(finding(first.line, message).of(*name))
        } else if expected != found {
            Some(finding(first.line, format!("tensors are not in the model's order ({phase})")))
        } else {
            None
        });
    }
    looked
}

/// Nothing that changes from step to step, or from micro-batch to micro-batch, is the same twice.
pub fn repeats(_: &Context, before: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    if let Some(before) = before.filter(|before| before.step + 1 == step.step) {
        let earlier: HashMap<&str, Digest> = before
            .tensors(Phase::ReducedGradient)
            .iter()
            .map(|line| (line.tensor.as_str(), line.digest))
            .collect();
        for line in step.tensors(Phase::ReducedGradient).into_iter().filter(|line| line.norm.0 > 0.0) {
            let Some(digest) = earlier.get(line.tensor.as_str()) else { continue };
            looked.holds(*digest != line.digest, || {
                let message = "the reduced gradient has the bits of the step before";
                Finding::new(File::Digests.name(), Some(line.line), message).at(step.step).of(&line.tensor)
            });
        }
    }
    let mut first: HashMap<(&str, Digest), &Numbered<DigestLine>> = HashMap::new();
    for line in step.tensors(Phase::LocalGradient).into_iter().filter(|line| line.norm.0 > 0.0) {
        looked.facts += 1;
        if let Some(other) = first.insert((line.tensor.as_str(), line.digest), line) {
            let twin = other.micro_batch.unwrap_or_default();
            let message =
                format!("the local gradient has the bits of micro-batch {twin}'s (line {})", other.line);
            let finding = Finding::new(File::Digests.name(), Some(line.line), message).at(step.step);
            looked
                .findings
                .push(finding.of(&line.tensor).in_micro_batch(line.micro_batch).on(line.ranks.clone()));
        }
    }
    looked
}

/// Parameters that have a gradient move.
pub fn stale(context: &Context, before: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(before) = before.filter(|before| before.step + 1 == step.step) else { return looked };
    let Some(metrics) =
        step.metrics.as_ref().filter(|line| line.skipped_for.is_none() && line.unused_parameters == 0)
    else {
        return looked;
    };
    let rate = metrics.learning_rate.0 * metrics.clip_coefficient.0.min(1.0);
    let earlier: HashMap<&str, Digest> =
        before.tensors(Phase::Parameters).iter().map(|line| (line.tensor.as_str(), line.digest)).collect();
    let adaptive = context.text("optim.kind").is_none_or(|kind| kind.contains("adam"));
    let sizes: HashMap<&str, f64> = context
        .manifest
        .model
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.iter().map(|&size| size as f64).product()))
        .collect();
    for line in step.tensors(Phase::Parameters) {
        let name = line.tensor.as_str();
        let (Some(digest), Some(gradient)) = (earlier.get(name), step.norm(Phase::ReducedGradient, name))
        else {
            continue;
        };
        // An update can be lost in rounding where it is below half a unit in the last place of every element.
        let update = if adaptive {
            metrics.learning_rate.0 * sizes.get(name).map_or(0.0, |n| n.sqrt())
        } else {
            rate * gradient
        };
        if gradient > 0.0 && update > 1e-5 * line.norm.0 {
            looked.holds(*digest != line.digest, || {
                let message = format!("the parameters have the bits of the step before, though their gradient has norm {gradient}");
                Finding::new(File::Digests.name(), Some(line.line), message).at(step.step).of(name).on(line.ranks.clone())
            });
        }
    }
    looked
}

/// Ranks as the manifest lists them.
pub fn listed(ranks: impl IntoIterator<Item = u32>) -> Vec<RankRange> {
    rank_ranges(ranks.into_iter().collect::<BTreeSet<_>>())
}
