//! Learning a byte-pair encoding (Sennrich et al., 2016): which pairs of tokens to merge, most frequent first.
//!
//! The `tokenizers` crate encodes with the result, but does not learn it: its trainer walks hash maps that are seeded
//! anew in every process, and where the same pair waits twice in its queue with equal counts their order decides
//! the merges. Here ties go to the pair with the smaller ids and no order is left to chance, so that every process
//! learns the same vocabulary from the same text.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

type Pair = (u32, u32);

/// A vocabulary and how its tokens are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Tokens by id: the alphabet, then one for each merge that made a new one.
    pub tokens: Vec<String>,
    /// Pairs of tokens that become one, in the order of their precedence.
    pub merges: Vec<(String, String)>,
}

/// How often two tokens stand side by side, and the words in which they do or did.
#[derive(Default)]
struct Occurrences {
    count: u64,
    words: Vec<usize>,
}

struct Learner {
    words: Vec<(Vec<u32>, u64)>,
    pairs: HashMap<Pair, Occurrences>,
    /// The most frequent pair first. Counts may be out of date; they are checked on the way out.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

/// Learns merges from words (with their counts) until there are `vocabulary` tokens, or no pair occurs twice.
/// Characters outside the `alphabet` are passed over.
pub fn learn(word_counts: &BTreeMap<String, u64>, alphabet: &[char], vocabulary: usize) -> Learned {
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let mut ids: HashMap<String, u32> = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id)).collect();
    let (mut merges, mut merged_before) = (Vec::new(), HashSet::new());
    let mut learner = Learner::new(word_counts, alphabet);
    while tokens.len() < vocabulary {
        let Some(pair) = learner.most_frequent() else { break };
        let (left, right) = (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        // Two ways to put the same text together share its token: a + bc and ab + c.
        let merged = *ids.entry(format!("{left}{right}")).or_insert_with_key(|token| {
            tokens.push(token.clone());
            tokens.len() as u32 - 1
        });
        // A pair may come back once a later merge makes one of its tokens again; its first place is its precedence.
        if merged_before.insert(pair) {
            merges.push((left, right));
        }
        learner.merge(pair, merged);
    }
    Learned { tokens, merges }
}

impl Learner {
    fn new(word_counts: &BTreeMap<String, u64>, alphabet: &[char]) -> Self {
        let ids: HashMap<char, u32> = alphabet.iter().copied().zip(0..).collect();
        let words: Vec<_> = word_counts
            .iter()
            .map(|(word, &count)| (word.chars().filter_map(|c| ids.get(&c).copied()).collect(), count))
            .collect();
        let mut learner = Self { words, pairs: HashMap::new(), queue: BinaryHeap::new() };
        for index in 0..learner.words.len() {
            learner.count(index);
        }
        learner.queue = learner.pairs.iter().map(|(&pair, seen)| (seen.count, Reverse(pair))).collect();
        learner
    }

    /// The most frequent pair, if one occurs at least twice; of several, the one with the smallest ids.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.pairs.get(&pair).map_or(0, |seen| seen.count);
            if now == count && count >= 2 {
                return Some(pair);
            }
            if now != count && now >= 2 {
                self.queue.push((now, Reverse(pair)));
            }
        }
        None
    }

    /// Replaces `pair` by the token `merged` wherever it stands.
    fn merge(&mut self, pair: Pair, merged: u32) {
        let Some(seen) = self.pairs.get_mut(&pair) else { return };
        let mut touched = std::mem::take(&mut seen.words);
        touched.sort_unstable();
        touched.dedup();
        let mut grown = Vec::new();
        for index in touched {
            self.uncount(index);
            let (word, _) = &mut self.words[index];
            *word = replaced(word, pair, merged);
            grown.extend(
                word.windows(2).map(|two| (two[0], two[1])).filter(|new| new.0 == merged || new.1 == merged),
            );
            self.count(index);
        }
        grown.sort_unstable();
        grown.dedup();
        for new in grown {
            self.queue.push((self.pairs[&new].count, Reverse(new)));
        }
    }

    fn count(&mut self, index: usize) {
        let (word, count) = &self.words[index];
        for two in word.windows(2) {
            let seen = self.pairs.entry((two[0], two[1])).or_default();
            seen.count += count;
            if seen.words.last() != Some(&index) {
                seen.words.push(index);
            }
        }
    }

    fn uncount(&mut self, index: usize) {
        let (word, count) = &self.words[index];
        for two in word.windows(2) {
            if let Some(seen) = self.pairs.get_mut(&(two[0], two[1])) {
                seen.count -= count;
            }
        }
    }
}

/// `word` with `merged` in place of `pair`, from left to right.
fn replaced(word: &[u32], pair: Pair, merged: u32) -> Vec<u32> {
    let mut result = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let hit = *first == pair.0 && tail.first() == Some(&pair.1);
        result.push(if hit { merged } else { *first });
        rest = if hit { &tail[1..] } else { tail };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALPHABET: [char; 4] = ['a', 'b', 'c', 'd'];

    fn counts(words: &[(&str, u64)]) -> BTreeMap<String, u64> {
        words.iter().map(|&(word, count)| (word.into(), count)).collect()
    }

    fn merges(words: &[(&str, u64)], vocabulary: usize) -> Vec<String> {
        let learned = learn(&counts(words), &ALPHABET, vocabulary);
        learned.merges.iter().map(|(left, right)| format!("{left} {right}")).collect()
    }

    #[test]
    fn the_most_frequent_pair_comes_first_and_the_smallest_of_equals() {
        assert_eq!(merges(&[("abc", 5), ("bc", 2), ("ad", 3)], 10), ["b c", "a bc", "a d"]);
        assert_eq!(merges(&[("cd", 4), ("ab", 4)], 10), ["a b", "c d"]);
        assert_eq!(merges(&[("cd", 4), ("ab", 4)], 5), ["a b"], "the vocabulary is full");
    }

    #[test]
    fn a_pair_that_occurs_once_is_not_worth_a_token() {
        assert!(merges(&[("abcd", 1)], 10).is_empty());
        assert!(merges(&[], 10).is_empty());
        assert_eq!(merges(&[("aaaa", 1)], 10), ["a a"]);
    }

    #[test]
    fn two_ways_to_the_same_text_share_a_token() {
        // "ab" + "c" and "a" + "bc" both occur: "ab" is merged in some words before "bc" is in others.
        let learned =
            learn(&counts(&[("abc", 5), ("ab", 10), ("bc", 20), ("dbc", 9), ("abcd", 3)]), &ALPHABET, 20);
        let mut unique = learned.tokens.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), learned.tokens.len());
    }

    /// The same by counting every pair anew before every merge: slow, and too simple to be wrong.
    fn naive(word_counts: &BTreeMap<String, u64>, vocabulary: usize) -> Vec<Pair> {
        let mut learner = Learner::new(word_counts, &ALPHABET);
        let mut steps = Vec::new();
        let mut texts: Vec<String> = ALPHABET.iter().map(char::to_string).collect();
        while texts.len() < vocabulary {
            let mut pairs: BTreeMap<Pair, u64> = BTreeMap::new();
            for (word, count) in &learner.words {
                word.windows(2).for_each(|two| *pairs.entry((two[0], two[1])).or_default() += count);
            }
            let best = pairs.iter().map(|(&pair, &count)| (count, Reverse(pair))).max();
            let Some((2.., Reverse(pair))) = best else { break };
            let text = format!("{}{}", texts[pair.0 as usize], texts[pair.1 as usize]);
            let merged = texts.iter().position(|known| *known == text).unwrap_or(texts.len());
            if merged == texts.len() {
                texts.push(text);
            }
            for (word, _) in &mut learner.words {
                *word = replaced(word, pair, merged as u32);
            }
            if !steps.contains(&pair) {
                steps.push(pair);
            }
        }
        steps
    }

    proptest! {
        #[test]
        fn the_queue_equals_counting_anew(
            word_counts in proptest::collection::btree_map("[abcd]{1,12}", 1u64..6, 0..12), vocabulary in 4usize..40,
        ) {
            let learned = learn(&word_counts, &ALPHABET, vocabulary);
            let expected: Vec<_> = naive(&word_counts, vocabulary)
                .into_iter()
                .map(|(left, right)| {
                    (learned.tokens[left as usize].clone(), learned.tokens[right as usize].clone())
                })
                .collect();
            prop_assert_eq!(&learned.merges, &expected);
            prop_assert!(learned.tokens.len() <= vocabulary.max(4));
            prop_assert_eq!(learn(&word_counts, &ALPHABET, vocabulary), learned, "again, with other hash seeds");
        }
    }
}
