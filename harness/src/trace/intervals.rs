//! Stretches of time, and how much of one lies in others.

/// From `start` to `end`, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub start: f64,
    pub end: f64,
}

/// The same points of time as disjoint intervals in rising order. What has no length is dropped.
pub fn union(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.retain(|interval| interval.start < interval.end);
    intervals.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
    for next in intervals {
        match merged.last_mut() {
            Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
            _ => merged.push(next),
        }
    }
    merged
}

/// Length of disjoint intervals.
pub fn length(disjoint: &[Interval]) -> f64 {
    disjoint.iter().map(|interval| interval.end - interval.start).sum()
}

/// Length of what two [`union`]s have in common.
pub fn overlap(left: &[Interval], right: &[Interval]) -> f64 {
    let (Some(first), Some(other)) = (left.first(), right.first()) else { return 0.0 };
    let left = &left[left.partition_point(|interval| interval.end <= other.start)..];
    let right = &right[right.partition_point(|interval| interval.end <= first.start)..];
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    let mut common = 0.0;
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        common += (a.end.min(b.end) - a.start.max(b.start)).max(0.0);
        if a.end < b.end {
            left.next()
        } else {
            right.next()
        };
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whole microseconds, so that sums are exact.
    fn intervals() -> impl Strategy<Value = Vec<Interval>> {
        let interval = (0u16..200, 0u16..40)
            .prop_map(|(start, length)| Interval { start: start.into(), end: f64::from(start + length) });
        prop::collection::vec(interval, 0..20)
    }

    /// By definition: microsecond by microsecond.
    fn covers(intervals: &[Interval], at: u16) -> bool {
        intervals.iter().any(|interval| interval.start <= at.into() && f64::from(at) < interval.end)
    }

    proptest! {
        #[test]
        fn union_and_overlap_are_what_they_say(left in intervals(), right in intervals()) {
            let (a, b) = (union(left.clone()), union(right.clone()));
            prop_assert!(a.windows(2).all(|pair| pair[0].end < pair[1].start));
            let count = |test: &dyn Fn(u16) -> bool| (0..240).filter(|&at| test(at)).count() as f64;
            prop_assert_eq!(length(&a), count(&|at| covers(&left, at)));
            prop_assert_eq!(overlap(&a, &b), count(&|at| covers(&left, at) && covers(&right, at)));
        }

        #[test]
        fn overlap_is_part_of_both_and_the_same_both_ways(left in intervals(), right in intervals()) {
            let (a, b) = (union(left), union(right));
            prop_assert!(overlap(&a, &b) <= length(&a).min(length(&b)));
            prop_assert_eq!(overlap(&a, &b), overlap(&b, &a));
            prop_assert_eq!(overlap(&a, &a), length(&a));
        }

        #[test]
        fn splitting_changes_nothing(whole in intervals(), other in intervals(), at in 0u16..240) {
            let at = f64::from(at);
            let split = whole.iter().flat_map(|&Interval { start, end }| {
                let cut = at.clamp(start, end);
                [Interval { start, end: cut }, Interval { start: cut, end }]
            });
            prop_assert_eq!(union(split.collect()), union(whole.clone()));
            let (a, b) = (union(whole), union(other));
            prop_assert!(overlap(&a, &b) <= length(&b));
        }

        #[test]
        fn more_waiting_never_hides_more(communication in intervals(), wait in intervals(), extra in intervals()) {
            let communication = union(communication);
            let longer = union([wait.clone(), extra].concat());
            prop_assert!(overlap(&communication, &union(wait)) <= overlap(&communication, &longer));
        }
    }
}
