//! From text to tokens: bytes, or a byte-level BPE that is learned from the training text.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::utils::parallelism::set_parallelism;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer};

use super::tokenizer_cache::{Cached, TokenizerCache};

/// The text to learn from is split into words in pieces of at least this many bytes; see [`pieces`].
const PIECE_BYTES: usize = 1 << 16;

/// Words whose tokens are remembered while a text is encoded.
const KNOWN_WORDS: usize = 1 << 20;

/// Longer words are learned from in parts: a text without spaces must not make every merge rewrite all of it.
const LEARNED_WORD_CHARS: usize = 256;

/// A BPE is learned from this much of the text at most: the library counts pairs in 31 bits.
const LEARNED_BYTES: usize = 1 << 30;

/// What the digest of the tokenizer of bytes is taken of: it has no file.
const BYTES_DEFINITION: &[u8] = b"lockstep tokenizer: bytes: 256 tokens, each the value of one byte";

/// Smallest and largest vocabulary of a BPE: all bytes and one merge; what 16 bits can number.
const VOCABULARIES: std::ops::RangeInclusive<usize> = 257..=65_536;

/// Why text could not be made into tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("a vocabulary of {0} tokens is not in 257..=65536: change data.vocabulary")]
    Vocabulary(usize),
    #[error("the tokenizer's library refuses its input: {0}")]
    Library(#[from] tokenizers::Error),
}

/// Turns text into token ids below [`Tokenizer::vocabulary`].
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    digest: String,
}

#[derive(Debug)]
enum Kind {
    Bytes,
    Bpe(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// One token per byte.
    pub fn bytes() -> Self {
        Self { kind: Kind::Bytes, digest: blake3::hash(BYTES_DEFINITION).to_string() }
    }

    /// A byte-level BPE with up to `vocabulary` tokens, learned from `text`, or taken from `cache_dir` if it was
    /// learned from the same text before. Also returns what the user should know: a damaged file in the cache, or
    /// one that could not be written, costs time only.
    pub fn bpe(
        text: &str,
        vocabulary: usize,
        cache_dir: &Path,
    ) -> Result<(Self, Vec<String>), TokenizerError> {
        if !VOCABULARIES.contains(&vocabulary) {
            return Err(TokenizerError::Vocabulary(vocabulary));
        }
        let text = &text[..text.floor_char_boundary(LEARNED_BYTES)];
        let cache = TokenizerCache::new(cache_dir, text, vocabulary);
        let mut warnings = Vec::new();
        match cache.load() {
            Cached::Absent => {}
            Cached::Found(definition) => match Self::from_definition(&definition) {
                Ok(tokenizer) => return Ok((tokenizer, warnings)),
                Err(error) => warnings.push(cache.damaged(&error.to_string())),
            },
            Cached::Damaged(warning) => warnings.push(warning),
        }
        let definition = learn(text, vocabulary)?;
        if let Err(error) = cache.save(definition.as_bytes()) {
            warnings.push(cache.not_saved(&error));
        }
        Ok((Self::from_definition(definition.as_bytes())?, warnings))
    }

    fn from_definition(definition: &[u8]) -> Result<Self, TokenizerError> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(definition)?;
        Ok(Self { kind: Kind::Bpe(Box::new(tokenizer)), digest: blake3::hash(definition).to_string() })
    }

    /// The tokens of `text`, in order; together they are all of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Bpe(tokenizer) => {
                let mut tokens = Vec::with_capacity(text.len() / 2);
                // The library takes microseconds for a word, and most words of a text come again and again.
                let mut known: HashMap<&str, Vec<u32>> = HashMap::new();
                for word in pieces(text, 1) {
                    if let Some(ids) = known.get(word) {
                        tokens.extend_from_slice(ids);
                        continue;
                    }
                    let encoding = tokenizer.encode_fast(word, false)?;
                    tokens.extend_from_slice(encoding.get_ids());
                    if known.len() < KNOWN_WORDS {
                        known.insert(word, encoding.get_ids().to_vec());
                    }
                }
                Ok(tokens)
            }
        }
    }

    /// Number of tokens that there are. A BPE has fewer than it was asked for if the text has no more to learn.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Bytes => 256,
            Kind::Bpe(tokenizer) => tokenizer.get_vocab_size(false),
        }
    }

    /// BLAKE3 of the definition, hexadecimal: for a BPE, of its file in the cache.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// As the configuration spells it.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Bytes => "bytes",
            Kind::Bpe(_) => "bpe",
        }
    }
}

/// GPT-2's pre-tokenizer: splits into words with their leading space and maps bytes to printable characters.
fn byte_level() -> ByteLevel {
    ByteLevel::new(false, false, true)
}

/// Learns a BPE and returns it in the library's own format (`tokenizer.json`), which other programs read as well.
///
/// The result depends on the text and the vocabulary only: equally frequent pairs are merged in the order of their
/// ids, and the ids of single bytes are fixed.
fn learn(text: &str, vocabulary: usize) -> Result<String, TokenizerError> {
    // A rank has the threads that the configuration gives it, and no pool beside them.
    set_parallelism(false);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    trainer.feed(pieces(text, PIECE_BYTES), words)?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level())).with_decoder(Some(byte_level()));
    Ok(tokenizer.to_string(false)?)
}

/// The words to learn from.
fn words(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut split = PreTokenizedString::from(text);
    byte_level().pre_tokenize(&mut split)?;
    let words = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
    Ok(words.iter().flat_map(|(word, ..)| parts(word, LEARNED_WORD_CHARS).map(str::to_owned)).collect())
}

/// `text` in pieces of at least `bytes`, which are tokenized as they would be together: each but the first starts
/// with the white space after a word, and there GPT-2's pre-tokenizer always splits.
fn pieces(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, later) = rest.split_at(cut(rest, bytes));
        rest = later;
        Some(piece)
    })
}

fn cut(text: &str, at_least: usize) -> usize {
    let start = text.ceil_char_boundary(at_least.max(1));
    let mut before = text[..start].chars().next_back();
    for (offset, c) in text[start..].char_indices() {
        if c.is_whitespace() && before.is_some_and(|before| !before.is_whitespace()) {
            return start + offset;
        }
        before = Some(c);
    }
    text.len()
}

/// `word` in parts of `length` characters, the last one shorter.
fn parts(word: &str, length: usize) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(length).map_or(rest.len(), |(offset, _)| offset);
        let (part, later) = rest.split_at(end);
        rest = later;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
