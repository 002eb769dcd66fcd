use proptest::prelude::*;

use super::*;
use crate::config::schema::DataKind;

/// A configuration for `text` in a file of `folder`.
fn data(folder: &tempfile::TempDir, text: &[u8]) -> Data {
    let path = folder.path().join("text");
    std::fs::write(&path, text).unwrap();
    Data {
        kind: DataKind::Text,
        path,
        tokenizer: TokenizerKind::Bytes,
        vocabulary: 300,
        cache_dir: folder.path().join("cache"),
        validation_fraction: 0.1,
        max_samples: None,
        augment: false,
    }
}

fn filled(corpus: &Text, split: Split, ids: &[u64]) -> (Vec<i64>, Vec<i64>) {
    let (mut inputs, mut targets) = (vec![-1], vec![-1]);
    corpus.fill(split, ids, &mut inputs, &mut targets).unwrap();
    (inputs, targets)
}

#[test]
fn samples_are_windows_and_targets_the_next_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Text::load(&data(&folder, b"abcdefghijklmnopqrst"), 4).unwrap();
    // 18 tokens to train on: windows 0..=4, 4..=8, 8..=12 and 12..=16. Two for validation.
    assert_eq!((corpus.samples(Split::Train), corpus.samples(Split::Validation)), (4, 0));
    assert_eq!(corpus.warnings().len(), 1);
    let (inputs, targets) = filled(&corpus, Split::Train, &[3, 0]);
    assert_eq!(inputs, b"mnopabcd".map(i64::from));
    assert_eq!(targets, b"nopqbcde".map(i64::from));
    assert_eq!(filled(&corpus, Split::Train, &[]), (vec![], vec![]));
}

#[test]
fn validation_begins_where_training_ends() {
    let folder = tempfile::tempdir().unwrap();
    let half = Data { validation_fraction: 0.5, ..data(&folder, b"abcdefghijklmnopqrst") };
    let corpus = Text::load(&half, 4).unwrap();
    assert_eq!((corpus.samples(Split::Train), corpus.samples(Split::Validation)), (2, 2));
    assert_eq!(filled(&corpus, Split::Validation, &[1]).1, b"pqrs".map(i64::from));
    let all = Data { validation_fraction: 0.0, ..half.clone() };
    let corpus = Text::load(&all, 4).unwrap();
    assert_eq!((corpus.samples(Split::Train), corpus.samples(Split::Validation)), (4, 0));
    assert!(corpus.warnings().is_empty());
    let few = Data { max_samples: Some(1), ..half };
    let corpus = Text::load(&few, 4).unwrap();
    assert_eq!((corpus.samples(Split::Train), corpus.samples(Split::Validation)), (1, 2));
}

#[test]
fn the_embedded_text_and_what_is_recorded_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Data { path: "embedded:shakespeare".into(), ..data(&folder, b"") };
    let info = Text::load(&embedded, 64).unwrap().info();
    let text = include_bytes!("../../data/shakespeare.txt");
    assert_eq!(info.digest, blake3::hash(text).to_string());
    assert_eq!((&info.tokenizer[..], info.vocabulary), ("bytes", 256));
    assert_eq!(info.tokenizer_digest, Tokenizer::bytes().digest());
    assert_eq!(info.train_samples, ((text.len() as f64 * 0.9) as u64 - 1) / 64);
    assert_eq!(info.validation_samples, 3532);
}

#[test]
fn a_sample_that_does_not_exist_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Text::load(&data(&folder, &[b'x'; 100]), 10).unwrap();
    for (split, id) in [(Split::Train, 8), (Split::Train, u64::MAX), (Split::Validation, 0)] {
        let error =
            corpus.fill(split, &[0, id][(split == Split::Validation) as usize..], &mut vec![], &mut vec![]);
        assert!(matches!(error, Err(DataError::NoSuchSample { id: named, .. }) if named == id), "{error:?}");
    }
}

#[test]
fn bpe_is_learned_from_the_train_part_and_covers_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let text = [&b"train part. ".repeat(75)[..], &"Prüfung ".repeat(11).into_bytes()].concat();
    let bpe = Data { tokenizer: TokenizerKind::Bpe, ..data(&folder, &text) };
    let corpus = Text::load(&bpe, 2).unwrap();
    assert!(corpus.warnings()[0].contains("data.vocabulary is 300"), "{:?}", corpus.warnings());
    assert_eq!(corpus.info().tokenizer, "bpe");
    assert_eq!(corpus.info().vocabulary, corpus.vocabulary() as u64);
    assert!(corpus.vocabulary() > 256 && corpus.tokens.len() < text.len() / 2);
    let ids: Vec<u64> = (0..corpus.samples(Split::Train)).collect();
    let (inputs, targets) = filled(&corpus, Split::Train, &ids);
    assert_eq!(inputs[1..], targets[..targets.len() - 1], "windows follow one another");
    assert!(inputs.iter().all(|&token| (token as usize) < corpus.vocabulary()));

    // Another validation part, the same train part: the same tokenizer.
    let other = [&text[..text.len() - 9], &b"Anderes. "[..]].concat();
    let other = Text::load(&Data { tokenizer: TokenizerKind::Bpe, ..data(&folder, &other) }, 2).unwrap();
    assert_eq!(other.info().tokenizer_digest, corpus.info().tokenizer_digest);
    assert_ne!(other.info().digest, corpus.info().digest);
}

#[test]
fn what_cannot_be_trained_on_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let good = data(&folder, b"line\nl\xffne and some more to read");
    let bpe = Data { tokenizer: TokenizerKind::Bpe, ..good.clone() };
    let fraction = |validation_fraction| Data { validation_fraction, ..good.clone() };
    let cases = [
        (bpe, 4, "not UTF-8 at byte 6 (line 2)"),
        (good.clone(), 0, "model.context is 0"),
        (good.clone(), 27, "has 27 tokens, and one sample of model.context 27 needs 28"),
        (good.clone(), usize::MAX, "too short"),
        (fraction(1.0), 4, "data.validation_fraction is 1"),
        (fraction(-0.1), 4, "data.validation_fraction"),
        (fraction(f64::NAN), 4, "data.validation_fraction is NaN"),
        (fraction(0.999), 4, "has 0 tokens"),
        (Data { max_samples: Some(0), ..good.clone() }, 4, "data.max_samples is 0"),
        (Data { path: folder.path().into(), ..good.clone() }, 4, "is a directory"),
        (
            Data { tokenizer: TokenizerKind::Bpe, vocabulary: 12, ..data(&folder, b"text") },
            1,
            "data.vocabulary",
        ),
    ];
    for (data, context, expected) in cases {
        std::fs::write(folder.path().join("text"), b"line\nl\xffne and some more to read").unwrap();
        if data.vocabulary == 12 {
            std::fs::write(folder.path().join("text"), b"text").unwrap();
        }
        let message = Text::load(&data, context).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert!(Text::load(&good, 26).is_err(), "the file now has another text");
}

proptest! {
    #[test]
    fn samples_tile_the_train_part(length in 2usize..400, context in 1usize..40, fraction in 0.0f64..0.99) {
        let folder = tempfile::tempdir().unwrap();
        let text: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let train = train_part(length, fraction);
        prop_assert!(train <= length);
        match Text::load(&Data { validation_fraction: fraction, ..data(&folder, &text) }, context) {
            Err(error) => prop_assert!(train <= context, "{}", error),
            Ok(corpus) => {
                let count = corpus.samples(Split::Train);
                let ids: Vec<u64> = (0..count).collect();
                let (inputs, targets) = filled(&corpus, Split::Train, &ids);
                let end = count as usize * context;
                prop_assert!(end < train && end + context >= train, "all that fits, and nothing beyond");
                prop_assert!(inputs.iter().zip(&text[..end]).all(|(&token, &byte)| token == i64::from(byte)));
                prop_assert!(targets.iter().zip(&text[1..=end]).all(|(&token, &byte)| token == i64::from(byte)));
            }
        }
    }
}
