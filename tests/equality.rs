//! The promise: the number of processes and the strategy do not change one bit.

use std::path::PathBuf;
use std::sync::OnceLock;

use lockstep_harness::compare::{Mode, Tolerance, compare};
use lockstep_record::{Manifest, RunDir, read_json};
use tempfile::TempDir;

use crate::launch::{Launch, assert_equal, exactly};

/// The golden run that most tests compare with: one process.
pub fn golden() -> PathBuf {
    static GOLDEN: OnceLock<TempDir> = OnceLock::new();
    let folder = GOLDEN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        Launch::ranks(1).set("record.local_gradients=true").run(&folder.path().join("run")).ok();
        folder
    });
    folder.path().join("run")
}

#[test]
fn ddp_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    for ranks in [2, 3, 5, 8] {
        let run = folder.path().join(ranks.to_string());
        Launch::ranks(ranks).set("record.local_gradients=true").run(&run).ok();
        assert_equal(&golden(), &run);
    }
}

#[test]
fn zero1_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    for ranks in [2, 4, 7] {
        let run = folder.path().join(ranks.to_string());
        Launch::ranks(ranks).zero1().set("record.local_gradients=true").run(&run).ok();
        assert_equal(&golden(), &run);
    }
}

#[test]
fn buckets_do_not_move_bits() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(3).zero1().set("parallel.bucket_mb=0.01").run(folder.path()).ok();
    assert_equal(&golden(), folder.path());
}

#[test]
fn other_models_optimizers_and_tokenizers() {
    let variants: [&[&str]; 3] = [
        &["optim.kind=sgd", "optim.lr=0.05", "schedule.kind=linear"],
        &["model.positions=rotary", "schedule.kind=constant", "optim.clip_norm=null"],
        &["data.tokenizer=bpe", "data.vocabulary=300", "data.max_samples=32"],
    ];
    for settings in variants {
        let folder = tempfile::tempdir().unwrap();
        let cache = format!("data.cache_dir={}", folder.path().join("cache").display());
        let with =
            |launch: Launch| settings.iter().fold(launch.set(&cache), |launch, setting| launch.set(setting));
        with(Launch::ranks(1)).run(&folder.path().join("golden")).ok();
        with(Launch::ranks(3)).zero1().run(&folder.path().join("zero1")).ok();
        assert_equal(&folder.path().join("golden"), &folder.path().join("zero1"));
    }
}

/// Convolutions, dropout and augmentation; an epoch ends within a micro-batch, and a run is resumed.
#[test]
fn a_resnet_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    let resnet = |ranks| {
        let launch = Launch::of("configs/resnet-tiny.yaml", ranks).set("data.max_samples=21");
        launch.set("batch.micro_batches=4").set("record.local_gradients=true")
    };
    resnet(1).run(&run("golden")).ok();
    resnet(3).run(&run("ddp")).ok();
    resnet(2).zero1().stop_after(5).run(&run("zero1")).ok();
    resnet(4).zero1().resume().run(&run("zero1")).ok();
    for name in ["ddp", "zero1"] {
        assert_equal(&run("golden"), &run(name));
    }
    // The control: augmentation is on, so without it the bits are others.
    resnet(1).set("data.augment=false").run(&run("plain")).ok();
    assert!(!exactly(&run("golden"), &run("plain")).passed());
}

#[test]
fn more_micro_batches_than_a_power_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    Launch::ranks(1).set("batch.micro_batches=11").run(&run("golden")).ok();
    Launch::ranks(4).set("batch.micro_batches=11").run(&run("ddp")).ok();
    assert_equal(&run("golden"), &run("ddp"));
}

/// The negative control of the whole: another seed must not pass.
#[test]
fn another_seed_differs() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(2).set("run.seed=7").run(folder.path()).ok();
    assert!(!exactly(&golden(), folder.path()).passed());
}

/// The library's own all-reduce is close and not equal: so `ordered` is what makes runs equal. Three ranks, because at
/// powers of two the library may happen to add as the tree does; and a large `eps`, because AdamW turns gradients that
/// are zero but for rounding into steps of its full rate.
#[test]
fn native_reduction_is_close_but_not_equal() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, launch: Launch| {
        launch.set("optim.eps=1e-6").set("optim.lr=3e-4").run(&folder.path().join(name)).ok();
        folder.path().join(name)
    };
    let golden = run("golden", Launch::ranks(1));
    let native = run("native", Launch::ranks(3).set("parallel.reduction=native"));
    assert!(!exactly(&golden, &native).passed());
    let tolerance = Tolerance { rtol: 1e-5, atol: 1e-6, parameter_norm_atol: None };
    let close = compare(&golden, &native, Mode::Tolerance(tolerance)).unwrap();
    assert!(close.passed(), "{:?}", close.first_difference());
}

#[test]
fn zero1_holds_its_share_of_the_optimizer() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(4).zero1().run(folder.path()).ok();
    let bytes = |run: PathBuf| -> Vec<u64> {
        let manifest: Manifest = read_json(&RunDir::new(run).manifest()).unwrap();
        manifest.segments[0].ranks.iter().map(|rank| rank.optimizer_bytes + rank.master_bytes).collect()
    };
    let (whole, shares) = (bytes(golden())[0], bytes(folder.path().into()));
    assert_eq!(shares.iter().sum::<u64>(), whole);
    // A bucket splits at blocks, so a share is even to within one block a bucket and kind of state.
    let block = 3 * 4 * lockstep_record::BLOCK_ELEMENTS as u64;
    assert!(shares.iter().all(|share| share.abs_diff(whole / 4) <= 2 * block), "{shares:?} of {whole}");
}

#[test]
fn training_learns() {
    let folder = tempfile::tempdir().unwrap();
    Launch::ranks(1).set("schedule.steps=60").set("optim.lr=3e-3").run(folder.path()).ok();
    let lines: Vec<lockstep_record::StepLine> =
        lockstep_record::read_lines(&RunDir::new(folder.path()).metrics())
            .unwrap()
            .map(Result::unwrap)
            .collect();
    let (first, last) = (lines[0].loss.0, lines[59].loss.0);
    assert!(last < first - 1.0, "loss went from {first} to {last}");
}
