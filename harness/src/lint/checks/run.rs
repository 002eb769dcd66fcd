//! The run as a whole: its steps, its manifest, its end.

use std::path::Path;

use super::super::facts::{Context, File};
use super::super::finding::{Finding, Looked};
use super::super::history::History;
use super::replicas::listed;
use crate::compare::rank_text;

const MANIFEST: &str = "manifest.json";

/// Steps follow one another from the first to the last, once each, in every file.
pub fn steps(context: &Context, history: &History) -> Looked {
    let mut looked = Looked { facts: history.steps.len() as u64, findings: Vec::new() };
    for entry in &history.disorder {
        let message = format!(
            "step {} after step {}: lines of a step that was done again were not dropped",
            entry.step, entry.after
        );
        looked.findings.push(Finding::new(entry.file.name(), Some(entry.line), message).at(entry.step));
    }
    for (file, line, step) in &history.alone {
        let other = if *file == File::Metrics { File::Samples } else { File::Metrics };
        let message = format!("{} has no line of this step", other.name());
        looked.findings.push(Finding::new(file.name(), Some(*line), message).at(*step));
    }
    let mut expected =
        context.manifest.segments.first().map_or(1, |segment| segment.from_step.saturating_add(1));
    for step in &history.steps {
        if step.step != expected {
            let message = format!("step {expected} should be next");
            looked.findings.push(Finding::new(File::Metrics.name(), Some(step.line), message).at(step.step));
        }
        expected = step.step.saturating_add(1);
    }
    looked
}

/// The run came to its end, and the record with it.
pub fn ended(context: &Context, history: &History) -> Looked {
    let mut looked = Looked::default();
    for (file, line) in &history.truncated {
        looked.fact(Some(Finding::new(file.name(), Some(*line), "the last line is cut short")));
    }
    let Some(segment) = context.manifest.segments.last() else { return looked };
    let Some(ended) = &segment.ended else {
        looked.fact(Some(Finding::new(
            MANIFEST,
            None,
            "the last segment has no end: the run is still going on, or was killed",
        )));
        return looked;
    };
    let last = history.steps.last().map(|step| step.step);
    looked.holds(last.is_none_or(|last| last == ended.step), || {
        let last = last.unwrap_or_default();
        Finding::new(
            MANIFEST,
            None,
            format!("the run ended after step {}, but its metrics end with step {last}", ended.step),
        )
    });
    looked
}

/// The manifest lists the ranks that were at work, and segments in order.
pub fn world(context: &Context, _: &History) -> Looked {
    let mut looked = Looked::default();
    let mut earlier = None;
    for (index, segment) in context.manifest.segments.iter().enumerate() {
        let at =
            |message: String| Finding::new(Path::new(MANIFEST), None, format!("segment {index}: {message}"));
        let world = segment.world_size;
        looked.holds(world > 0, || at("world_size is 0".into()));
        if !segment.ranks.is_empty() {
            let ranks = listed(segment.ranks.iter().map(|rank| rank.rank));
            let whole = ranks == [(0, world.saturating_sub(1))] && segment.ranks.len() == world as usize;
            looked.holds(whole, || {
                at(format!("{world} ranks were at work, but rank {} are listed", rank_text(&ranks)))
            });
        }
        if let Some(count) = context.count("batch.micro_batches").filter(|_| context.is_ours()) {
            looked.holds(u64::from(world) <= count, || {
                at(format!("{world} ranks share {count} micro-batches"))
            });
        }
        let single = segment.strategy == "single" && world > 1;
        looked.holds(!single, || at(format!("{world} ranks with the strategy single: each trains alone")));
        looked.holds(earlier.is_none_or(|earlier| segment.from_step >= earlier), || {
            at(format!("starts from step {}, before the segment before it", segment.from_step))
        });
        earlier = Some(segment.from_step);
    }
    looked
}
