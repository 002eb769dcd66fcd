//! Which parameters `model.freeze` names.

/// Why a list of patterns cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    #[error("model.freeze: `{pattern}` matches no parameter; the nearest are {}", nearest.join(", "))]
    NoMatch { pattern: String, nearest: Vec<String> },
    #[error("model.freeze leaves a model without parameters to train: leave out a pattern")]
    NothingLeft,
}

/// Names that a message suggests.
const SUGGESTIONS: usize = 3;

/// For each name, whether a pattern freezes it. A pattern is a name, what names begin with up to a dot, or holds `*`
/// for any text.
pub fn frozen(names: &[&str], patterns: &[String]) -> Result<Vec<bool>, FreezeError> {
    if let Some(pattern) = patterns.iter().find(|pattern| !names.iter().any(|name| matches(pattern, name))) {
        return Err(FreezeError::NoMatch { pattern: pattern.clone(), nearest: nearest(names, pattern) });
    }
    let is_frozen = |name: &&str| patterns.iter().any(|pattern| matches(pattern, name));
    let frozen: Vec<bool> = names.iter().map(is_frozen).collect();
    if frozen.contains(&false) { Ok(frozen) } else { Err(FreezeError::NothingLeft) }
}

fn matches(pattern: &str, name: &str) -> bool {
    if !pattern.contains('*') {
        return name.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    }
    // The first piece starts the name and the last one ends it; those between follow in order, each as early as it can.
    let mut pieces = pattern.split('*');
    let (first, last) = (pieces.next().unwrap_or_default(), pieces.next_back().unwrap_or_default());
    let middle = name.strip_prefix(first).and_then(|rest| rest.strip_suffix(last));
    let after = |rest: &str, piece: &str| rest.find(piece).map(|at| at + piece.len());
    middle.is_some_and(|mut rest| {
        pieces.all(|piece| after(rest, piece).map(|end| rest = &rest[end..]).is_some())
    })
}

/// The names, and the modules that they begin with, that take the fewest edits.
fn nearest(names: &[&str], pattern: &str) -> Vec<String> {
    let modules = |name: &str| -> Vec<String> {
        name.match_indices('.').map(|(dot, _)| name[..dot].to_owned()).chain([name.to_owned()]).collect()
    };
    let mut candidates: Vec<String> = names.iter().flat_map(|name| modules(name)).collect();
    candidates.sort();
    candidates.dedup();
    candidates.sort_by_cached_key(|name| strsim::damerau_levenshtein(name, pattern));
    candidates.truncate(SUGGESTIONS);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 5] =
        ["wte.weight", "h.0.ln_1.weight", "h.0.ln_1.bias", "h.1.ln_1.bias", "h.10.ln_1.bias"];

    fn of(patterns: &[&str]) -> Result<Vec<bool>, FreezeError> {
        frozen(&NAMES, &patterns.iter().map(|&pattern| pattern.into()).collect::<Vec<_>>())
    }

    #[test]
    fn prefixes_end_at_dots_and_stars_are_any_text() {
        let cases: [(&[&str], [bool; 5]); 6] = [
            (&[], [false; 5]),
            (&["h.1"], [false, false, false, true, false]),
            (&["h"], [false, true, true, true, true]),
            (&["*.bias"], [false, false, true, true, true]),
            (&["h.*.ln_1.weight", "wte.weight"], [true, true, false, false, false]),
            (&["*0*bias"], [false, false, true, false, true]),
        ];
        for (patterns, expected) in cases {
            assert_eq!(of(patterns).unwrap(), expected, "{patterns:?}");
        }
    }

    #[test]
    fn what_matches_nothing_or_leaves_nothing_is_refused() {
        let message = of(&["wte", "h.0.ln_2"]).unwrap_err().to_string();
        assert!(message.contains("`h.0.ln_2` matches no parameter; the nearest are h.0.ln_1"), "{message}");
        assert_eq!(of(&["wte", "h.*"]), Err(FreezeError::NothingLeft));
        assert!(matches!(of(&[""]), Err(FreezeError::NoMatch { .. })));
        assert_eq!(of(&["*"]), Err(FreezeError::NothingLeft));
    }

    proptest! {
        /// Against the definition: some way to put texts for the stars gives the name.
        #[test]
        fn stars_match_by_their_definition(pattern in "[ab*]{0,7}", name in "[ab]{0,7}") {
            fn defined(pattern: &[u8], name: &[u8]) -> bool {
                match pattern.split_first() {
                    None => name.is_empty(),
                    Some((b'*', rest)) => (0..=name.len()).any(|used| defined(rest, &name[used..])),
                    Some((letter, rest)) => name.first() == Some(letter) && defined(rest, &name[1..]),
                }
            }
            prop_assume!(pattern.contains('*'));
            prop_assert_eq!(matches(&pattern, &name), defined(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
