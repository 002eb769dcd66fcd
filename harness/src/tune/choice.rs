//! Which setting is best, if the measurements can tell.

use super::setting::Setting;
use crate::bench::Spread;

/// What the runs of one setting gave, in tokens per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub setting: Setting,
    pub runs: Vec<f64>,
}

impl Measured {
    /// None without any run.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.runs, &[])
    }
}

/// What to write into the configuration, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The index of a setting all of whose runs were faster than all of the configuration's own.
    Better(usize),
    /// This one was so at first, and was not when both ran again.
    NotConfirmed(usize),
    /// The configuration's own is the fastest.
    OwnIsBest,
    /// This one has the higher median, but the runs overlap: the difference may be chance.
    WithinSpread(usize),
}

/// Judges the settings, of which the first is the configuration's own. One is better only if its slowest run beats the own
/// setting's fastest one: the machine's noise is the yardstick. Of those the highest median wins. Of three runs each that
/// happens by chance once in 20 (6 choose 3), and there are several settings: so [`confirm`] has the last word.
pub fn choose(measured: &[Measured]) -> Choice {
    let spreads: Vec<Option<Spread>> = measured.iter().map(Measured::spread).collect();
    let Some(Some(own)) = spreads.first().copied() else { return Choice::OwnIsBest };
    let others = || {
        let all = spreads.iter().enumerate().skip(1);
        all.filter_map(|(index, spread)| spread.map(|spread| (index, spread)))
    };
    let highest = |candidates: Vec<(usize, Spread)>| {
        candidates.into_iter().max_by(|left, right| left.1.median.total_cmp(&right.1.median))
    };
    if let Some((index, _)) = highest(others().filter(|(_, spread)| spread.min > own.max).collect()) {
        return Choice::Better(index);
    }
    match highest(others().collect()) {
        Some((index, spread)) if spread.median > own.median => Choice::WithinSpread(index),
        _ => Choice::OwnIsBest,
    }
}

/// Judges the better setting once more, by new runs of the own setting and of that one: the choice of the best of many is not
/// in them, and with five of each chance passes once in 252 (10 choose 5).
pub fn confirm(better: usize, own_again: &Measured, better_again: &Measured) -> Choice {
    match choose(&[own_again.clone(), better_again.clone()]) {
        Choice::Better(_) => Choice::Better(better),
        _ => Choice::NotConfirmed(better),
    }
}

impl Choice {
    /// The index of the setting to use.
    pub fn index(self) -> usize {
        match self {
            Self::Better(index) => index,
            Self::OwnIsBest | Self::WithinSpread(_) | Self::NotConfirmed(_) => 0,
        }
    }

    /// A sentence for people.
    pub fn explain(self, measured: &[Measured]) -> String {
        let (own, best) = (&measured[0], &measured[self.index()]);
        let median = |measured: &Measured| measured.spread().map_or(0.0, |spread| spread.median);
        match self {
            Self::Better(_) => {
                let percent = 100.0 * (median(best) / median(own) - 1.0);
                let bits = match best.setting.threads == own.setting.threads {
                    true => "",
                    false => "; another number of threads changes the bits of the result",
                };
                format!(
                    "{} is {percent:.1} % faster than the configuration's own setting{bits}",
                    best.setting
                )
            }
            Self::NotConfirmed(index) => format!(
                "the configuration's own setting stays: {} seemed faster, but was not when both ran again",
                measured[index].setting
            ),
            Self::OwnIsBest => "the configuration's own setting is the fastest: it stays".into(),
            Self::WithinSpread(index) => format!(
                "the configuration's own setting stays: {} has the higher median, but their runs overlap",
                measured[index].setting
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn measured(runs: &[&[f64]]) -> Vec<Measured> {
        let setting = |bucket: usize| Setting { bucket_mb: bucket as f64, overlap: true, threads: 1 };
        runs.iter()
            .enumerate()
            .map(|(i, runs)| Measured { setting: setting(i), runs: runs.to_vec() })
            .collect()
    }

    #[test]
    fn a_clear_winner_is_taken_and_the_rest_is_noise() {
        let own: &[f64] = &[100.0, 104.0, 98.0];
        assert_eq!(choose(&measured(&[own])), Choice::OwnIsBest);
        assert_eq!(choose(&measured(&[own, &[90.0, 80.0, 85.0]])), Choice::OwnIsBest);
        assert_eq!(choose(&measured(&[own, &[103.0, 120.0, 119.0]])), Choice::WithinSpread(1));
        assert_eq!(choose(&measured(&[own, &[105.0, 106.0, 107.0]])), Choice::Better(1));
        // A higher median that overlaps does not hide a clear winner.
        let clear: &[f64] = &[105.0, 106.0, 107.0];
        assert_eq!(choose(&measured(&[own, &[103.0, 120.0, 119.0], clear])), Choice::Better(2));
    }

    #[test]
    fn what_seemed_better_must_be_so_again() {
        let own: &[f64] = &[100.0, 104.0, 98.0];
        let again = measured(&[own, &[99.0, 120.0, 119.0], &[105.0, 106.0, 107.0]]);
        assert_eq!(confirm(7, &again[0], &again[1]), Choice::NotConfirmed(7));
        assert_eq!(confirm(7, &again[0], &again[2]), Choice::Better(7));
    }

    #[test]
    fn more_threads_come_with_a_warning() {
        let mut measured = measured(&[&[1.0], &[2.0]]);
        assert!(!choose(&measured).explain(&measured).contains("bits"));
        measured[1].setting.threads = 2;
        assert!(choose(&measured).explain(&measured).contains("changes the bits"));
    }

    proptest! {
        #[test]
        fn the_choice_is_never_slower(
            runs in proptest::collection::vec(proptest::collection::vec(1.0..100.0f64, 3), 1..8),
        ) {
            let runs: Vec<&[f64]> = runs.iter().map(Vec::as_slice).collect();
            let measured = measured(&runs);
            let chosen = measured[choose(&measured).index()].spread().unwrap();
            prop_assert!(chosen.median >= measured[0].spread().unwrap().median);
        }
    }
}
