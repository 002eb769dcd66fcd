//! `lockstep-harness tune` with a shell script in the trainer's place, whose speed depends on its settings. The real
//! trainer is swept in the root package's tests.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Run, harness};
use lockstep_record::exit;

/// Copies the record that its `--set`s name, keeps a diary, and fails if it is told to.
const TRAINER: &str = r#"#!/bin/sh
here=$(dirname "$0")
bucket=own
while [ $# -gt 0 ]; do
  case "$1" in
    --run-dir) run=$2; shift ;;
    --set)
      case "$2" in
        parallel.bucket_mb=*) bucket=${2#*=} ;;
        behave=fail) echo "lockstep: out of luck" >&2; exit 70 ;;
      esac
      shift ;;
  esac
  shift
done
echo "$bucket" >> "$here/diary"
mkdir -p "$run"
cp -r "$here/records/$bucket/." "$run"
"#;
const LAUNCHER: &str = "#!/bin/sh\nshift\nexec \"$@\"\n";

struct Stand {
    folder: tempfile::TempDir,
}

impl Stand {
    /// A trainer whose steps take `seconds[i]` with a bucket of `buckets[i]`; as configured it is 25.
    fn new(seconds: &[(&str, f64)]) -> Self {
        let stand = Self { folder: tempfile::tempdir().unwrap() };
        for (name, text) in [("lockstep", TRAINER), ("launcher", LAUNCHER)] {
            std::fs::write(stand.path(name), text).unwrap();
            std::fs::set_permissions(stand.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(stand.path("c.yaml"), "{}").unwrap();
        for &(bucket, seconds) in seconds {
            let mut run = Run::new(2);
            run.manifest.config = serde_json::json!({
                "parallel": { "bucket_mb": 25.0, "overlap": true }, "run": { "threads_per_rank": 1 }
            });
            run.metrics.iter_mut().for_each(|line| line.seconds.total = seconds);
            run.write(&stand.path("records").join(bucket));
        }
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tune(&self, options: &[&str]) -> (i32, String, String) {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let [config, out, trainer, work] =
            ["c.yaml", "tuned.yaml", "lockstep", "work"].map(|name| text(&self.path(name)));
        let launcher = format!("{} {{ranks}}", self.path("launcher").display());
        let mut arguments = vec!["tune", "--config", &config, "--trainer", &trainer, "--work-dir", &work];
        arguments.extend(["--launcher", &launcher, "--buckets", "1,25", "--overlap", "on"]);
        let given = |name| options.contains(&name);
        if !given("--out") {
            arguments.extend(["--out", &out]);
        }
        if !given("--ranks") {
            arguments.extend(["--ranks", "2"]);
        }
        harness(&[&arguments[..], options].concat())
    }
}

#[test]
fn the_fastest_is_written_and_runs_take_turns() {
    let stand = Stand::new(&[("own", 1.0), ("25", 1.0), ("1", 0.5)]);
    let (code, printed, errors) = stand.tune(&[]);
    assert_eq!(code, exit::OK, "{errors}");
    assert!(printed.contains("1 MiB, overlap, 1 thread is 100.0 % faster"), "{printed}");
    let config = std::fs::read_to_string(stand.path("tuned.yaml")).unwrap();
    assert!(
        config.contains("extends: [\"c.yaml\"]\nparallel: { bucket_mb: 1, overlap: true }\n"),
        "{config}"
    );
    assert!(!config.contains("threads_per_rank"), "{config}");
    assert!(std::fs::read_to_string(stand.path("tuned.svg")).unwrap().contains("</svg>"));
    let diary = std::fs::read_to_string(stand.path("diary")).unwrap();
    assert_eq!(diary.lines().collect::<Vec<_>>(), ["own", "1", "1", "25", "25", "1"]);
}

#[test]
fn without_a_difference_the_configurations_own_setting_stays() {
    let stand = Stand::new(&[("own", 1.0), ("25", 1.0), ("1", 1.0)]);
    let (code, printed, _) = stand.tune(&["--set", "a.b=\nc"]);
    assert_eq!(code, exit::OK);
    assert!(printed.contains("the configuration's own setting is the fastest: it stays"), "{printed}");
    let config = std::fs::read_to_string(stand.path("tuned.yaml")).unwrap();
    assert!(config.contains("bucket_mb: 25, overlap: true"), "{config}");
    assert!(config.contains("# Measured with --set a.b= c,"), "{config}");
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_runs() {
    let stand = Stand::new(&[("own", 1.0)]);
    std::fs::write(stand.path("there.yaml"), "mine").unwrap();
    let there = stand.path("there.yaml").display().to_string();
    let nowhere = stand.path("none/tuned.yaml").display().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["--ranks", "0"], "0 is not in 1..=4096"),
        (&["--out", &there], "exists already"),
        (&["--out", &nowhere], "name a file in a folder that can be written"),
        (&["--buckets", "0"], "above 0"),
        (&["--buckets", "nan"], "above 0"),
        (&["--overlap", "yes"], "`on` or `off`"),
        (&["--threads", "0"], "not in 1..=1024"),
        (&["--repetitions", "2"], "not in 3..=1000"),
    ];
    for (options, message) in cases {
        let (code, _, errors) = stand.tune(options);
        assert_eq!(code, exit::USAGE, "{options:?}");
        assert!(errors.contains(message), "{options:?}: {errors}");
    }
    assert!(!stand.path("diary").exists());
    assert_eq!(std::fs::read_to_string(there).unwrap(), "mine");
}

#[test]
fn a_run_that_fails_is_quoted_and_nothing_is_written() {
    let stand = Stand::new(&[("own", 1.0)]);
    let (code, _, errors) = stand.tune(&["--set", "behave=fail"]);
    assert_eq!(code, exit::CASE_FAILED);
    assert!(
        errors.contains("as configured, run 1: exit code 70") && errors.contains("out of luck"),
        "{errors}"
    );
    assert!(!stand.path("tuned.yaml").exists());
}

#[test]
fn a_launcher_that_is_not_there_is_named() {
    let stand = Stand::new(&[("own", 1.0)]);
    let out = stand.path("tuned.yaml").display().to_string();
    let config = stand.path("c.yaml").display().to_string();
    let (trainer, work) =
        (stand.path("lockstep").display().to_string(), stand.path("w").display().to_string());
    let (code, _, errors) = harness(&[
        "tune",
        "--config",
        &config,
        "--out",
        &out,
        "--ranks",
        "2",
        "--trainer",
        &trainer,
        "--work-dir",
        &work,
        "--launcher",
        "/nonexistent/mpirun",
    ]);
    assert_eq!(code, exit::CASE_FAILED);
    assert!(errors.contains("could not be started"), "{errors}");
}
