//! What a rank was doing when a collective timed out: its answer to the rank that asks, and all ranks' answers as one
//! short text.

use std::collections::BTreeMap;

use lockstep_record::{Channel, rank_ranges};
use serde::{Deserialize, Serialize};

use super::call::Title;

/// One rank's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Doing {
    /// The step that its training is in; 0 before the first.
    pub step: u64,
    /// The collectives in progress, the oldest first.
    pub waits: Vec<Collective>,
    /// The one that ended last.
    pub last: Option<Collective>,
}

/// A collective in an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collective {
    pub operation: String,
    pub bucket: Option<u64>,
    pub step: u64,
    pub channel: Channel,
    pub sequence: u64,
    /// Since its start if it is in progress, else since its end.
    pub seconds: f64,
}

impl Collective {
    /// `all-to-all of bucket 3, step 12 (data 412)`: the same on all ranks that take part in it.
    pub fn title(&self) -> String {
        let Self { operation, bucket, step, channel, sequence, .. } = self;
        format!("{} ({channel} {sequence})", Title { operation, bucket: *bucket, step: *step })
    }
}

/// The most lines that [`describe`] returns.
const LINES_MAX: usize = 20;
/// The most ranges of ranks in one line.
const RANGES_MAX: usize = 12;

/// What sets ranks apart, the likeliest culprits first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Silent,
    /// In no collective: the title of the last one.
    Outside(u64, Option<String>),
    Waiting(Vec<String>),
}

impl Group {
    fn of(answer: Option<&Doing>) -> Self {
        match answer {
            None => Self::Silent,
            Some(doing) if doing.waits.is_empty() => {
                Self::Outside(doing.step, doing.last.as_ref().map(Collective::title))
            }
            Some(doing) => Self::Waiting(doing.waits.iter().map(Collective::title).collect()),
        }
    }

    /// `seconds`: the longest among the group's ranks.
    fn text(&self, seconds: f64) -> String {
        match self {
            Self::Silent => "no answer: stopped, dead or unreachable".into(),
            Self::Outside(step, last) => {
                let place =
                    if *step == 0 { " before the first step".into() } else { format!(" in step {step}") };
                let last = match last {
                    Some(title) => format!("last collective: {title}, {seconds:.1} s ago"),
                    None => "no collective yet".into(),
                };
                format!("computing, or at a file,{place} ({last})")
            }
            Self::Waiting(titles) => format!("in {} for {seconds:.1} s", titles.join(" and ")),
        }
    }
}

/// One line for all ranks that do the same; `answers[rank]` is absent where none came. At most 20 lines.
pub fn describe(answers: &[Option<Doing>]) -> Vec<String> {
    let mut groups = BTreeMap::<Group, (Vec<u32>, f64)>::new();
    for (rank, answer) in answers.iter().enumerate() {
        let seconds = answer.as_ref().and_then(|doing| doing.waits.first().or(doing.last.as_ref()));
        let (ranks, longest) = groups.entry(Group::of(answer.as_ref())).or_default();
        ranks.push(rank as u32);
        *longest = seconds.map_or(0.0, |collective| collective.seconds).max(*longest);
    }
    let shown = if groups.len() > LINES_MAX { LINES_MAX - 1 } else { groups.len() };
    let rest: usize = groups.values().skip(shown).map(|(ranks, _)| ranks.len()).sum();
    let line = |(group, (ranks, seconds)): (&Group, &(Vec<u32>, f64))| {
        format!("{}: {}", ranks_text(ranks), group.text(*seconds))
    };
    let mut lines: Vec<String> = groups.iter().take(shown).map(line).collect();
    if rest > 0 {
        lines.push(format!("{rest} other ranks, in {} more groups", groups.len() - shown));
    }
    lines
}

/// `rank 3`, `ranks 0, 2-7`; many ranges are cut short.
pub fn ranks_text(ranks: &[u32]) -> String {
    let ranges = rank_ranges(ranks.iter().copied());
    let range = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let mut text = ranges.iter().take(RANGES_MAX).map(range).collect::<Vec<_>>().join(", ");
    if ranges.len() > RANGES_MAX {
        text += &format!(", … ({} ranks)", ranks.len());
    }
    format!("{} {text}", if ranks.len() == 1 { "rank" } else { "ranks" })
}

#[cfg(test)]
#[path = "doing_tests.rs"]
mod tests;
