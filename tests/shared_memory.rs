//! Gradients that are added up in memory that all ranks see, and ranks that see none.

use lockstep_record::RunDir;

use crate::doctor::unshare;
use crate::equality::golden;
use crate::launch::{Launch, assert_equal};

fn launch(ranks: usize) -> Launch {
    Launch::ranks(ranks).set("record.local_gradients=true").set("parallel.bucket_mb=0.05")
}

const WARNING: &str = "the ranks have no memory in common, and send their gradients";

/// One rank has another /dev/shm than the others: they say so, and go on with messages and the same bits.
#[test]
fn ranks_without_memory_in_common_send_gradients() {
    let Some(unshare) = unshare() else { return };
    let elsewhere = format!(
        "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && exec {unshare} sh -c 'mount -t tmpfs tmpfs /dev/shm; exec \"$@\"' sh \"$@\""
    );
    let folder = tempfile::tempdir().unwrap();
    for (name, launch) in [("ddp", launch(2)), ("zero1", launch(3).zero1())] {
        let run = folder.path().join(name);
        launch.each_rank_after(&elsewhere).run(&run).ok();
        let log = std::fs::read_to_string(RunDir::new(&run).rank_log(0)).unwrap();
        assert!(log.contains(WARNING) && log.contains("rank 1: No such file or directory"), "{log}");
        assert_equal(&golden(), &run);
    }
}

/// Whoever has not been told to share says nothing.
#[test]
fn sharing_is_not_missed_where_it_is_off() {
    let folder = tempfile::tempdir().unwrap();
    for (name, setting) in [("on", "parallel.shared_memory=true"), ("off", "parallel.shared_memory=false")] {
        let run = folder.path().join(name);
        launch(2).set(setting).run(&run).ok();
        let log = std::fs::read_to_string(RunDir::new(&run).rank_log(0)).unwrap();
        assert!(!log.contains(WARNING), "{log}");
    }
}

/// With messages this would hang, crash, or mix up buckets: in shared memory each rank sees what the others came for.
#[cfg(feature = "mutations")]
#[test]
fn a_rank_with_another_bucket_is_found_at_once() {
    use lockstep_record::exit;

    let folder = tempfile::tempdir().unwrap();
    let ended = launch(3).mutate("bucket-order").run(folder.path()).code(exit::INTERNAL);
    let ended = ended.says("the ranks call different collectives:").says("No data have moved");
    ended.says("\n  ranks 0-1: all-reduce of bucket 0, step 1 (").says("\n  rank 2: all-reduce of bucket ");
}
