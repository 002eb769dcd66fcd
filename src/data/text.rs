//! A text as numbered samples of `context` tokens: sample `i` of a part is its tokens `i * context ..= i * context +
//! context`, the first `context` of them as inputs and the last as targets.

use std::borrow::Cow;
use std::path::Path;

use lockstep_record::DataInfo;

use super::corpus::{Corpus, DataError, Inputs, Samples, Split, train_part};
use super::source;
use super::tokenizer::Tokenizer;
use crate::config::schema::{Data, TokenizerKind};
use crate::mutate::{Mutation, active, since_resume};

/// Tokens in as few bytes as their tokenizer allows.
#[derive(Debug)]
enum Tokens {
    Narrow(Cow<'static, [u8]>),
    Wide(Vec<u16>),
}

impl Tokens {
    fn len(&self) -> usize {
        match self {
            Tokens::Narrow(tokens) => tokens.len(),
            Tokens::Wide(tokens) => tokens.len(),
        }
    }

    fn extend(&self, range: std::ops::Range<usize>, out: &mut Vec<i64>) {
        match self {
            Tokens::Narrow(tokens) => out.extend(tokens[range].iter().map(|&token| i64::from(token))),
            Tokens::Wide(tokens) => out.extend(tokens[range].iter().map(|&token| i64::from(token))),
        }
    }
}

/// A tokenized text in memory, the same on every rank.
#[derive(Debug)]
pub struct Text {
    tokens: Tokens,
    /// Tokens before the validation part.
    train_tokens: usize,
    context: usize,
    train_samples: u64,
    validation_samples: u64,
    /// BLAKE3 of the text's bytes.
    digest: String,
    tokenizer: Tokenizer,
    warnings: Vec<String>,
}

impl Text {
    /// Reads and tokenizes the text, and learns its tokenizer first if need be. Samples have `context` tokens.
    pub fn load(data: &Data, context: usize) -> Result<Self, DataError> {
        check(data, context)?;
        let source = source::read(&data.path)?;
        let digest = blake3::hash(&source).to_string();
        let (tokens, tokenizer, mut warnings) = tokenize(source, data)?;
        let train_tokens = train_part(tokens.len(), data.validation_fraction);
        let train_samples = samples(train_tokens, context).min(data.max_samples.unwrap_or(u64::MAX));
        if train_samples == 0 {
            let (path, needed) = (data.path.clone(), context.saturating_add(1));
            return Err(DataError::TooShort { path, tokens: train_tokens, context, needed });
        }
        let validation_samples = samples(tokens.len() - train_tokens, context);
        if validation_samples == 0 && data.validation_fraction > 0.0 {
            warnings.push(format!(
                "the validation part of {} has {} tokens, too few for one sample of model.context {context}: there \
                 will be no validation loss",
                data.path.display(),
                tokens.len() - train_tokens
            ));
        }
        Ok(Self {
            tokens,
            train_tokens,
            context,
            train_samples,
            validation_samples,
            digest,
            tokenizer,
            warnings,
        })
    }

    /// Number of samples in a split; their ids count from 0.
    pub fn samples(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train_samples,
            Split::Validation => self.validation_samples,
        }
    }

    /// Number of tokens that there are: what the model's embedding is made for.
    #[cfg(test)]
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary()
    }

    /// Replaces the vectors' content by the samples `ids`, one after the other: `context` inputs each, and as
    /// targets the tokens that follow them.
    pub fn fill(
        &self,
        split: Split,
        ids: &[u64],
        inputs: &mut Vec<i64>,
        targets: &mut Vec<i64>,
    ) -> Result<(), DataError> {
        inputs.clear();
        targets.clear();
        for &id in ids {
            let late = since_resume(Mutation::ShardNotReloaded).is_some() && split == Split::Train;
            let start = self.start(split, id)? + usize::from(late);
            self.tokens.extend(start..start + self.context, inputs);
            let next = usize::from(!active(Mutation::TargetsNotShifted));
            self.tokens.extend(start + next..start + self.context + next, targets);
        }
        Ok(())
    }

    /// Where a sample's tokens start.
    fn start(&self, split: Split, id: u64) -> Result<usize, DataError> {
        let samples = self.samples(split);
        if id >= samples {
            return Err(DataError::NoSuchSample { split, id, samples });
        }
        let before = match split {
            Split::Train => 0,
            Split::Validation => self.train_tokens,
        };
        Ok(before + id as usize * self.context)
    }
}

impl Corpus for Text {
    fn info(&self) -> DataInfo {
        DataInfo {
            digest: self.digest.clone(),
            tokenizer: self.tokenizer.name().into(),
            tokenizer_digest: self.tokenizer.digest().into(),
            vocabulary: self.tokenizer.vocabulary() as u64,
            train_samples: self.train_samples,
            validation_samples: self.validation_samples,
        }
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every token of a sample predicts the next one.
    fn targets(&self, _: Split, ids: &[u64]) -> Result<Vec<u64>, DataError> {
        Ok(vec![(ids.len() * self.context) as u64])
    }

    fn batch(&self, split: Split, ids: &[u64], _: Option<&[u64]>) -> Result<Samples, DataError> {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        self.fill(split, ids, &mut inputs, &mut targets)?;
        let shape = vec![ids.len() as i64, self.context as i64];
        Ok(Samples {
            inputs: Inputs::Tokens(inputs),
            input_shape: shape.clone(),
            targets,
            target_shape: shape,
            actions: None,
        })
    }
}

fn check(data: &Data, context: usize) -> Result<(), DataError> {
    if !(0.0..1.0).contains(&data.validation_fraction) {
        return Err(DataError::ValidationFraction(data.validation_fraction));
    }
    if context == 0 {
        return Err(DataError::NoContext);
    }
    if data.max_samples == Some(0) { Err(DataError::NoSamples) } else { Ok(()) }
}

/// Windows of `context` tokens that have a next token each.
fn samples(tokens: usize, context: usize) -> u64 {
    (tokens.saturating_sub(1) / context) as u64
}

fn tokenize(source: Cow<'static, [u8]>, data: &Data) -> Result<(Tokens, Tokenizer, Vec<String>), DataError> {
    match data.tokenizer {
        TokenizerKind::Bytes => Ok((Tokens::Narrow(source), Tokenizer::bytes(), Vec::new())),
        TokenizerKind::Bpe => {
            let text = utf8(&source, &data.path)?;
            // Learned from the train part only, as far as it can be known before there are tokens.
            let end = text.floor_char_boundary(train_part(text.len(), data.validation_fraction));
            let (tokenizer, mut warnings) = Tokenizer::bpe(&text[..end], data.vocabulary, &data.cache_dir)?;
            if tokenizer.vocabulary() < data.vocabulary {
                warnings.push(format!(
                    "data.vocabulary is {}, but the text has only {} tokens to learn",
                    data.vocabulary,
                    tokenizer.vocabulary()
                ));
            }
            // Vocabularies end at 65536, so every id has 16 bits.
            let tokens = tokenizer.encode(text)?.into_iter().map(|token| token as u16).collect();
            Ok((Tokens::Wide(tokens), tokenizer, warnings))
        }
    }
}

fn utf8<'a>(bytes: &'a [u8], path: &Path) -> Result<&'a str, DataError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let line = 1 + bytes[..offset].iter().filter(|&&byte| byte == b'\n').count();
        DataError::NotUtf8 { path: path.into(), offset, line }
    })
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
