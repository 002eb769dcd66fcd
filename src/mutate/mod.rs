//! Planted bugs: each breaks one thing that equality rests on, in the code that ships, so that tests can see the
//! equality fail. Only a build with the feature `mutations` has them; in any other, [`active`] is always false.
//!
//! [`Mutation`] lists them, `harness/plans/zoo.yaml` says what each models and what the harness must answer, and
//! `docs/zoo.md` how to add one.

mod mutation;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use clap::ValueEnum;

pub use mutation::Mutation;

static ACTIVE: OnceLock<Mutation> = OnceLock::new();
/// The step that the training thread is in.
static STEP: AtomicU64 = AtomicU64::new(0);
/// The checkpoint's step, of an execution that began with one.
static RESUMED: OnceLock<u64> = OnceLock::new();

/// Turns on one mutation for the life of the process.
pub fn activate(mutation: Mutation) {
    let _ = ACTIVE.set(mutation);
}

/// The name of the mutation that is on, for the run record.
pub fn planted() -> Option<String> {
    ACTIVE.get()?.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Whether this mutation is on: always false without the feature, so the compiler removes what it guards.
pub fn active(mutation: Mutation) -> bool {
    cfg!(feature = "mutations") && ACTIVE.get() == Some(&mutation)
}

/// Whether a mutation that strikes the last rank of several is on, and this is that rank.
pub fn strikes(mutation: Mutation, rank: usize, world_size: usize) -> bool {
    active(mutation) && world_size > 1 && rank + 1 == world_size
}

/// Whether a mutation that strikes in one step is on, and the training is in it. What the communication thread does
/// after the training thread has gone on to the next step must not ask.
pub fn active_in(mutation: Mutation, step: u64) -> bool {
    active(mutation) && STEP.load(Relaxed) == step
}

/// The same for one that strikes from a step on.
pub fn active_from(mutation: Mutation, step: u64) -> bool {
    active(mutation) && STEP.load(Relaxed) >= step
}

/// Whether a mutation that strikes after a resume is on, and there was one: then the step that was gone on from.
pub fn since_resume(mutation: Mutation) -> Option<u64> {
    if active(mutation) { RESUMED.get().copied() } else { None }
}

/// The training begins a step.
pub fn enter_step(step: u64) {
    if cfg!(feature = "mutations") {
        STEP.store(step, Relaxed);
    }
}

/// The training goes on from a checkpoint.
pub fn resumed_from(step: u64) {
    if cfg!(feature = "mutations") {
        let _ = RESUMED.set(step);
    }
}

/// What an fp32 number is worth in bf16, for bugs that lose precision: cut off, not rounded.
pub fn cut_to_bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[derive(serde::Deserialize)]
    struct Zoo {
        bugs: Vec<Bug>,
    }

    #[derive(serde::Deserialize)]
    struct Bug {
        name: String,
        at: String,
    }

    fn zoo() -> Vec<Bug> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/plans/zoo.yaml");
        let zoo: Zoo = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        zoo.bugs
    }

    fn name(mutation: &Mutation) -> String {
        mutation.to_possible_value().unwrap().get_name().to_owned()
    }

    /// One list would have to be kept in step with the other by hand otherwise.
    #[test]
    fn every_mutation_is_in_the_zoo_and_the_zoo_has_no_other() {
        let planted: BTreeSet<String> = Mutation::value_variants().iter().map(name).collect();
        let listed: BTreeSet<String> = zoo().into_iter().map(|bug| bug.name).collect();
        assert_eq!(planted, listed);
    }

    #[test]
    fn every_mutation_is_planted_where_the_zoo_says() {
        let zoo = zoo();
        for mutation in Mutation::value_variants() {
            let at = &zoo.iter().find(|bug| bug.name == name(mutation)).expect("in the zoo").at;
            let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(at));
            let planted = source.as_ref().is_ok_and(|text| text.contains(&format!("Mutation::{mutation:?}")));
            assert!(planted, "{mutation:?} is not in {at}");
        }
    }
}
