//! A planar arm of two links that reaches for a target, simulated: what there is to see, a plan in words, and the actions of a
//! controller. An episode is a pure function of its number.
//!
//! Sine and cosine are those of the `libm` crate, because a C library's differ in the last bit between versions and processors;
//! all else is basic arithmetic in double precision. So any program can simulate the same bytes.

use crate::random::Stream;

/// Joints, each with one action a control step: shoulder and elbow.
pub const JOINTS: usize = 2;
/// Words of an observation: how fast to move, both angles, and the target's place.
pub const OBSERVATION_TOKENS: usize = 5;
/// Words of the longest plan: three a joint, and the end.
const PLAN_TOKENS: usize = 3 * JOINTS + 1;
/// Tokens that a turn begins with.
pub const TURN_TOKENS: usize = OBSERVATION_TOKENS + PLAN_TOKENS;

/// The vocabulary: words, then numbers from 0 to `BINS` − 1.
const NOTHING: u8 = 0;
const END: u8 = 1;
const SLOWLY: u8 = 2;
const QUICKLY: u8 = 3;
const JOINT_WORDS: [u8; JOINTS] = [4, 5];
const LEFT: u8 = 6;
const RIGHT: u8 = 7;
const NEAR: u8 = 8;
const FAR: u8 = 9;
const FIRST_NUMBER: u8 = 10;
/// What a measured value is rounded down to.
const BINS: u8 = 32;
pub const VOCABULARY: u8 = FIRST_NUMBER + BINS;

/// The set is one, as a file would be: it does not depend on `run.seed`.
const SEED: u64 = 0x0072_6561_6368_6531;
/// Angles that the joints stay within, in radians. The elbow bends one way only, so a place is reached by one pose.
const RANGES: [(f64, f64); JOINTS] = [(-1.5, 1.5), (0.3, 2.5)];
/// How far each joint is from where it should be at first, at least, in radians.
const START_MIN: [f64; JOINTS] = [0.2, 0.0];
/// Both links together: no place is farther from the shoulder.
const REACH: f64 = 2.0;
/// The part of the way that is left that the controller goes in one control step.
const GAIN: f64 = 0.5;
/// Largest turn of a joint in one control step, in radians, and the same where the arm is to move slowly.
const STEP_MAX: f64 = 0.3;
const SLOW_STEP_MAX: f64 = 0.15;
/// Joints that are this near are there, in radians: then the episode is over.
const THERE: f64 = 0.05;
/// A plan names joints that are farther away than this, and calls them far from here on.
const WORTH_A_WORD: f64 = 0.15;
const FAR_FROM: f64 = 0.8;

/// Observation, plan and actions. When the episode is over there is nothing of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub tokens: [u8; TURN_TOKENS],
    /// Words of the plan: they follow the observation, and are to be predicted.
    pub words: usize,
    /// One a control step of the chunk, as parts of `STEP_MAX`; zero when the episode is over.
    pub actions: Vec<[f32; JOINTS]>,
    /// How many of them were made before the episode was over.
    pub made: usize,
}

/// An arm on its way.
struct Arm {
    angles: [f64; JOINTS],
    aims: [f64; JOINTS],
    is_slow: bool,
}

/// Episode `id`: `turns` of `chunk` control steps each.
pub fn episode(id: u32, turns: usize, chunk: usize) -> Vec<Turn> {
    let mut arm = Arm::begin(&Stream::episode(SEED, id));
    (0..turns).map(|_| arm.turn(chunk)).collect()
}

impl Arm {
    fn begin(stream: &Stream) -> Self {
        let mut arm =
            Self { angles: [0.0; JOINTS], aims: [0.0; JOINTS], is_slow: stream.uniform_f64(4) < 0.5 };
        for joint in 0..JOINTS {
            let ((low, high), nearest) = (RANGES[joint], START_MIN[joint]);
            let range = high - low;
            let [aim, away] = [0, 1].map(|index| stream.uniform_f64(2 * joint as u64 + index));
            arm.aims[joint] = low + range * aim;
            // Beyond one end of the range it begins again at the other, as far away as asked for on either side.
            let away = nearest + (range - 2.0 * nearest) * away;
            arm.angles[joint] = low + (range * aim + away).rem_euclid(range);
        }
        arm
    }

    fn errors(&self) -> [f64; JOINTS] {
        [0, 1].map(|joint| self.aims[joint] - self.angles[joint])
    }

    fn is_there(&self) -> bool {
        self.errors().iter().all(|error| error.abs() < THERE)
    }

    fn turn(&mut self, chunk: usize) -> Turn {
        let mut turn =
            Turn { tokens: [NOTHING; TURN_TOKENS], words: 0, actions: vec![[0.0; JOINTS]; chunk], made: 0 };
        if self.is_there() {
            return turn;
        }
        turn.tokens[..OBSERVATION_TOKENS].copy_from_slice(&self.observation());
        let plan = self.plan();
        turn.tokens[OBSERVATION_TOKENS..][..plan.len()].copy_from_slice(&plan);
        turn.words = plan.len();
        while turn.made < chunk && !self.is_there() {
            turn.actions[turn.made] = self.act();
            turn.made += 1;
        }
        turn
    }

    fn observation(&self) -> [u8; OBSERVATION_TOKENS] {
        let angle = |joint: usize| number(self.angles[joint], RANGES[joint]);
        let (sin, cos) = libm::sincos(self.aims[0]);
        let (sin_of_both, cos_of_both) = libm::sincos(self.aims[0] + self.aims[1]);
        let place = |coordinate: f64| number(coordinate, (-REACH, REACH));
        let pace = if self.is_slow { SLOWLY } else { QUICKLY };
        [pace, angle(0), angle(1), place(cos + cos_of_both), place(sin + sin_of_both)]
    }

    fn plan(&self) -> Vec<u8> {
        let mut words = Vec::new();
        for (word, error) in JOINT_WORDS.into_iter().zip(self.errors()) {
            if error.abs() > WORTH_A_WORD {
                let way = if error > 0.0 { LEFT } else { RIGHT };
                words.extend([word, way, if error.abs() > FAR_FROM { FAR } else { NEAR }]);
            }
        }
        words.push(END);
        words
    }

    /// One control step: proportional, with a limit.
    fn act(&mut self) -> [f32; JOINTS] {
        let limit = if self.is_slow { SLOW_STEP_MAX } else { STEP_MAX };
        let steps = self.errors().map(|error| (GAIN * error).clamp(-limit, limit));
        self.angles = [0, 1].map(|joint| self.angles[joint] + steps[joint]);
        steps.map(|step| (step / STEP_MAX) as f32)
    }
}

/// The token of a measured value.
fn number(value: f64, (low, high): (f64, f64)) -> u8 {
    let bin = ((value - low) / (high - low) * f64::from(BINS)).floor();
    FIRST_NUMBER + bin.clamp(0.0, f64::from(BINS - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drawn() -> impl Iterator<Item = Vec<Turn>> {
        (0..2000).map(|id| episode(id, 3, 4))
    }

    #[test]
    fn every_episode_has_something_to_learn_and_they_differ_in_how_much() {
        let counts: Vec<(usize, usize)> = drawn()
            .map(|turns| {
                (turns.iter().map(|turn| turn.words).sum(), turns.iter().map(|turn| turn.made).sum())
            })
            .collect();
        assert!(counts.iter().all(|&(words, made)| words >= 4 && made > 0));
        let mut kinds = counts.clone();
        kinds.sort_unstable();
        kinds.dedup();
        assert!(kinds.len() > 20, "{} pairs of counts", kinds.len());
        let share = |made: usize| counts.iter().filter(|count| count.1 == made).count() as f64 / 2000.0;
        assert!(share(12) > 0.1 && share(12) < 0.5, "{} of the episodes are not over", share(12));
    }

    proptest! {
        #[test]
        fn turns_are_well_formed(id: u32, turns in 1usize..5, chunk in 1usize..9) {
            let all = episode(id, turns, chunk);
            prop_assert_eq!(all.len(), turns);
            let mut is_over = false;
            for turn in &all {
                prop_assert!(!is_over || turn.words + turn.made == 0, "nothing follows the end");
                is_over = turn.made < chunk;
                prop_assert_eq!(turn.words == 0, turn.made == 0);
                prop_assert!(turn.tokens.iter().all(|&token| token < VOCABULARY));
                let plan = &turn.tokens[OBSERVATION_TOKENS..];
                prop_assert_eq!(plan.iter().position(|&word| word == END).map_or(0, |end| end + 1), turn.words);
                prop_assert!(plan[turn.words..].iter().all(|&word| word == NOTHING));
                prop_assert!(turn.actions[turn.made..].iter().flatten().all(|&action| action == 0.0));
                prop_assert!(turn.actions.iter().flatten().all(|action| action.abs() <= 1.0));
            }
        }

        /// The first turns of a longer episode are the shorter one, and where chunks end changes no action.
        #[test]
        fn the_cut_into_turns_does_not_move_the_arm(id: u32, chunk in 1usize..7) {
            let actions = |turns: Vec<Turn>| turns.into_iter().flat_map(|turn| turn.actions).collect::<Vec<_>>();
            let short = actions(episode(id, 2, chunk));
            let long = actions(episode(id, 1, 3 * chunk));
            prop_assert_eq!(&short[..], &long[..2 * chunk]);
        }

        #[test]
        fn the_arm_comes_to_its_aim(id: u32) {
            let last = episode(id, 1, 64).pop().unwrap();
            prop_assert!(last.made < 64, "it is still on its way after {} steps", last.made);
            let mut arm = Arm::begin(&Stream::episode(SEED, id));
            let walked = |joint: usize| last.actions.iter().map(|action| f64::from(action[joint]) * STEP_MAX).sum::<f64>();
            arm.angles = [0, 1].map(|joint| arm.angles[joint] + walked(joint));
            prop_assert!(arm.is_there(), "{:?}", arm.errors());
        }
    }
}
