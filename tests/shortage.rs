//! Memory that runs out: the error says what this rank needs it for and what to lower, and all ranks end at once.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_record::exit;

use crate::launch::{Ended, Launch};

/// More address space than a small training takes, in KiB: 12 GiB. What is refused is larger than that in one piece, so that
/// little is really used.
const LIMIT: &str = "ulimit -v 12582912";

fn ends(launch: Launch, run: &Path) -> Ended {
    let started = Instant::now();
    let ended = launch.each_rank_after(LIMIT).run(run).code(exit::INTERNAL);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    ended.says("out of memory on the host: ").says("What this training needs there, the largest first:")
}

/// The embedding of 4 million tokens is 16 GiB. Whoever fails first speaks, and nobody waits in a collective for the others.
#[test]
fn a_micro_batch_that_is_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch::ranks(2)
        .set("model.width=1024")
        .set("model.context=64")
        .set("data.max_samples=null")
        .set("batch.micro_batches=2")
        .set("batch.micro_batch_size=65536")
        .set("evaluate.every=0")
        .set("schedule.steps=2");
    let ended = ends(launch, folder.path());
    let ended = ended
        .says("activations of one micro-batch (an estimate): lower batch.micro_batch_size or model.context");
    ended.says("DefaultCPUAllocator: can't allocate memory");
}

/// One weight is 36 GB: rank 0 finds out before the first step, and tells the others.
#[test]
fn a_model_that_is_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let model = |ranks, precision: &str| {
        let launch = Launch::of("configs/resnet-tiny.yaml", ranks).set("model.width=32000");
        launch.set(&format!("precision={precision}"))
    };
    for (name, launch) in [("ranks", model(2, "fp32")), ("alone", model(1, "bf16"))] {
        let ended = ends(launch, &folder.path().join(name));
        let ended = ended.says("parameters (the largest, ").says("lower model.width or model.layers");
        assert_eq!(ended.stderr.matches("out of memory").count(), 1, "{}", ended.stderr);
        // Another precision is not the remedy.
        assert!(!ended.stderr.contains("libtorch cannot train this model"), "{}", ended.stderr);
    }
}
