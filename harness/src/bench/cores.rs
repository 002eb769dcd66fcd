//! Who used the cores while a run was measured: a figure is worth quoting only if nothing else kept them
//! busy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The unit of times in /proc, per second: Linux shows 100 on every architecture that libtorch runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// How the CPU time of a launch and all its descendants is told from that of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accounting {
    /// A control group that this program joins, and all its descendants with it, in whatever namespace they
    /// are.
    Cgroup,
    /// The times of children that were waited for: what a launcher starts and does not wait for counts as
    /// others'.
    Children,
}

/// Measures the cores' time. While it lives, this program is in a control group of its own, where it may make
/// one.
#[derive(Debug)]
pub struct Cores {
    group: Option<Group>,
}

#[derive(Debug)]
struct Group {
    path: PathBuf,
    parent: PathBuf,
}

/// The cores' time so far.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    busy: Busy,
    own_seconds: f64,
}

/// The first line of /proc/stat.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Busy {
    /// Seconds that all cores together were not idle. What a hypervisor took (steal) counts: no one here had
    /// it.
    seconds: f64,
    cores: usize,
}

impl Cores {
    pub fn new() -> Self {
        Self { group: Group::join() }
    }

    pub fn accounting(&self) -> Accounting {
        match self.group {
            Some(_) => Accounting::Cgroup,
            None => Accounting::Children,
        }
    }

    /// The folder of the control group, if there is one.
    pub fn group(&self) -> Option<&Path> {
        self.group.as_ref().map(|group| group.path.as_path())
    }

    /// None if /proc cannot be read: then nothing is known about others.
    pub fn read(&self) -> Option<Reading> {
        let own_seconds = match &self.group {
            Some(group) => group_seconds(&fs::read_to_string(group.path.join("cpu.stat")).ok()?)?,
            None => children_seconds(&fs::read_to_string("/proc/self/stat").ok()?)?,
        };
        let busy = busy(&fs::read_to_string("/proc/stat").ok()?)?;
        Some(Reading { at: Instant::now(), busy, own_seconds })
    }
}

/// CPU time of others between two readings, as a share of all cores: 0 is a machine for oneself.
pub fn others_share(before: &Reading, after: &Reading) -> f64 {
    let wall = (after.at - before.at).as_secs_f64();
    share(
        after.busy.seconds - before.busy.seconds,
        after.own_seconds - before.own_seconds,
        wall * after.busy.cores as f64,
    )
}

/// Ticks are coarse, so that within a short run own time may exceed what was counted as busy, or that what
/// there was.
fn share(busy: f64, own: f64, available: f64) -> f64 {
    if available > 0.0 { ((busy - own) / available).clamp(0.0, 1.0) } else { 0.0 }
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user and nice
/// already.
fn busy(stat: &str) -> Option<Busy> {
    let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] = ticks[..] else { return None };
    let is_core = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let cores = stat.lines().filter(is_core).count();
    let seconds = (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND;
    (cores > 0).then_some(Busy { seconds, cores })
}

/// `usage_usec N` of a group's `cpu.stat`.
fn group_seconds(stat: &str) -> Option<f64> {
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usage.trim().parse::<f64>().ok()? / 1e6)
}

/// Fields 16 and 17 of /proc/PID/stat, `cutime` and `cstime`. The second field is the program's name, in
/// brackets, which may hold anything.
fn children_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let times = rest.split_whitespace().skip(13).take(2);
    let times: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>().ok()?;
    (times.len() == 2).then(|| times.iter().sum::<f64>() / TICKS_PER_SECOND)
}

impl Group {
    /// Makes a group below this program's own and joins it; None where that is not allowed, or not there.
    fn join() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let parent = unified(&mounts, &own)?;
        let path = parent.join(format!("lockstep-bench-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Self { path, parent };
        let usable = enter(&group.path).is_ok() && group.path.join("cpu.stat").is_file();
        // Dropping it leaves and removes it.
        usable.then_some(group)
    }
}

impl Drop for Group {
    /// A group that something still runs in (hosts that a plan does not take down) stays: it costs nothing.
    fn drop(&mut self) {
        let _ = enter(&self.parent);
        let _ = fs::remove_dir(&self.path);
    }
}

/// Moves the process that writes into a group.
fn enter(group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// The folder of this process's group in the unified hierarchy (cgroup v2).
fn unified(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then(|| place.split(' ').nth(4))?
    })?;
    Some(Path::new(mount).join(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const STAT: &str = "cpu  100 20 30 900 50 4 6 40 99 99\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\ncpufreq 1\n";

    #[test]
    fn idle_and_waiting_cores_are_not_busy() {
        assert_eq!(busy(STAT), Some(Busy { seconds: 2.0, cores: 2 }));
        for bad in ["", "cpu  1 2 3", "cpu  a b c d e f g h\ncpu0 1", "cpu  1 2 3 4 5 6 7 8"] {
            assert_eq!(busy(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "7 (a) R (b c) S 1 7 7 0 -1 4194304 1 2 3 4 50 60 700 800 20 0 1 0";
        assert_eq!(children_seconds(stat), Some(15.0));
        assert_eq!(children_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn the_group_is_found_in_either_layout() {
        let hybrid = "30 20 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 20 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(unified(hybrid, "4:memory:/a\n0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        let unified_only = "31 20 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let expected = "/sys/fs/cgroup/user.slice/x".into();
        assert_eq!(unified(unified_only, "0::/user.slice/x\n"), Some(expected));
        assert_eq!(unified("30 20 0:27 / /sys/fs/cgroup rw - cgroup cgroup rw\n", "0::/\n"), None);
        assert_eq!(group_seconds("usage_usec 2500000\nuser_usec 1\n"), Some(2.5));
    }

    /// A negative control and its opposite: a program beside us is seen as another's, one of ours is not.
    #[test]
    fn a_child_that_was_waited_for_is_not_someone_else() {
        let cores = Cores { group: None };
        let before = cores.read().unwrap();
        // A fixed amount of work: on a busy machine a fixed time might bring next to none.
        let work = "i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", work]).status().unwrap().success());
        let after = cores.read().unwrap();
        assert!(after.own_seconds - before.own_seconds > 0.05, "{before:?} {after:?}");
        let foreign = Reading { own_seconds: before.own_seconds, ..after };
        let gap = others_share(&before, &foreign) - others_share(&before, &after);
        assert!(gap > 0.0, "taken for another's it must count: {gap}");
    }

    /// What a launcher leaves to others to wait for is told from strangers by a control group only.
    #[test]
    fn an_orphan_is_ours_where_there_is_a_control_group() {
        let folder = tempfile::tempdir().unwrap();
        let done = folder.path().join("done");
        let cores = Cores::new();
        let before = cores.read().unwrap();
        let work = "(i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done; : > \"$0\") > /dev/null 2>&1 &";
        let status = std::process::Command::new("setsid").args(["sh", "-c", work]).arg(&done).status();
        assert!(status.unwrap().success());
        for _ in 0..6000 {
            if done.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(done.exists(), "the orphan has not finished");
        let own = cores.read().unwrap().own_seconds - before.own_seconds;
        match cores.accounting() {
            Accounting::Cgroup => assert!(own > 0.05, "{own}"),
            // Other tests' children may have been waited for meanwhile: nothing can be said.
            Accounting::Children => {}
        }
    }

    proptest! {
        #[test]
        fn a_share_is_never_negative_and_grows_with_what_others_did(
            own in 0.0..100f64,
            others in 0.0..100f64,
            more in 0.0..10f64,
            wall in 1.0..100f64,
            cores in 1..64usize,
        ) {
            let available = wall * cores as f64;
            let quiet = share(own, own, available);
            let some = share(own + others, own, available);
            let most = share(own + others + more, own, available);
            prop_assert!(quiet == 0.0 && 0.0 <= some && some <= most + 1e-9);
            prop_assert!((some - (others / available).min(1.0)).abs() < 1e-9);
            prop_assert_eq!(share(0.0, own, available), 0.0);
        }

        #[test]
        fn nothing_in_proc_panics(text in "[ -~\n]{0,200}") {
            let _ = (busy(&text), children_seconds(&text), group_seconds(&text), unified(&text, &text));
        }
    }

    #[test]
    fn no_time_at_all_is_no_disturbance() {
        let busy = Busy { seconds: 1.0, cores: 2 };
        let reading = Reading { at: Instant::now(), busy, own_seconds: 0.0 };
        assert_eq!(others_share(&reading, &reading), 0.0);
        let later = Reading {
            at: reading.at + Duration::from_secs(2),
            busy: Busy { seconds: 2.0, cores: 2 },
            own_seconds: 0.5,
        };
        assert_eq!(others_share(&reading, &later), 0.125);
    }
}
