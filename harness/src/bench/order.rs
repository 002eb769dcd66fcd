//! In which order the two sides of a pair run.

use super::results::Pair;

/// Who runs first next: the pairs that count must be balanced, and otherwise the sides take turns.
pub fn ours_goes_first(pairs: &[Pair]) -> bool {
    let quiet =
        |ours_first| pairs.iter().filter(|pair| !pair.disturbed && pair.ours_first == ours_first).count();
    match quiet(true).cmp(&quiet(false)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Equal => pairs.last().is_none_or(|last| !last.ours_first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Measured;
    use proptest::prelude::*;

    fn pair(ours_first: bool, disturbed: bool) -> Pair {
        let side = Measured {
            tokens_per_second: 1.0,
            startup_seconds: 1.0,
            resident_bytes: 1.0,
            exposed_share: None,
            state_bytes: 1.0,
            step_seconds: vec![1.0],
            seconds: 1.0,
            others_share: 0.0,
        };
        Pair { ours_first, in_turns: false, disturbed, ours: side.clone(), theirs: side }
    }

    #[test]
    fn on_a_machine_that_is_never_quiet_the_sides_still_take_turns() {
        let mut pairs = Vec::new();
        for _ in 0..4 {
            pairs.push(pair(ours_goes_first(&pairs), true));
        }
        assert_eq!(pairs.iter().map(|pair| pair.ours_first).collect::<Vec<_>>(), [true, false, true, false]);
    }

    proptest! {
        #[test]
        fn pairs_that_count_are_balanced(disturbed in proptest::collection::vec(any::<bool>(), 0..20)) {
            let mut pairs = Vec::new();
            for disturbed in disturbed {
                pairs.push(pair(ours_goes_first(&pairs), disturbed));
                let quiet = |first| pairs.iter().filter(|p| !p.disturbed && p.ours_first == first).count();
                prop_assert!(quiet(true).abs_diff(quiet(false)) <= 1);
            }
        }
    }
}
