//! Episodes of a simulated arm: tokens to predict and actions to learn by flow matching, in turns.

mod episode;
mod visit;

use std::path::{Path, PathBuf};

use lockstep_record::DataInfo;

pub use episode::{JOINTS, TURN_TOKENS};

use super::corpus::{ActionSamples, Corpus, DataError, Inputs, Samples, Split, train_part};
use crate::config::schema::{Data, Model};
use episode::{OBSERVATION_TOKENS, Turn, VOCABULARY, episode};
use visit::Visit;

/// Episodes in the set.
const EPISODES: usize = 4096;
/// The set that the program simulates.
const REACH: &str = "embedded:reach";
/// How measurements become tokens; its digest stands where a text's tokenizer has one.
const PREPROCESSING: &str = "arm-1: 10 words, 32 numbers a range";
/// What a target is that does not count, as PyTorch has it.
const IGNORED: i64 = -100;

/// Why an arm cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    #[error("there are no episodes named `{}` in the program: set data.path to {REACH}", .0.display())]
    Unknown(PathBuf),
    #[error(
        "model.turns is {turns} and model.chunk is {chunk}: an episode needs at least one turn of one action"
    )]
    Empty { turns: usize, chunk: usize },
    #[error("no episode is left to train on: lower data.validation_fraction")]
    NoTrainPart,
}

/// A set of episodes in memory, the same on every rank.
#[derive(Debug)]
pub struct Arm {
    /// Each of as many turns; those that are kept for validation come last.
    episodes: Vec<Vec<Turn>>,
    train_part: usize,
    train_samples: u64,
    turns: usize,
    chunk: usize,
    /// What noise and times are keyed by.
    seed: u64,
    digest: String,
}

impl Arm {
    /// Simulates the episodes in turns as the model has them. `seed` keys what flow matching draws.
    pub fn load(data: &Data, model: &Model, seed: u64) -> Result<Self, DataError> {
        let (turns, chunk) = (model.turns, model.chunk);
        if !(0.0..1.0).contains(&data.validation_fraction) {
            return Err(DataError::ValidationFraction(data.validation_fraction));
        }
        if data.max_samples == Some(0) {
            return Err(DataError::NoSamples);
        }
        if data.path != Path::new(REACH) {
            return Err(ArmError::Unknown(data.path.clone()).into());
        }
        if turns == 0 || chunk == 0 {
            return Err(ArmError::Empty { turns, chunk }.into());
        }
        let train_part = train_part(EPISODES, data.validation_fraction);
        let train_samples = (train_part as u64).min(data.max_samples.unwrap_or(u64::MAX));
        if train_samples == 0 {
            return Err(ArmError::NoTrainPart.into());
        }
        let episodes: Vec<_> = (0..EPISODES as u32).map(|id| episode(id, turns, chunk)).collect();
        let digest = digest(&episodes);
        Ok(Self { episodes, train_part, train_samples, turns, chunk, seed, digest })
    }

    fn validation_samples(&self) -> u64 {
        (EPISODES - self.train_part) as u64
    }

    fn turns(&self, split: Split, id: u64) -> Result<&[Turn], DataError> {
        let (first, samples) = match split {
            Split::Train => (0, self.train_samples),
            Split::Validation => (self.train_part, self.validation_samples()),
        };
        if id >= samples {
            return Err(DataError::NoSuchSample { split, id, samples });
        }
        Ok(&self.episodes[first + id as usize])
    }
}

impl Corpus for Arm {
    fn info(&self) -> DataInfo {
        DataInfo {
            digest: self.digest.clone(),
            tokenizer: "arm".into(),
            tokenizer_digest: blake3::hash(PREPROCESSING.as_bytes()).to_string(),
            vocabulary: u64::from(VOCABULARY),
            train_samples: self.train_samples,
            validation_samples: self.validation_samples(),
        }
    }

    fn warnings(&self) -> &[String] {
        &[]
    }

    /// Words of the plans; and elements of the actions that were made before the episode was over.
    fn targets(&self, split: Split, ids: &[u64]) -> Result<Vec<u64>, DataError> {
        let (mut words, mut made) = (0, 0);
        for &id in ids {
            for turn in self.turns(split, id)? {
                words += turn.words as u64;
                made += turn.made as u64;
            }
        }
        Ok(vec![words, made * JOINTS as u64])
    }

    fn batch(&self, split: Split, ids: &[u64], epochs: Option<&[u64]>) -> Result<Samples, DataError> {
        let shape = [ids.len(), self.turns, self.chunk, JOINTS].map(|size| size as i64);
        let mut actions = ActionSamples { shape: shape.to_vec(), ..ActionSamples::default() };
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for (index, &id) in ids.iter().enumerate() {
            let turns = self.turns(split, id)?;
            for turn in turns {
                inputs.extend(turn.tokens.map(i64::from));
                targets.extend(targets_of(turn));
                actions.actions.extend(turn.actions.iter().flatten());
                let counts = |step: usize| [f32::from(u8::from(step < turn.made)); JOINTS];
                actions.counted.extend((0..self.chunk).flat_map(counts));
            }
            let epoch = epochs.and_then(|epochs| epochs.get(index).copied());
            actions.draw(&Visit::new(self.seed, id, epoch), self.turns);
        }
        let shape = vec![ids.len() as i64, self.turns as i64, TURN_TOKENS as i64];
        Ok(Samples {
            inputs: Inputs::Tokens(inputs),
            input_shape: shape.clone(),
            targets,
            target_shape: shape,
            actions: Some(actions),
        })
    }
}

impl ActionSamples {
    /// Adds noise for the actions that were added last, and times for their chunks.
    fn draw(&mut self, visit: &Visit, chunks: usize) {
        let (noise, times) = (self.noise.len(), self.times.len());
        self.noise.resize(self.actions.len(), 0.0);
        visit.noise(&mut self.noise[noise..]);
        self.times.resize(times + chunks, 0.0);
        visit.times(&mut self.times[times..]);
    }
}

/// The words of the plan, each at the position before it.
fn targets_of(turn: &Turn) -> [i64; TURN_TOKENS] {
    let mut targets = [IGNORED; TURN_TOKENS];
    let words = &turn.tokens[OBSERVATION_TOKENS..OBSERVATION_TOKENS + turn.words];
    for (target, &word) in targets[OBSERVATION_TOKENS - 1..].iter_mut().zip(words) {
        *target = i64::from(word);
    }
    targets
}

/// BLAKE3 of all turns in order: tokens, the plan's length, actions made, and all actions.
fn digest(episodes: &[Vec<Turn>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for turn in episodes.iter().flatten() {
        hasher.update(&turn.tokens);
        hasher.update(&(turn.words as u32).to_le_bytes());
        hasher.update(&(turn.made as u32).to_le_bytes());
        for action in turn.actions.iter().flatten() {
            hasher.update(&action.to_le_bytes());
        }
    }
    hasher.finalize().to_string()
}

#[cfg(test)]
mod tests;
