//! What the user may have meant by a word that is not known.

use super::keys::{Keys, Kind};

/// Names that other trainers give to keys of ours.
const ALIASES: &[(&str, &str)] = &[
    ("accumulate_grad_batches", "batch.micro_batches"),
    ("adam_beta1", "optim.betas"),
    ("adam_beta2", "optim.betas"),
    ("adam_epsilon", "optim.eps"),
    ("batch_size", "batch.micro_batch_size"),
    ("block_size", "model.context"),
    ("bucket_cap_mb", "parallel.bucket_mb"),
    ("decay", "optim.weight_decay"),
    ("deepspeed", "parallel.strategy"),
    ("dtype", "precision"),
    ("embedding_size", "model.width"),
    ("file", "data.path"),
    ("grad_clip", "optim.clip_norm"),
    ("gradient_accumulation_steps", "batch.micro_batches"),
    ("gradient_clip_val", "optim.clip_norm"),
    ("hidden_size", "model.width"),
    ("learning_rate", "optim.lr"),
    ("max_grad_norm", "optim.clip_norm"),
    ("max_length", "model.context"),
    ("max_steps", "schedule.steps"),
    ("n_embd", "model.width"),
    ("n_head", "model.heads"),
    ("n_layer", "model.layers"),
    ("num_heads", "model.heads"),
    ("num_layers", "model.layers"),
    ("num_threads", "run.threads_per_rank"),
    ("optimizer", "optim.kind"),
    ("output_dir", "run.dir"),
    ("save_every", "checkpoint.every"),
    ("save_steps", "checkpoint.every"),
    ("scheduler", "schedule.kind"),
    ("seq_len", "model.context"),
    ("sequence_length", "model.context"),
    ("threads", "run.threads_per_rank"),
    ("vocab_size", "data.vocabulary"),
    ("warmup", "schedule.warmup_steps"),
];

/// Words longer than this are not compared: no key is nearly so long, and the comparison is quadratic.
const LENGTH_MAX: usize = 64;

/// The remedy for an unknown dotted key.
pub fn remedy_for_unknown_key(name: &str) -> String {
    if let Some(key) = nearest_key(name) {
        return format!("did you mean {key}?");
    }
    let section = name.split('.').next().unwrap_or_default();
    let names: Vec<&str> = if Keys::get().is_section(section) {
        let keys = Keys::get().keys.iter();
        keys.filter_map(|key| key.name.strip_prefix(section)?.strip_prefix('.')).collect()
    } else {
        let sections = Keys::get().sections.iter().map(|section| section.name.as_str());
        let bare = Keys::get().keys.iter().map(|key| key.name.as_str()).filter(|name| !name.contains('.'));
        sections.chain(bare).collect()
    };
    format!("there are {}", names.join(", "))
}

/// The key or section that is most like an unknown one: another trainer's name for it, the same last word in
/// another section, or the fewest typing errors.
pub fn nearest_key(name: &str) -> Option<String> {
    let last = name.rsplit('.').next().unwrap_or_default();
    if let Some((_, key)) = ALIASES.iter().find(|(alias, _)| *alias == last) {
        return Some((*key).into());
    }
    let table = Keys::get();
    let names =
        table.keys.iter().map(|key| &key.name).chain(table.sections.iter().map(|section| &section.name));
    let names: Vec<&str> = names.map(String::as_str).collect();
    let elsewhere: Vec<&str> =
        names.iter().copied().filter(|known| known.rsplit('.').next() == Some(last)).collect();
    if let [only] = elsewhere.as_slice() {
        return Some((*only).into());
    }
    let by_last_word = |known: &&str| known.contains('.') && !name.contains('.');
    let whole = nearest(name, names.iter().copied());
    let words = names
        .iter()
        .copied()
        .filter(by_last_word)
        .filter_map(|known| Some((known.rsplit('.').next()?, known)));
    let words: Vec<(&str, &str)> = words.collect();
    whole.map(str::to_owned).or_else(|| {
        let word = nearest(last, words.iter().map(|(word, _)| *word))?;
        words.iter().find(|(known, _)| *known == word).map(|(_, known)| (*known).to_owned())
    })
}

/// The word that a key takes which is most like `word`.
pub fn nearest_choice<'a>(kind: &'a Kind, word: &str) -> Option<&'a str> {
    let Kind::Choice(choices) = kind else { return None };
    let lower = word.chars().take(LENGTH_MAX).collect::<String>().to_lowercase();
    nearest(&lower, choices.iter().map(|choice| choice.word.as_str()))
}

/// The candidate with the fewest edits, if a third of the word or less was mistyped.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if length > LENGTH_MAX {
        return None;
    }
    let limit = (length / 3).max(1);
    let edits = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    candidates
        .map(|candidate| (edits(&candidate), candidate))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_name_keys_that_exist() {
        for (alias, key) in ALIASES {
            assert!(Keys::get().find(key).is_some(), "{alias} -> {key}");
            assert!(
                !Keys::get().keys.iter().any(|known| known.name.rsplit('.').next() == Some(*alias)),
                "{alias}"
            );
        }
        assert!(ALIASES.is_sorted(), "keep the table sorted");
    }

    #[test]
    fn nearest_keys() {
        let cases = [
            ("optim.learning_rate", Some("optim.lr")),
            ("optim.lrr", Some("optim.lr")),
            ("model.layer", Some("model.layers")),
            ("modle.layers", Some("model.layers")),
            ("modle", Some("model")),
            ("schedule.lr", Some("optim.lr")),
            ("seed", Some("run.seed")),
            ("micro_batch_sise", Some("batch.micro_batch_size")),
            ("checkpoint.evrey", Some("checkpoint.every")),
            ("n_layer", Some("model.layers")),
            ("zzz.qqqqq", None),
            ("", None),
        ];
        for (typed, expected) in cases {
            assert_eq!(nearest_key(typed).as_deref(), expected, "{typed}");
        }
        assert_eq!(nearest_key(&"x".repeat(1 << 20)), None);
    }

    #[test]
    fn without_a_near_key_the_section_is_listed() {
        assert_eq!(
            remedy_for_unknown_key("record.zzzzzz"),
            "there are digests_every, local_gradients, sketches, telemetry_every_s"
        );
        assert!(remedy_for_unknown_key("zzz").starts_with("there are run, model, data, "));
    }

    #[test]
    fn nearest_choices() {
        let kind = |name: &str| &Keys::get().find(name).unwrap().kind;
        assert_eq!(nearest_choice(kind("optim.kind"), "Adam"), Some("adamw"));
        assert_eq!(nearest_choice(kind("optim.kind"), "lion"), None);
        assert_eq!(nearest_choice(kind("optim.kind"), "AdamW"), Some("adamw"));
        assert_eq!(nearest_choice(kind("parallel.strategy"), "zero-1"), Some("zero1"));
        assert_eq!(nearest_choice(kind("optim.lr"), "x"), None);
    }
}
