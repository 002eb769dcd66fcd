//! Who asks the others what they are doing, and who ends the run: one rank, though many time out at once. Pure: time
//! and messages come in, actions go out; [`super::watchdog`] carries them out.

use std::time::Duration;

use super::doing::Doing;

/// How long the asking rank waits for answers. A rank looks for questions at every tick of its watchdog.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// A rank that was asked expects to be ended within this time. After it, it ends the run by itself.
pub const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 2048;

/// What other ranks' watchdogs send.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// What are you doing?
    Question,
    Answer(Option<Doing>),
}

/// What a watchdog has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send [`Message::Question`] to all other ranks.
    AskAll,
    /// Write this rank's flight recorder, and answer.
    Answer { to: usize },
    /// Print what the ranks were doing, in rank order and without this one's, and end the run.
    Report(Vec<Option<Doing>>),
}

#[derive(Clone, Debug, PartialEq)]
enum Role {
    Watching,
    /// A collective has timed out; lower ranks may ask first.
    Patient {
        until: Duration,
    },
    Asking {
        until: Duration,
        answers: Vec<Option<Doing>>,
        missing: usize,
    },
    /// Another rank asked, and will end the run.
    Asked {
        until: Duration,
    },
}

/// One rank's part in it. Of the ranks that time out at about the same time the lowest asks; a rank that was asked
/// never asks; of two that ask at the same moment the higher one steps back.
pub struct Inquiry {
    rank: usize,
    size: usize,
    role: Role,
}

impl Inquiry {
    pub fn new(rank: usize, size: usize) -> Self {
        Self { rank, size, role: Role::Watching }
    }

    /// Whether messages are to be looked for often.
    pub fn is_busy(&self) -> bool {
        self.role != Role::Watching
    }

    /// A message has come.
    pub fn receive(&mut self, now: Duration, from: usize, message: Message) -> Option<Action> {
        match (message, &mut self.role) {
            (Message::Answer(answer), Role::Asking { answers, missing, .. }) => {
                let unanswered = answers.get_mut(from).filter(|known| known.is_none());
                if let (Some(known), Some(answer)) = (unanswered, answer) {
                    *known = Some(answer);
                    *missing -= 1;
                }
                None
            }
            // It steps back as soon as it reads this rank's own question.
            (Message::Question, Role::Asking { .. }) if from > self.rank => None,
            (Message::Question, Role::Asked { .. }) => Some(Action::Answer { to: from }),
            (Message::Question, _) => {
                self.role = Role::Asked { until: now + ENDED_WITHIN };
                Some(Action::Answer { to: from })
            }
            (Message::Answer(_), _) => None,
        }
    }

    /// Time has passed, and all messages that came were received. `overdue`: a collective of this rank has timed out.
    pub fn tick(&mut self, now: Duration, overdue: bool) -> Option<Action> {
        match &mut self.role {
            Role::Watching if overdue => {
                self.role = Role::Patient { until: now + patience(self.rank) };
                self.tick(now, overdue)
            }
            // It was only slow, and nobody knows yet.
            Role::Patient { .. } if !overdue => {
                self.role = Role::Watching;
                None
            }
            Role::Patient { until } if now >= *until => {
                let (answers, missing) = (vec![None; self.size], self.size - 1);
                self.role = Role::Asking { until: now + ANSWERS_WITHIN, answers, missing };
                Some(Action::AskAll)
            }
            Role::Asking { until, answers, missing } if now >= *until || *missing == 0 => {
                Some(Action::Report(std::mem::take(answers)))
            }
            Role::Asked { until } if now >= *until => Some(Action::Report(vec![None; self.size])),
            _ => None,
        }
    }
}

/// How long a rank leaves it to lower ones to ask: longer for higher ranks, but never long. The lowest waits too: a rank
/// that was stopped and goes on must see first that it was asked.
fn patience(rank: usize) -> Duration {
    Duration::from_millis(100) * (rank + 2).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
#[path = "inquiry_tests.rs"]
mod tests;
