//! The first collective of a channel that was not the same, or not finished, on all ranks.

use std::collections::BTreeMap;
use std::fmt;

use lockstep_record::{Channel, FlightLine, FlightState, RankRange, rank_ranges};

use super::Flight;
use crate::report::visible;

/// Where the ranks part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    pub channel: Channel,
    /// Number of the collective.
    pub sequence: u64,
    /// Ranks that did the same then, ascending by their first one.
    pub groups: Vec<(Vec<RankRange>, There)>,
}

/// What a rank did where the ranks part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum There {
    /// It called this.
    Called { call: Called, state: FlightState },
    /// It had not called that collective yet; `last` is the one that it called before.
    NeverCame { last: Option<(u64, Called, FlightState)> },
    /// It is in the world, but left no file.
    NoFile,
}

/// A collective, as far as all ranks must agree on it. Lengths may differ: shards do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Called {
    pub operation: String,
    pub bucket: Option<u64>,
    pub dtype: String,
}

impl Called {
    fn of(line: &FlightLine) -> Self {
        Self { operation: visible(&line.operation), bucket: line.bucket, dtype: visible(&line.dtype) }
    }
}

/// Finds it. Collectives that some rank no longer remembers are not looked at.
pub fn parting(flight: &Flight, channel: Channel) -> Option<Parting> {
    let of_rank = |lines: &[FlightLine]| -> BTreeMap<u64, FlightLine> {
        let lines = lines.iter().filter(|line| line.channel == channel);
        lines.map(|line| (line.sequence, line.clone())).collect()
    };
    let ranks: BTreeMap<u32, BTreeMap<u64, FlightLine>> =
        flight.ranks.iter().map(|(&rank, lines)| (rank, of_rank(lines))).collect();
    let remembered = ranks.values().filter_map(|lines| lines.keys().next()).max()?;
    // A gap in one rank's memory (another channel's collectives pushed some out) is no parting.
    let mut sequences: Vec<u64> =
        ranks.values().flat_map(|lines| lines.range(remembered..)).map(|line| *line.0).collect();
    sequences.sort_unstable();
    sequences.dedup();
    sequences.into_iter().find_map(|sequence| {
        let there: Vec<(u32, There)> =
            ranks.iter().filter_map(|(&rank, lines)| Some((rank, there(lines, sequence)?))).collect();
        let mut first = None;
        let same = there.iter().all(|(_, there)| match there {
            There::Called { call, state: FlightState::Done } => *first.get_or_insert(call) == call,
            _ => false,
        });
        (!same).then(|| Parting { channel, sequence, groups: grouped(flight, there) })
    })
}

/// What a rank did at this number; nothing is known if it has forgotten it.
fn there(lines: &BTreeMap<u64, FlightLine>, sequence: u64) -> Option<There> {
    if let Some(line) = lines.get(&sequence) {
        return Some(There::Called { call: Called::of(line), state: line.state });
    }
    if lines.range(sequence..).next().is_some() {
        return None;
    }
    let last = lines.last_key_value();
    Some(There::NeverCame { last: last.map(|(&sequence, line)| (sequence, Called::of(line), line.state)) })
}

fn grouped(flight: &Flight, there: Vec<(u32, There)>) -> Vec<(Vec<RankRange>, There)> {
    let mut groups = BTreeMap::<There, Vec<u32>>::new();
    for (rank, there) in there {
        groups.entry(there).or_default().push(rank);
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(there, ranks)| (rank_ranges(ranks), there)).collect();
    groups.extend(Some((silent(flight), There::NoFile)).filter(|(ranks, _)| !ranks.is_empty()));
    groups.sort_by_key(|(ranks, _)| ranks[0]);
    groups
}

/// The ranks of the world that left no file: never one by one, since a manifest may claim any number of ranks.
fn silent(flight: &Flight) -> Vec<RankRange> {
    let mut ranges = Vec::new();
    let mut next = 0;
    for &rank in flight.ranks.keys().filter(|rank| **rank < flight.world_size) {
        if rank > next {
            ranges.push((next, rank - 1));
        }
        next = rank + 1;
    }
    if next < flight.world_size {
        ranges.push((next, flight.world_size - 1));
    }
    ranges
}

impl fmt::Display for Called {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, bucket, dtype } = self;
        match bucket {
            Some(bucket) => write!(formatter, "{operation} of bucket {bucket} ({dtype})"),
            None => write!(formatter, "{operation} ({dtype})"),
        }
    }
}

impl fmt::Display for There {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Called { call, state } => write!(formatter, "{call}: {state}"),
            Self::NeverCame { last: Some((sequence, call, state)) } => {
                write!(formatter, "never came; its last was {sequence}, {call}: {state}")
            }
            Self::NeverCame { last: None } => formatter.write_str("never came; it remembers none before"),
            Self::NoFile => formatter.write_str("left no file: stopped, killed, or its disk was gone"),
        }
    }
}

impl fmt::Display for Parting {
    /// Several lines, without one at the end.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RANGES_MAX: usize = 12;
        write!(formatter, "{}: the ranks part at collective {}", self.channel, self.sequence)?;
        for (ranges, there) in &self.groups {
            let ranks: u64 = ranges.iter().map(|&(first, last)| u64::from(last) + 1 - u64::from(first)).sum();
            let range = |&(first, last): &(u32, u32)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            let shown: Vec<String> = ranges.iter().take(RANGES_MAX).map(range).collect();
            let noun = if ranks == 1 { "rank" } else { "ranks" };
            let more =
                if ranges.len() > RANGES_MAX { format!(", … ({ranks} ranks)") } else { String::new() };
            write!(formatter, "\n  {noun} {}{more}: {there}", shown.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "parting_tests.rs"]
mod tests;
