//! Bad input gives a clear error at once and loses nothing.

use std::fs;

use lockstep_record::{RunDir, exit};

use crate::launch::Launch;

#[test]
fn a_wrong_configuration_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Launch::ranks(2).set("optim.lr=nan").run(&folder.path().join("run")).code(exit::USAGE);
    assert_eq!(ended.stderr.matches("give a number").count(), 1, "{}", ended.stderr);
    Launch::ranks(1).set("optim.learning_rate=1").run(folder.path()).code(exit::USAGE).says("optim.lr");
    Launch::ranks(1)
        .set("data.path=/no/such/text")
        .run(folder.path())
        .code(exit::USAGE)
        .says("/no/such/text");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn a_file_that_is_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let contents: [&[u8]; 4] = [b"run: [", b"\xff\xfe\x00", b"- a\n- b\n", &[b'['; 100_000]];
    for content in contents {
        fs::write(&config, content).unwrap();
        let ended = Launch::ranks(1).argument("--config").argument(&config).run(&folder.path().join("run"));
        ended.code(exit::USAGE).says("config.yaml");
    }
}

#[test]
fn more_ranks_than_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Launch::ranks(3).set("batch.micro_batches=2").run(folder.path()).code(exit::USAGE);
    ended.says("2 micro-batches cannot be shared by 3 ranks");
}

#[test]
fn single_is_for_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2)
        .set("parallel.strategy=single")
        .run(folder.path())
        .code(exit::USAGE)
        .says("parallel.strategy");
}

/// What a mismatch of MPI between host and container looks like from inside.
#[test]
fn a_world_of_one_under_a_launcher_of_many() {
    let folder = tempfile::tempdir().unwrap();
    for backend in ["auto", "solo"] {
        let backend = format!("parallel.backend={backend}");
        let lonely = Launch::ranks(1).set("parallel.strategy=ddp").set(&backend).env("PMI_SIZE", "4");
        lonely.run(folder.path()).code(exit::BOOTSTRAP).says("PMI_SIZE=4");
    }
}

#[test]
fn a_run_directory_that_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("notes.txt");
    fs::write(&notes, "mine").unwrap();
    Launch::ranks(1).run(folder.path()).code(exit::USAGE).says("is not empty");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
}

#[test]
fn a_run_directory_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    fs::create_dir_all(folder.path()).unwrap();
    let lock = fs::OpenOptions::new().create(true).append(true).open(run.lock()).unwrap();
    lock.try_lock().unwrap();
    Launch::ranks(2).resume().run(folder.path()).code(exit::USAGE).says("is in use by another process");
}

#[test]
fn text_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (text, run) = (folder.path().join("text"), folder.path().join("run"));
    let path = format!("data.path={}", text.display());
    fs::write(&text, "short").unwrap();
    Launch::ranks(1).set(&path).run(&run).code(exit::USAGE).says("text");
    fs::write(&text, [b"x".repeat(9000), vec![0xff; 10]].concat()).unwrap();
    let bpe = Launch::ranks(1).set(&path).set("data.tokenizer=bpe").set("data.vocabulary=300");
    bpe.run(&run).code(exit::USAGE).says("UTF-8");
}

#[test]
fn images_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (images, run) = (folder.path().join("cifar"), folder.path().join("run"));
    fs::create_dir(&images).unwrap();
    let launch = |ranks| {
        let path = format!("data.path={}", images.display());
        Launch::of("configs/resnet-tiny.yaml", ranks).set(&path)
    };
    launch(1).run(&run).code(exit::USAGE).says("data_batch_1.bin");
    for file in 1..=5 {
        fs::write(images.join(format!("data_batch_{file}.bin")), [3; 3073 * 9]).unwrap();
    }
    fs::write(images.join("test_batch.bin"), [3; 3072]).unwrap();
    launch(2).run(&run).code(exit::USAGE).says("test_batch.bin has 3072 bytes");
    fs::write(images.join("test_batch.bin"), [3; 3073 * 2]).unwrap();
    launch(2).set("schedule.steps=3").run(&run).ok();
    let text = Launch::ranks(1).set("data.kind=images").run(&run);
    text.code(exit::USAGE).says("the model of this model.kind reads text");
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ended = Launch::ranks(2).argument("--dry-run").run(folder.path()).ok();
    assert!(ended.stdout.contains("2 rank(s) over mpi"), "{}", ended.stdout);
    assert_eq!(ended.stdout.matches("dry run:").count(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
