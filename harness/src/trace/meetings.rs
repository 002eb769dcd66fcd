//! When the ranks met in each collective. It moves data from when the last of them has come; and if it ended on one rank
//! before it began on another, their clocks do not agree.

use std::collections::HashMap;

use lockstep_record::{Category, Span};

/// Collectives that are looked at, at most, so that memory is bounded: those of thousands of steps.
const COLLECTIVES_MAX: usize = 1 << 18;

/// The buckets' collectives of the first steps, over all ranks.
#[derive(Default)]
pub struct Meetings {
    collectives: HashMap<(u64, String), Meeting>,
    overflows: bool,
}

struct Meeting {
    latest_start_us: f64,
    earliest_end_us: f64,
    /// The rank that was seen last, and whether one rank wrote several such spans: then their names do not
    /// say which of them met.
    rank: u32,
    ambiguous: bool,
}

impl Meetings {
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
        } else {
            self.overflows = true;
        }
    }

    /// From when on a rank's span moved data: from its start, or from when the last rank came. Within the span, whatever
    /// the clocks say.
    pub fn moving_from(&self, span: &Span) -> f64 {
        let end = span.start_us + span.duration_us;
        let meeting =
            span.args.bucket.and_then(|_| self.collectives.get(&(span.args.step, span.name.clone())));
        let met =
            meeting.filter(|meeting| !meeting.ambiguous).map_or(span.start_us, |met| met.latest_start_us);
        met.max(span.start_us).min(end)
    }

    /// What is not known of the ranks' meetings.
    pub fn note(&self) -> Option<String> {
        self.overflows.then(|| {
            format!("more than {COLLECTIVES_MAX} collectives: of later ones, waiting for late ranks counts as communication")
        })
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

    fn meetings(spans: &[Span]) -> Meetings {
        let mut meetings = Meetings::default();
        spans.iter().for_each(|span| meetings.add(span));
        meetings
    }

    fn disagreement(spans: &[Span]) -> f64 {
        meetings(spans).disagreement_us()
    }

    #[test]
    fn a_collective_that_ended_before_another_rank_began_shows_the_clocks_to_part() {
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(1, 5.0, 9.0)]), 0.0);
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(1, 35.0, 9.0)]), 25.0);
    }

    #[test]
    fn data_move_when_the_last_rank_has_come() {
        let (early, late) = (reduce(0, 0.0, 30.0), reduce(1, 20.0, 10.0));
        let met = meetings(&[early.clone(), late.clone()]);
        assert_eq!((met.moving_from(&early), met.moving_from(&late)), (20.0, 20.0));
        // Clocks that part do not make a span longer, nor its length negative.
        let before = reduce(2, 0.0, 5.0);
        assert_eq!(met.moving_from(&before), 5.0);
        let alone = Span { args: SpanArgs { step: 9, ..early.args }, ..early };
        assert_eq!(met.moving_from(&alone), 0.0);
    }

    #[test]
    fn several_spans_of_one_name_on_a_rank_prove_nothing() {
        assert_eq!(disagreement(&[reduce(0, 0.0, 10.0), reduce(0, 35.0, 9.0), reduce(1, 36.0, 9.0)]), 0.0);
    }
}
