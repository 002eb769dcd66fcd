//! Medians, spreads, and whether an aim is met: pure functions over ratios.

use serde::{Deserialize, Serialize};

use super::plan::Aim;
use crate::median;

/// Ratios of several pairs, as they are quoted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub pairs: usize,
}

impl Spread {
    pub fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        // Halving subnormal numbers rounds: the median must not leave its range by that.
        Some(Self { median: median(values)?.clamp(min, max), min, max, pairs: values.len() })
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
        let spread = Spread::of(&[0.9, 1.1, 1.5]);
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
            let spread = Spread::of(&values).unwrap();
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            let below = values.iter().filter(|&&value| value < spread.median).count();
            let above = values.iter().filter(|&&value| value > spread.median).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
        }

        #[test]
        fn order_does_not_matter(mut values in positive()) {
            let before = Spread::of(&values);
            values.reverse();
            prop_assert_eq!(Spread::of(&values), before);
        }

        /// Who is called ours must not matter: the median of an odd number of inverse ratios is the inverse.
        #[test]
        fn swapping_the_sides_inverts_the_ratio(mut values in positive()) {
            if values.len() % 2 == 0 {
                values.pop();
            }
            let inverse: Vec<f64> = values.iter().map(|value| 1.0 / value).collect();
            prop_assert_eq!(median(&inverse).unwrap(), 1.0 / median(&values).unwrap());
        }
    }
}
