//! Telemetry of runs that have no GPU: none, and a line in the log of whoever debugs. The rest needs libraries that stand in for
//! NVIDIA's: `src/telemetry/tests.rs`.

use lockstep_record::RunDir;

use crate::equality::golden;
use crate::launch::{Launch, assert_equal};

#[test]
fn a_run_without_a_gpu_leaves_none_and_says_why_in_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    let launch = Launch::ranks(2).set("record.telemetry_every_s=0.05").set("run.device=cpu");
    let ended = launch.set("record.local_gradients=true").env("LOCKSTEP_LOG", "debug").run(run.path()).ok();
    assert!(!run.telemetry().exists() && !ended.stderr.contains("telemetry"), "{}", ended.stderr);
    let log = std::fs::read_to_string(run.rank_log(1)).unwrap();
    assert_eq!(log.matches("no telemetry: this rank computes on no GPU").count(), 1, "{log}");
    assert_equal(&golden(), run.path());
}
