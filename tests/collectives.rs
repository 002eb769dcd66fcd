//! Collectives that hang or do not match: who is to blame is named, and with the check on nothing is exchanged.

use lockstep_record::RunDir;
#[cfg(feature = "mutations")]
use lockstep_record::exit;

use crate::equality::golden;
use crate::launch::{Launch, assert_equal};

/// The check adds nothing to what it guards.
#[test]
fn checked_collectives_change_no_bit() {
    for launch in [Launch::ranks(3), Launch::ranks(2).zero1()] {
        let folder = tempfile::tempdir().unwrap();
        launch.set("parallel.check_collectives=true").run(folder.path()).ok();
        assert_equal(&golden(), folder.path());
        assert!(!RunDir::new(folder.path()).flight().exists(), "a sound run leaves no flight recorder");
    }
}

#[cfg(feature = "mutations")]
mod planted {
    use std::time::{Duration, Instant};

    use lockstep_harness::flight;

    use super::*;
    use crate::launch::Ended;

    /// Several buckets even in the smallest model.
    fn buckets(mutation: &str) -> Launch {
        Launch::ranks(3).mutate(mutation).set("parallel.bucket_mb=0.02")
    }

    /// Ends with one message, before any step is done, and every rank leaves its collectives.
    fn is_refused(launch: Launch) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let ended = launch.set("parallel.check_collectives=true").run(run.path()).code(exit::INTERNAL);
        let ended = ended.says("No data have moved");
        assert_eq!(ended.stderr.matches("No data have moved").count(), 1, "{}", ended.stderr);
        assert_eq!(std::fs::read(run.metrics()).unwrap_or_default(), b"", "{}", ended.stderr);
        assert_eq!(flight::read(&run).unwrap().ranks.len(), 3, "{}", ended.stderr);
        ended
    }

    #[test]
    fn buckets_in_another_order_are_refused() {
        let ended = is_refused(buckets("bucket-order"));
        let ended = ended.says("the ranks call different collectives:");
        ended
            .says("\n  ranks 0-1: all-reduce of bucket 0, step 1 (")
            .says("\n  rank 2: all-reduce of bucket ");
    }

    #[test]
    fn a_message_of_another_length_is_refused() {
        let ended = is_refused(buckets("gather-length").set("parallel.shared_memory=false"));
        ended.says("the lengths of all-gather of bucket 0, step 1 do not fit:").says("rank 2 sends ");
    }

    /// A rank whose training thread never comes back still answers, from its watchdog's thread.
    #[test]
    fn a_rank_that_computes_for_ever_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let launch = Launch::ranks(3).mutate("endless-loop").set("parallel.timeout_s=1.5");
        let ended = launch.run(run.path()).code(exit::WATCHDOG);
        let ended = ended.says("\n  rank 2: computing, or at a file, in step 3 (last collective: ");
        let ended = ended.says("\n  ranks 0-1: in all-reduce of bucket 0, step 3 (data ");
        assert_eq!(ended.stderr.matches("made no progress").count(), 1, "{}", ended.stderr);
        let report = flight::read(&run).unwrap();
        assert_eq!(report.ranks.len(), 3, "{}", ended.stderr);
        let parting = report.partings().into_iter().next().expect("rank 2 is missing").to_string();
        assert!(parting.contains("\n  rank 2: never came"), "{parting}");
    }

    /// Without threads in MPI the watchdogs cannot ask; the run still ends in time.
    #[test]
    fn an_mpi_without_threads_still_ends_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let launch = Launch::ranks(2).set("parallel.mpi_threads=funneled").set("schedule.steps=20000");
        let running = launch.set("parallel.timeout_s=1.5").set("checkpoint.every=0").start(run.path());
        running.wait_for(&run.metrics());
        let stopped = Instant::now();
        // SAFETY: stops a rank that this test started.
        unsafe { libc::kill(running.rank_pid(1), libc::SIGSTOP) };
        let ended = running.wait().code(exit::WATCHDOG);
        assert!(stopped.elapsed() < Duration::from_secs(6), "{:?}", stopped.elapsed());
        let ended = ended.says("made no progress for 1.5 s (parallel.timeout_s)");
        ended.says("MPI's thread level is Funneled, not Multiple");
    }
}
