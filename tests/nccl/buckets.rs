//! Buckets that lie where the model computes, as on a GPU: whatever else touches them finds what it would on the host.

use std::path::Path;

use lockstep_record::{CaptureManifest, Manifest, RunDir, read_json};

use super::over_nccl;
use crate::equality::golden;
#[cfg(feature = "mutations")]
use crate::launch::exactly;
use crate::launch::{Launch, assert_equal};

/// Where the buckets of a run's first execution lay.
fn home(run: &Path) -> String {
    let manifest: Manifest = read_json(&RunDir::new(run).manifest()).unwrap();
    manifest.segments[0].buckets.clone().expect("buckets lie somewhere")
}

fn with(launch: Launch, settings: &[&str]) -> Launch {
    settings.iter().fold(launch, |launch, setting| launch.set(setting))
}

/// Only what goes over NCCL has its buckets on the device; results are those of the host.
#[test]
fn buckets_lie_where_nccl_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    over_nccl(Launch::ranks(2)).run(&run("nccl")).ok();
    Launch::ranks(2).run(&run("mpi")).ok();
    assert_eq!([golden(), run("mpi"), run("nccl")].map(|run| home(&run)), ["host", "host", "device"]);
    assert_equal(&run("mpi"), &run("nccl"));
}

/// Updates on the communication thread, decay as an operation of its own, frozen parameters, parameters without a gradient.
#[test]
fn other_updates_have_the_same_bits() {
    let variants: [&[&str]; 3] = [
        &["optim.kind=sgd", "optim.lr=0.05", "optim.clip_norm=null"],
        &["optim.clip_norm=null", "model.freeze=[wte, \"*.ln_1.*\"]", "checkpoint.at_start=true"],
        &["model.layers=2", "model.layer_drop=0.5", "parallel.unused_parameters=detect"],
    ];
    for settings in variants {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        let launch = |ranks| with(Launch::ranks(ranks), settings).set("parallel.bucket_mb=0.02");
        launch(1).run(&run("golden")).ok();
        over_nccl(launch(2)).run(&run("ddp")).ok();
        over_nccl(launch(3).zero1()).run(&run("zero1")).ok();
        assert_equal(&run("golden"), &run("ddp"));
        assert_equal(&run("golden"), &run("zero1"));
    }
}

/// The arithmetic of compression stays the host's, and with it its bits, which depend on the number of ranks.
#[test]
fn compression_has_the_same_bits() {
    let kinds: [&[&str]; 3] = [
        &["parallel.compression=bf16"],
        &["parallel.compression=fp16", "parallel.strategy=zero1"],
        &["parallel.compression=powersgd", "parallel.powersgd_rank=2"],
    ];
    for settings in kinds {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        let launch = || with(Launch::ranks(3), settings).set("schedule.steps=4");
        launch().run(&run("mpi")).ok();
        over_nccl(launch()).run(&run("nccl")).ok();
        assert_equal(&run("mpi"), &run("nccl"));
    }
}

/// What is moved on purpose, and what a capture holds.
#[test]
fn perturbed_and_captured_steps_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    let launch = || {
        let launch = Launch::ranks(2).zero1().set("schedule.steps=3").set("record.local_gradients=true");
        launch.argument("--capture").argument("step=2").argument("--perturb").argument("all:7:fp32")
    };
    launch().run(&run("mpi")).ok();
    over_nccl(launch()).run(&run("nccl")).ok();
    assert_equal(&run("mpi"), &run("nccl"));
    let [mpi, nccl] = ["mpi", "nccl"].map(|name| -> CaptureManifest {
        read_json(&RunDir::new(run(name)).capture(2).join("manifest.json")).unwrap()
    });
    assert!(!mpi.tensors.is_empty());
    assert_eq!(mpi.tensors, nccl.tensors);
}

/// The control: additions that the device leaves out are seen.
#[cfg(feature = "mutations")]
#[test]
fn half_a_tree_on_the_device_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let launch = over_nccl(Launch::ranks(2).set("record.local_gradients=true"));
    launch.mutate("half-the-tree").run(folder.path()).ok();
    assert!(!exactly(&golden(), folder.path()).passed(), "half a sum went unnoticed");
}
