//! What may change between a run and its resumption: how the work is shared, recorded and kept, but nothing
//! that the result depends on.

use serde_json::Value;

use super::check::{described, get};
use super::error::Problem;
use super::keys::Keys;
use super::schema::Config;

/// Keys, or sections with all their keys, that do not change the result. Everything else is fixed, new keys
/// included.
const FREE: &[&str] = &[
    "run.name",
    "run.dir",
    // Where learned tokenizers are kept: a checkpoint pins the tokenizer itself by its digest.
    "data.cache_dir",
    // Where the text lies: a checkpoint pins its content by its digest.
    "data.path",
    "parallel",
    "evaluate",
    "checkpoint",
    "record",
];

/// Whether a run with `old` may go on with `new`; the problems name both values.
pub fn resume_compatible(old: &Config, new: &Config) -> Result<(), Vec<Problem>> {
    let write = |config: &Config| serde_json::to_value(config).unwrap_or(Value::Null);
    let (old, new) = (write(old), write(new));
    let problem = |key: &str| {
        let (before, after) =
            (get(&old, key).unwrap_or(&Value::Null), get(&new, key).unwrap_or(&Value::Null));
        let message =
            format!("the run began with {} and cannot go on with {}", described(before), described(after));
        let remedy = format!("set it back to {}, or start a new run", described(before));
        (before != after).then(|| Problem::new(key, message, remedy))
    };
    let fixed = Keys::get().keys.iter().filter(|key| !is_free(&key.name));
    let problems: Vec<Problem> = fixed.filter_map(|key| problem(&key.name)).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Whether `key` may change on a resume.
pub fn is_free(key: &str) -> bool {
    FREE.iter()
        .any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sets: &[&str]) -> Config {
        let sets: Vec<String> = sets.iter().map(|set| (*set).into()).collect();
        crate::config::load(&[], &sets, &|_| None).unwrap().config
    }

    #[test]
    fn how_the_work_is_shared_may_change() {
        let new =
            config(&["parallel.strategy=zero1", "parallel.bucket_mb=1", "run.name=b", "checkpoint.every=3"]);
        assert_eq!(resume_compatible(&config(&[]), &new), Ok(()));
    }

    #[test]
    fn what_the_result_depends_on_may_not() {
        let new = config(&["optim.lr=0.5", "run.seed=1", "optim.clip_norm=null", "schedule.steps=41"]);
        let problems = resume_compatible(&config(&[]), &new).unwrap_err();
        let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            shown,
            [
                "run.seed: the run began with 1337 and cannot go on with 1; set it back to 1337, or start a new run",
                "optim.lr: the run began with 0.0003 and cannot go on with 0.5; set it back to 0.0003, or start a new run",
                "optim.clip_norm: the run began with 1.0 and cannot go on with null; set it back to 1.0, or start a new run",
                "schedule.steps: the run began with 40 and cannot go on with 41; set it back to 40, or start a new run",
            ]
        );
    }

    #[test]
    fn free_keys_exist_and_each_fixed_section_is_fixed() {
        let known = |free: &&str| Keys::get().find(free).is_some() || Keys::get().is_section(free);
        assert!(FREE.iter().all(known));
        for key in [
            "model.layers",
            "data.tokenizer",
            "batch.micro_batches",
            "optim.lr",
            "precision",
            "reduce_dtype",
            "run.seed",
        ] {
            assert!(!is_free(key), "{key}");
        }
        assert!(!is_free("run.name_of_it"));
    }
}
