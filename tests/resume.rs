//! A restart does not change one bit, whoever goes on and with how many ranks.

use std::fs;
use std::path::Path;

use lockstep_record::{Manifest, Outcome, RunDir, exit, read_json};

use crate::equality::golden;
use crate::launch::{Launch, assert_equal};

#[test]
fn each_strategy_goes_on_as_another_with_other_ranks() {
    let strategies: [fn(Launch) -> Launch; 2] = [|launch| launch, Launch::zero1];
    for (first, then) in [(0, 1), (1, 0), (1, 1)] {
        let folder = tempfile::tempdir().unwrap();
        strategies[first](Launch::ranks(4)).stop_after(3).run(folder.path()).ok();
        strategies[then](Launch::ranks(3)).resume().run(folder.path()).ok();
        assert_equal(&golden(), folder.path());
    }
}

#[test]
fn one_process_goes_on_with_what_many_began() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(3).zero1().stop_after(7).run(folder.path()).ok();
    Launch::ranks(1).resume().run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

/// A crash leaves records of steps after the last checkpoint, and a line cut short: both are done again.
#[test]
fn a_crash_between_checkpoints_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2).run(folder.path()).ok();
    let run = RunDir::new(folder.path());
    fs::remove_dir_all(run.checkpoint(10)).unwrap();
    let metrics = fs::read(run.metrics()).unwrap();
    fs::write(run.metrics(), &metrics[..metrics.len() - 40]).unwrap();
    // As a write that was cut short leaves it.
    fs::create_dir_all(run.checkpoints().join(".step-00000010.partial")).unwrap();
    Launch::ranks(2).resume().run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
    assert!(!run.checkpoints().join(".step-00000010.partial").exists());
}

#[test]
fn a_signal_saves_and_asks_for_a_requeue() {
    for signal in [libc::SIGUSR1, libc::SIGTERM] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let long = |launch: Launch| launch.set("schedule.steps=2000").set("record.digests_every=0");
        let running = long(Launch::ranks(1)).start(folder.path());
        running.wait_for(&run.metrics());
        running.signal(signal);
        running.wait().code(exit::PREEMPTED).says("go on with --resume auto");
        let manifest: Manifest = read_json(&run.manifest()).unwrap();
        let ended = manifest.segments[0].ended.clone().unwrap();
        assert_eq!(ended.outcome, Outcome::Preempted);
        assert!(run.checkpoint(ended.step).is_dir());
        long(Launch::ranks(1)).resume().stop_after(ended.step + 2).run(folder.path()).ok();
    }
}

/// mpirun passes SIGUSR1 on to the ranks.
#[test]
fn a_signal_to_the_launcher_stops_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    let running =
        Launch::ranks(2).set("schedule.steps=5000").set("record.digests_every=0").start(folder.path());
    running.wait_for(&run.metrics());
    running.signal(libc::SIGUSR1);
    running.wait().code(exit::PREEMPTED);
    let manifest: Manifest = read_json(&run.manifest()).unwrap();
    assert!(run.checkpoint(manifest.segments[0].ended.clone().unwrap().step).is_dir());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_replaced() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 3] = [
        (|file| fs::write(file, &fs::read(file).unwrap()[..1000]).unwrap(), "it was cut short"),
        (
            |file| {
                let mut bytes = fs::read(file).unwrap();
                bytes[20_000] ^= 4;
                fs::write(file, bytes).unwrap();
            },
            "its content has changed",
        ),
        (|file| fs::remove_file(file).unwrap(), "No such file"),
    ];
    for (damage, message) in damages {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        Launch::ranks(2).run(folder.path()).ok();
        damage(&run.checkpoint(10).join("shard-00001-of-00002.safetensors"));
        let ended = Launch::ranks(2).resume().run(folder.path()).ok();
        ended.says(message).says("trying the one before it");
        assert_equal(&golden(), folder.path());
    }
}

/// One command line serves a job that is requeued, before its first checkpoint too.
#[test]
fn nothing_to_resume_is_a_start() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2).resume().run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

#[test]
fn without_any_good_checkpoint_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    Launch::ranks(1).stop_after(5).run(folder.path()).ok();
    fs::write(run.checkpoint(5).join("manifest.json"), "{").unwrap();
    Launch::ranks(1).resume().run(folder.path()).code(exit::NO_CHECKPOINT).says("no usable checkpoint");
}

/// A power cut can take the end of the record and leave a checkpoint that is newer: the steps between are done again.
#[test]
fn a_record_that_ends_before_its_checkpoint_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    Launch::ranks(2).stop_after(8).run(folder.path()).ok();
    let metrics = fs::read(run.metrics()).unwrap();
    fs::write(run.metrics(), &metrics[..metrics.len() - 20]).unwrap();
    Launch::ranks(2).resume().run(folder.path()).ok().says("the record ends at step 7");
    assert_equal(&golden(), folder.path());
}

#[test]
fn a_finished_run_has_nothing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(1).run(folder.path()).ok();
    Launch::ranks(1).resume().run(folder.path()).code(exit::NOTHING_TO_DO).says("done already");
}

#[test]
fn old_checkpoints_go_and_milestones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let keep = [
        "checkpoint.every=2",
        "checkpoint.keep=1",
        "checkpoint.milestone_every=4",
        "checkpoint.at_start=true",
    ];
    keep.iter().fold(Launch::ranks(2), |launch, setting| launch.set(setting)).run(folder.path()).ok();
    assert_eq!(RunDir::new(folder.path()).checkpoint_steps().unwrap(), [0, 4, 8, 10]);
}

#[test]
fn what_the_result_depends_on_cannot_change() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(1).stop_after(5).run(folder.path()).ok();
    let other = Launch::ranks(1).set("optim.lr=0.5").resume().run(folder.path());
    other.code(exit::USAGE).says("optim.lr: the run began with 0.001 and cannot go on with 0.5");
}

#[test]
fn a_checkpoint_of_another_model_or_tokenizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = |name: &str| folder.path().join(name);
    Launch::ranks(1).stop_after(5).run(&from("a")).ok();
    let resume = |launch: Launch| launch.argument("--resume").argument(from("a"));
    resume(Launch::ranks(1).set("model.width=64")).run(&from("b")).code(exit::USAGE).says("of another model");
    let cache = format!("data.cache_dir={}", from("cache").display());
    let bpe = Launch::ranks(1).set("data.tokenizer=bpe").set("data.vocabulary=300").set(&cache);
    resume(bpe).run(&from("c")).code(exit::USAGE).says("its tokenizer (digest) is");
    resume(Launch::ranks(2).zero1()).run(&from("d")).ok();
}
