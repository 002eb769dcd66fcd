//! Whether the ranks' clocks agree: no collective can end on one rank before it has begun on another.

use std::collections::HashMap;

use lockstep_record::{Category, Span};

/// Collectives that are looked at, at most: enough to see clocks that part, in bounded memory.
const COLLECTIVES_MAX: usize = 10_000;

/// The collectives of the first steps, over all ranks.
#[derive(Default)]
pub struct Clocks {
    collectives: HashMap<(u64, String), Meeting>,
}

struct Meeting {
    latest_start_us: f64,
    earliest_end_us: f64,
    /// The rank that was seen last, and whether one rank wrote several such spans: then their names do not
    /// say which of them met.
    rank: u32,
    ambiguous: bool,
}

impl Clocks {
    pub fn add(&mut self, span: &Span) {
        if span.category != Category::Communication || span.args.bucket.is_none() {
            return;
        }
        let key = (span.args.step, span.name.clone());
        let (start, end) = (span.start_us, span.start_us + span.duration_us);
        if let Some(meeting) = self.collectives.get_mut(&key) {
            meeting.ambiguous |= meeting.rank == span.rank;
            meeting.rank = span.rank;
            meeting.latest_start_us = meeting.latest_start_us.max(start);
            meeting.earliest_end_us = meeting.earliest_end_us.min(end);
        } else if self.collectives.len() < COLLECTIVES_MAX {
            let meeting =
                Meeting { latest_start_us: start, earliest_end_us: end, rank: span.rank, ambiguous: false };
            self.collectives.insert(key, meeting);
        }
    }

    /// By how much the clocks surely disagree, in microseconds: 0 if nothing speaks against them.
    pub fn disagreement_us(&self) -> f64 {
        let gap = |meeting: &Meeting| meeting.latest_start_us - meeting.earliest_end_us;
        self.collectives.values().filter(|meeting| !meeting.ambiguous).map(gap).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_record::SpanArgs;

    fn reduce(rank: u32, start_us: f64, duration_us: f64) -> Span {
        Span {
            name: "reduce bucket 3".into(),
            category: Category::Communication,
            start_us,
            duration_us,
            rank,
            thread: 1,
            args: SpanArgs { step: 1, bucket: Some(3), ..SpanArgs::default() },
        }
    }

    fn disagreement(spans: &[Span]) -> f64 {
        let mut clocks = Clocks::default();
        spans.iter().for_each(|span| clocks.add(span));
        clocks.disagreement_us()
    }

    #[test]
    fn a_collective_that_ended_before_another_rank_began_shows_the_clocks_to_part() {
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(1, 5.0, 9.0)]), 0.0);
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(1, 35.0, 9.0)]), 25.0);
    }

    #[test]
    fn several_spans_of_one_name_on_a_rank_prove_nothing() {
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(0, 35.0, 9.0), reduce(1, 36.0, 9.0)]), 0.0);
    }
}
