use super::*;
use proptest::prelude::*;

fn config(sets: &[&str]) -> crate::config::Config {
    let base =
        ["data.kind=arm", "data.path=embedded:reach", "model.kind=vla", "model.turns=2", "model.chunk=3"];
    let sets: Vec<String> = base.iter().chain(sets).map(|&set| set.into()).collect();
    crate::config::load(&[], &sets, &|_| None).unwrap().config
}

fn arm(sets: &[&str]) -> Arm {
    let config = config(sets);
    Arm::load(&config.data, &config.model, 7).unwrap()
}

fn actions(samples: &Samples) -> &ActionSamples {
    samples.actions.as_ref().unwrap()
}

/// Other programs that simulate the arm have this digest too.
#[test]
fn the_set_is_pinned() {
    assert_eq!(arm(&[]).digest, "3b6d0b18772957204f968cb8a8577811c8679e9084dc9d0975df4df48975cc34");
}

#[test]
fn splits_are_disjoint_and_complete() {
    let arm = arm(&["data.validation_fraction=0.25", "data.max_samples=100"]);
    let info = arm.info();
    assert_eq!((info.train_samples, info.validation_samples), (100, 1024));
    assert_eq!(arm.turns(Split::Validation, 0).unwrap(), episode(3072, 2, 3));
    assert_eq!(arm.turns(Split::Train, 99).unwrap(), episode(99, 2, 3));
    assert!(matches!(
        arm.batch(Split::Train, &[100], None),
        Err(DataError::NoSuchSample { id: 100, samples: 100, .. })
    ));
    assert!(matches!(arm.targets(Split::Validation, &[1024]), Err(DataError::NoSuchSample { .. })));
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let load = |sets: &[&str], turns: usize| {
        let mut config = config(sets);
        config.model.turns = turns;
        Arm::load(&config.data, &config.model, 7).unwrap_err().to_string()
    };
    assert!(load(&["data.path=embedded:grasp"], 2).contains("embedded:reach"));
    assert!(load(&[], 0).contains("model.turns is 0"));
    assert!(load(&["data.validation_fraction=0.9999"], 2).contains("lower data.validation_fraction"));
}

#[test]
fn a_visit_moves_noise_and_times_alone() {
    let arm = arm(&[]);
    let batch = |ids: &[u64], epochs: Option<&[u64]>| arm.batch(Split::Train, ids, epochs).unwrap();
    let seen = batch(&[3, 5, 3], Some(&[0, 0, 1]));
    let still = batch(&[3, 5, 3], None);
    assert_eq!((&seen.inputs, &seen.targets), (&still.inputs, &still.targets));
    assert_eq!(actions(&seen).actions, actions(&still).actions);
    let elements = 2 * 3 * JOINTS;
    let noise =
        |samples: &Samples, index: usize| actions(samples).noise[index * elements..][..elements].to_vec();
    assert_ne!(noise(&seen, 0), noise(&seen, 2), "another epoch is another visit");
    assert_eq!(noise(&still, 0), noise(&still, 2), "an evaluation always sees the same");
    let alone = batch(&[5], Some(&[0]));
    assert_eq!(noise(&alone, 0), noise(&seen, 1), "its place in the batch does not matter");
    assert_eq!(actions(&alone).times, actions(&seen).times[2..4]);
}

proptest! {
    /// What the trainer divides by is what the losses are summed over, whatever the batch.
    #[test]
    fn counts_are_those_of_the_batch(ids in prop::collection::vec(0u64..3000, 1..9)) {
        thread_local!(static ARM: Arm = arm(&[]));
        ARM.with(|arm| {
            let samples = arm.batch(Split::Train, &ids, None).unwrap();
            let tokens = samples.targets.iter().filter(|&&target| target != IGNORED).count() as u64;
            let counted: f32 = actions(&samples).counted.iter().sum();
            prop_assert_eq!(arm.targets(Split::Train, &ids).unwrap(), vec![tokens, counted as u64]);
            let count = ids.len();
            prop_assert_eq!(samples.targets.len(), count * 2 * TURN_TOKENS);
            prop_assert_eq!(actions(&samples).noise.len(), count * 2 * 3 * JOINTS);
            prop_assert_eq!(actions(&samples).times.len(), count * 2);
            Ok(())
        })?;
    }
}

/// The position before a word predicts it; what is given is not predicted.
#[test]
fn targets_are_the_next_words_of_the_plan() {
    for id in 0..50 {
        for turn in episode(id, 2, 3) {
            let targets = targets_of(&turn);
            for (position, &target) in targets.iter().enumerate() {
                let is_word = (OBSERVATION_TOKENS..OBSERVATION_TOKENS + turn.words).contains(&(position + 1));
                let expected = if is_word { i64::from(turn.tokens[position + 1]) } else { IGNORED };
                assert_eq!(target, expected, "episode {id}, position {position}");
            }
        }
    }
}
