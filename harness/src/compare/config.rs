//! Whether two runs were asked for the same result.

use lockstep_record::{Manifest, Segment};
use serde_json::Value as Json;

use super::difference::{Check, Difference, Place};
use super::values::Value;

/// Parts of the configuration that do not decide the result: names and folders, how the work is spread, and what
/// is written down on the way. Everything else must agree, keys that this program has never heard of included.
const MAY_DIFFER: [&str; 10] = [
    "parallel",
    "record",
    "checkpoint",
    "evaluate",
    "run.name",
    "run.dir",
    "run.device",
    "run.threads_per_rank",
    "data.path",
    "data.cache_dir",
];

/// Compares what two runs were asked to do. Also returns the reasons, outside any trainer, for which their bits
/// may differ.
pub fn compare_manifests(golden: &Manifest, candidate: &Manifest) -> (Vec<Check>, Vec<String>) {
    let mut check = Check::new("configuration");
    compare_trees(&mut check, "", &golden.config, &candidate.config);
    let mut fact = |what: &str, left: Value, right: Value| {
        check.same(&left.clone(), &right.clone(), || Difference::new(Place::run(what), left, right));
    };
    fact("seed", Value::text(golden.seed), Value::text(candidate.seed));
    let (left, right) = (&golden.data, &candidate.data);
    fact("data digest", Value::text(&left.digest), Value::text(&right.digest));
    fact("tokenizer digest", Value::text(&left.tokenizer_digest), Value::text(&right.tokenizer_digest));
    fact("vocabulary", Value::text(left.vocabulary), Value::text(right.vocabulary));
    fact("train samples", Value::text(left.train_samples), Value::text(right.train_samples));

    let (left, right) = (&golden.model.tensors, &candidate.model.tensors);
    for index in 0..left.len().max(right.len()) {
        let describe = |tensors: &[lockstep_record::TensorInfo]| {
            Value::optional(tensors.get(index).map(|t| format!("{} {} {:?}", t.name, t.dtype, t.shape)))
        };
        fact(&format!("model tensor {index}"), describe(left), describe(right));
    }
    (vec![check], reasons(golden, candidate))
}

/// BLAKE3 of a configuration, without what may differ: the same for runs that must have the same result.
pub fn config_digest(config: &Json) -> String {
    let mut hasher = blake3::Hasher::new();
    digest_tree(&mut hasher, "", config);
    hasher.finalize().to_hex().to_string()
}

/// Leaf by leaf in the order of keys, as [`compare_trees`] sees them: null is absent, and 1 is 1.0.
fn digest_tree(hasher: &mut blake3::Hasher, key: &str, tree: &Json) {
    if may_differ(key) || tree.is_null() {
        return;
    }
    if let Some(map) = tree.as_object() {
        let mut names: Vec<&String> = map.keys().collect();
        names.sort();
        for name in names {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            digest_tree(hasher, &path, &map[name]);
        }
        return;
    }
    let number = |value: &Json| match value.as_f64().filter(|_| value.is_f64()) {
        Some(whole) if whole.fract() == 0.0 && whole.abs() < 9e15 => (whole as i64).to_string(),
        _ => value.to_string(),
    };
    let text = match tree.as_array() {
        Some(items) => items.iter().map(number).collect::<Vec<_>>().join(","),
        None => number(tree),
    };
    hasher.update(format!("{key}\0{text}\n").as_bytes());
}

fn may_differ(key: &str) -> bool {
    MAY_DIFFER.contains(&key)
}

/// Compares leaf by leaf, in the golden run's order. A key that is null counts as absent.
fn compare_trees(check: &mut Check, key: &str, golden: &Json, candidate: &Json) {
    if may_differ(key) {
        return;
    }
    let empty = serde_json::Map::new();
    let map = |tree: &Json| matches!(tree, Json::Object(_) | Json::Null);
    if key.is_empty() || (map(golden) && map(candidate) && (golden.is_object() || candidate.is_object())) {
        let (left, right) = (golden.as_object().unwrap_or(&empty), candidate.as_object().unwrap_or(&empty));
        let names = left.keys().chain(right.keys().filter(|name| !left.contains_key(*name)));
        for name in names {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            compare_trees(
                check,
                &path,
                left.get(name).unwrap_or(&Json::Null),
                right.get(name).unwrap_or(&Json::Null),
            );
        }
    } else if same_leaf(golden, candidate) {
        check.agree();
    } else {
        let show = |tree: &Json| if tree.is_null() { Value::Absent } else { Value::text(tree) };
        check.differ(Difference::new(Place::run(key), show(golden), show(candidate)));
    }
}

/// Numbers are equal by value: another writer may print 1 where this one prints 1.0.
fn same_leaf(golden: &Json, candidate: &Json) -> bool {
    match (golden, candidate) {
        (Json::Number(left), Json::Number(right)) => {
            left == right || left.as_f64() == right.as_f64() && left.is_f64() != right.is_f64()
        }
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same_leaf(l, r))
        }
        _ => golden == candidate,
    }
}

/// Differences of machine, library or threads, each of which moves bits.
fn reasons(golden: &Manifest, candidate: &Manifest) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut compare = |what: &str, fact: &dyn Fn(&Segment) -> String| {
        let facts = |manifest: &Manifest| {
            let mut facts: Vec<_> = manifest.segments.iter().map(fact).collect();
            facts.sort();
            facts.dedup();
            facts.join(", ")
        };
        let (left, right) = (facts(golden), facts(candidate));
        if left != right {
            reasons.push(format!("{what} differs, which moves bits: golden {left}, candidate {right}"));
        }
    };
    compare("compression", &|segment| segment.compression.clone().unwrap_or_else(|| "none".into()));
    compare("perturbation", &|segment| segment.perturbation.map_or("none".into(), |moved| moved.to_string()));
    compare("threads_per_rank", &|segment| segment.threads_per_rank.to_string());
    compare("cpu_capability", &|segment| segment.cpu_capability.clone());
    for library in ["libtorch", "torch", "mkl", "onednn"] {
        let known = |manifest: &Manifest| manifest.segments.iter().any(|s| s.versions.contains_key(library));
        if known(golden) && known(candidate) {
            compare(&format!("version of {library}"), &|segment| {
                segment.versions.get(library).cloned().unwrap_or_else(|| "unknown".into())
            });
        }
    }
    for switch in ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"] {
        compare(switch, &|segment| segment.versions.get(switch).cloned().unwrap_or_else(|| "unset".into()));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Verdict;
    use serde_json::json;

    fn trees(golden: Json, candidate: Json) -> Check {
        let mut check = Check::new("configuration");
        compare_trees(&mut check, "", &golden, &candidate);
        check
    }

    #[test]
    fn names_folders_and_layout_may_differ() {
        let check = trees(
            json!({"run": {"name": "a", "seed": 1}, "parallel": {"strategy": "ddp"}, "data": {"path": "x"}}),
            json!({"run": {"name": "b", "seed": 1}, "parallel": {"strategy": "zero1"}, "data": {"path": "y"}}),
        );
        assert_eq!((check.verdict, check.compared), (Verdict::Equal, 1));
    }

    #[test]
    fn the_digest_follows_what_decides_the_result() {
        let base = json!({"run": {"seed": 1, "name": "a"}, "optim": {"lr": 0.1, "betas": [0.9, 1], "clip_norm": null}});
        let same = json!({"optim": {"betas": [0.9, 1.0], "lr": 0.1}, "run": {"name": "b", "seed": 1}, "parallel": {"x": 1}});
        let other = json!({"run": {"seed": 1, "name": "a"}, "optim": {"lr": 0.2, "betas": [0.9, 1], "clip_norm": null}});
        assert_eq!(config_digest(&base), config_digest(&same));
        assert_ne!(config_digest(&base), config_digest(&other));
    }

    #[test]
    fn what_decides_the_result_may_not() {
        let optim = |value: Json| json!({"optim": value});
        for (golden, candidate) in [
            (json!({"lr": 0.1}), json!({"lr": 0.2})),
            (json!({"clip_norm": null}), json!({"clip_norm": 1.0})),
            (json!({"betas": [0.9, 0.95]}), json!({"betas": [0.9, 0.99]})),
            (json!({}), json!({"invented": true})),
            (json!("x"), json!({"lr": 1})),
        ] {
            let check = trees(optim(golden), optim(candidate));
            assert_eq!(check.verdict, Verdict::Different, "{check:?}");
        }
    }

    #[test]
    fn numbers_agree_by_value_and_null_is_absent() {
        let check = trees(json!({"a": 1, "b": null, "c": 0.1}), json!({"a": 1.0, "c": 0.1}));
        assert_eq!(check.differences, 0, "{check:?}");
        assert_eq!(
            trees(json!({"a": 9007199254740993u64}), json!({"a": 9007199254740992u64})).differences,
            1
        );
    }
}
