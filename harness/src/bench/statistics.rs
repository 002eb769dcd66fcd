//! Medians, spreads, and whether an aim is met: pure functions over ratios.

use serde::{Deserialize, Serialize};

use super::plan::Aim;
use crate::median;

/// Ratios of several pairs, as they are quoted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The geometric mean of the medians of both orders, where both ran.
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub pairs: usize,
}

impl Spread {
    /// Of the pairs in which ours started first, and of those in which theirs did. Which of the two it was can matter by
    /// several percent: who starts first is frozen until the other has started, and may lose pages and caches. So each
    /// order counts as much as the other, however many pairs it has.
    pub fn of(ours_first: &[f64], theirs_first: &[f64]) -> Option<Self> {
        let values = [ours_first, theirs_first].concat();
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        let middle = match (median(ours_first), median(theirs_first)) {
            (Some(one), Some(other)) => one.sqrt() * other.sqrt(),
            (one, other) => one.or(other)?,
        };
        // Roots and halves round: the middle must not leave its range by that.
        Some(Self { median: middle.clamp(min, max), min, max, pairs: values.len() })
    }
}

/// What may be said about an aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// There is no bound: the ratio is only shown.
    NoAim,
    Yes,
    No,
    /// Too few pairs had the cores for themselves: the ratio must not be quoted.
    Disturbed,
    /// A run has no such number.
    Unknown,
}

impl std::fmt::Display for Met {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::NoAim => "—",
            Self::Yes => "yes",
            Self::No => "NO",
            Self::Disturbed => "disturbed",
            Self::Unknown => "unknown",
        })
    }
}

/// Judges a median. `quiet` of the `wanted` pairs had the cores for themselves.
pub fn judge(aim: &Aim, spread: Option<&Spread>, quiet: usize, wanted: usize) -> Met {
    let Some(spread) = spread else { return Met::Unknown };
    if quiet < wanted {
        return Met::Disturbed;
    }
    let met = match (aim.at_least, aim.at_most) {
        (Some(bound), _) => spread.median >= bound,
        (None, Some(bound)) => spread.median <= bound,
        (None, None) => return Met::NoAim,
    };
    if met { Met::Yes } else { Met::No }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Metric;
    use proptest::prelude::*;

    fn positive() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(1e-6..1e6f64, 1..20)
    }

    #[test]
    fn an_aim_is_judged_by_the_median_of_quiet_pairs_only() {
        let aim = |at_least, at_most| Aim { metric: Metric::TokensPerSecond, at_least, at_most };
        let spread = Spread::of(&[0.9, 1.1, 1.5], &[]);
        let judge = |aim: &Aim, quiet| judge(aim, spread.as_ref(), quiet, 3);
        assert_eq!(judge(&aim(Some(1.1), None), 3), Met::Yes);
        assert_eq!(judge(&aim(Some(1.2), None), 3), Met::No);
        assert_eq!(judge(&aim(None, Some(1.1)), 3), Met::Yes);
        assert_eq!(judge(&aim(None, Some(1.0)), 3), Met::No);
        assert_eq!(judge(&aim(None, None), 3), Met::NoAim);
        assert_eq!(judge(&aim(Some(1.1), None), 2), Met::Disturbed);
        assert_eq!(super::judge(&aim(Some(1.1), None), None, 3, 3), Met::Unknown);
    }

    proptest! {
        #[test]
        fn half_the_values_lie_on_either_side_of_the_median(values in positive()) {
            let spread = Spread::of(&values, &[]).unwrap();
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            let below = values.iter().filter(|&&value| value < spread.median).count();
            let above = values.iter().filter(|&&value| value > spread.median).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
        }

        #[test]
        fn order_does_not_matter(mut values in positive(), others in positive()) {
            let before = Spread::of(&values, &others);
            prop_assert_eq!(Spread::of(&others, &values), before);
            values.reverse();
            prop_assert_eq!(Spread::of(&values, &others), before);
        }

        /// What the first to start loses cancels, whatever it is and however many pairs each order has.
        #[test]
        fn what_being_first_costs_cancels(ratio in 0.1..10f64, cost in 0.5..1f64, pairs in (1usize..6, 1usize..6)) {
            let spread = Spread::of(&vec![ratio * cost; pairs.0], &vec![ratio / cost; pairs.1]).unwrap();
            prop_assert!((spread.median / ratio - 1.0).abs() < 1e-12);
            prop_assert_eq!(spread.pairs, pairs.0 + pairs.1);
        }

        /// Who is called ours must not matter: with an odd number of pairs an order, inverse ratios give the inverse.
        #[test]
        fn swapping_the_sides_inverts_the_ratio(values in positive(), others in positive()) {
            let odd: [&[f64]; 2] = [&values, &others].map(|all| &all[..all.len() - usize::from(all.len() % 2 == 0)]);
            let inverse = odd.map(|all| all.iter().map(|value| 1.0 / value).collect::<Vec<_>>());
            let ratio = Spread::of(odd[0], odd[1]).unwrap().median;
            let swapped = Spread::of(&inverse[1], &inverse[0]).unwrap().median;
            prop_assert!((ratio * swapped - 1.0).abs() < 1e-9);
        }
    }
}
