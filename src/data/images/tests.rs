use super::*;
use crate::config::schema::Config;

fn config(sets: &[String]) -> Config {
    let base = ["data.kind=images".to_owned(), "data.path=embedded:shapes".to_owned()];
    crate::config::load(&[], &[&base[..], sets].concat(), &|_| None).unwrap().config
}

fn shapes(sets: &[&str]) -> Images {
    let sets: Vec<String> = sets.iter().map(|&set| set.into()).collect();
    Images::load(&config(&sets).data, 1).unwrap()
}

/// A folder with `images` of each file; image `i` of file `f` is all `16 · f + i`, of class `(f + i) mod 10`.
fn cifar(images: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in 1..=6u8 {
        let name = if file == 6 { "test_batch.bin".into() } else { format!("data_batch_{file}.bin") };
        let record = |i: usize| {
            let mut record = vec![16 * file + i as u8; RECORD];
            record[0] = (file + i as u8) % cifar::CLASSES;
            record
        };
        std::fs::write(folder.path().join(name), (0..images).flat_map(record).collect::<Vec<_>>()).unwrap();
    }
    folder
}

fn read(folder: &Path) -> Result<Images, DataError> {
    Images::load(&config(&[format!("data.path={}", folder.display())]).data, 1)
}

fn pixels(samples: &Samples) -> &[f32] {
    match &samples.inputs {
        Inputs::Pixels(pixels) => pixels,
        Inputs::Tokens(_) => panic!("images are pixels"),
    }
}

#[test]
fn splits_are_disjoint_and_complete() {
    let images = shapes(&["data.validation_fraction=0.25"]);
    let info = images.info();
    assert_eq!((info.train_samples, info.validation_samples), (3072, 1024));
    let (first, second) =
        (images.record(Split::Validation, 0).unwrap(), images.record(Split::Train, 3071).unwrap());
    let all = shapes::draw_all();
    assert_eq!(first, &all[3072 * RECORD..3073 * RECORD]);
    assert_eq!(second, &all[3071 * RECORD..3072 * RECORD]);
    let none = shapes(&["data.validation_fraction=0", "evaluate.every=0", "data.max_samples=7"]).info();
    assert_eq!((none.train_samples, none.validation_samples), (7, 0));
    assert_eq!(none.digest, info.digest, "the digest is the set's, not the split's");
    assert!(matches!(
        images.batch(Split::Train, &[3072], None),
        Err(DataError::NoSuchSample { id: 3072, samples: 3072, .. })
    ));
}

#[test]
fn augmentation_is_of_the_visit_and_only_where_asked_for() {
    let (plain, augmented) = (shapes(&[]), shapes(&["data.augment=true"]));
    let batch =
        |images: &Images, epochs: Option<&[u64]>| images.batch(Split::Train, &[3, 5, 3], epochs).unwrap();
    let as_it_is = batch(&plain, None);
    assert_eq!(as_it_is.input_shape, [3, 3, 32, 32]);
    assert_eq!(batch(&plain, Some(&[0, 0, 1])), as_it_is);
    assert_eq!(batch(&augmented, None), as_it_is);
    let seen = batch(&augmented, Some(&[0, 0, 1]));
    assert_eq!(seen.targets, as_it_is.targets);
    assert_ne!(pixels(&seen)[..PIXELS], pixels(&seen)[2 * PIXELS..], "another epoch is another view");
    let alone = augmented.batch(Split::Train, &[5], Some(&[0])).unwrap();
    assert_eq!(pixels(&alone), &pixels(&seen)[PIXELS..2 * PIXELS], "its place in the batch does not matter");
}

#[test]
fn cifar_files_follow_one_another() {
    let folder = cifar(3);
    let images = read(folder.path()).unwrap();
    let info = images.info();
    assert_eq!((info.train_samples, info.validation_samples, info.vocabulary), (15, 3, 10));
    let batch = images.batch(Split::Train, &[0, 4, 14], None).unwrap();
    assert_eq!(batch.targets, [1, 3, 7]);
    let first: Vec<f32> = [0, 1, 2].iter().map(|i| pixels(&batch)[i * PIXELS]).collect();
    assert_eq!(first, [16, 33, 82].map(|byte| (byte as f32 - 127.5) / 64.0));
    assert_eq!(images.batch(Split::Validation, &[2], None).unwrap().targets, [8]);
}

#[test]
fn bad_cifar_files_are_named_with_the_remedy() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &str); 6] = [
        ("data_batch_4.bin", |path| std::fs::remove_file(path).unwrap(), "cannot read"),
        ("test_batch.bin", |path| std::fs::write(path, vec![0; 2 * RECORD - 1]).unwrap(), "it was cut short"),
        ("data_batch_1.bin", |path| std::fs::write(path, "").unwrap(), "is empty"),
        (
            "data_batch_2.bin",
            |path| std::fs::write(path, [vec![0; RECORD], vec![10; RECORD]].concat()).unwrap(),
            "image 1 has class 10",
        ),
        (
            "data_batch_5.bin",
            |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
            },
            "is not a regular file",
        ),
        (
            "data_batch_3.bin",
            |path| {
                std::fs::remove_file(path).unwrap();
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
            },
            "is not a regular file",
        ),
    ];
    for (name, damage, expected) in cases {
        let folder = cifar(2);
        damage(&folder.path().join(name));
        let message = read(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
    let message = read(Path::new("embedded:circles")).unwrap_err().to_string();
    assert!(message.contains("embedded:shapes"), "{message}");
}
