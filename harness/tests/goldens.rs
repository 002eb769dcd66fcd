//! `lockstep-harness bless`: golden runs that are stored, versioned, checked by digest, and never compared with across
//! families without saying so.

mod common;

use std::path::{Path, PathBuf};

use common::{Run, STEPS, harness};
use lockstep_record::{Ended, Outcome, Processor, ProcessorKind, RankInfo, Real, RunDir};

/// A folder with a run that was stored as `goldens/demo`, and candidates.
struct Stand {
    folder: tempfile::TempDir,
}

fn processor(model: &str) -> Processor {
    Processor {
        kind: ProcessorKind::Cpu,
        vendor: "GenuineIntel".into(),
        family: "6".into(),
        model: model.into(),
        name: "Xeon".into(),
    }
}

/// A finished run on a known processor.
fn run(world: u32) -> Run {
    let mut run = Run::new(world);
    let segment = &mut run.manifest.segments[0];
    segment.ended = Some(Ended { step: STEPS, outcome: Outcome::Finished, unix_s: 1 });
    let info = |rank| RankInfo {
        rank,
        host: "h".into(),
        optimizer_bytes: 0,
        master_bytes: 0,
        processor: Some(processor("143")),
    };
    segment.ranks = (0..world).map(info).collect();
    run
}

impl Stand {
    /// The synthetic runs of these tests are not right in every respect, hence `--unchecked`.
    fn new() -> Self {
        let stand = Self { folder: tempfile::tempdir().unwrap() };
        run(1).write(&stand.path("run"));
        let (code, out, errors) = stand.bless(&["--note", "the first"]);
        assert_eq!(code, 0, "{errors}");
        assert!(out.starts_with("golden run demo, revision 1 of 20"), "{out}");
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn golden(&self) -> RunDir {
        RunDir::new(self.path("goldens/demo"))
    }

    fn bless(&self, options: &[&str]) -> (i32, String, String) {
        let (run, into) = (self.text("run"), self.text("goldens/demo"));
        harness(&[&["bless", &run, "--into", &into, "--unchecked"], options].concat())
    }

    fn compare(&self, candidate: &Run, options: &[&str]) -> (i32, String, String) {
        let path = self.path("candidate");
        let _ = std::fs::remove_dir_all(&path);
        candidate.write(&path);
        harness(&[&["compare", &self.text("goldens/demo"), &self.text("candidate")], options].concat())
    }

    fn list(&self) -> (i32, String) {
        let (code, out, errors) = harness(&["bless", "--list", &self.text("goldens")]);
        (code, out + &errors)
    }
}

#[test]
fn a_stored_run_is_compared_as_any_other() {
    let stand = Stand::new();
    let (code, out, errors) = stand.compare(&run(3), &[]);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("bit-identical"), "{out}");
    let mut other = run(3);
    other.metrics[2].loss = Real(9.0);
    let (code, out, _) = stand.compare(&other, &[]);
    assert_eq!(code, 100);
    assert!(out.contains("step 3, forward, loss"), "{out}");
    // What it needs, and the newest checkpoint.
    let mut files: Vec<String> = walk(stand.golden().path());
    files.sort();
    assert_eq!(
        files,
        [
            "checkpoints/step-00000005/manifest.json",
            "checkpoints/step-00000005/shard-00000-of-00001.safetensors",
            "digests.jsonl",
            "golden.json",
            "manifest.json",
            "metrics.jsonl",
            "samples.jsonl"
        ]
    );
}

fn walk(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    files
}

#[test]
fn another_family_is_said_in_one_sentence_instead_of_in_numbers() {
    let stand = Stand::new();
    let mut other = run(3);
    for rank in &mut other.manifest.segments[0].ranks {
        rank.processor = Some(processor("85"));
    }
    other.manifest.segments[0].cpu_capability = "AVX512".into();
    other.manifest.segments[0].threads_per_rank = 2;
    other.manifest.segments[0].versions.insert("libtorch".into(), "2.14.0".into());
    other.metrics[2].loss = Real(9.0);
    let (code, out, errors) = stand.compare(&other, &[]);
    assert_eq!((code, out.as_str()), (101, ""), "{errors}");
    let sentence = "golden run demo, revision 1 of ";
    assert!(errors.starts_with(&format!("error: {sentence}")), "{errors}");
    for field in [
        "processor CPU GenuineIntel 6/143 (Xeon), the candidate's CPU GenuineIntel 6/85 (Xeon)",
        "cpu_capability AVX2, the candidate's AVX512",
        "threads_per_rank 1, the candidate's 2",
        "libtorch 2.13.0, the candidate's 2.14.0",
        "--any-family",
    ] {
        assert!(errors.contains(field), "{field} is not in: {errors}");
    }
    let (code, out, _) = stand.compare(&other, &["--any-family"]);
    assert_eq!(code, 100);
    assert!(out.contains("note: golden run demo") && out.contains("step 3, forward, loss"), "{out}");
    // Within a tolerance, it is only said.
    other.metrics[2].loss = run(3).metrics[2].loss;
    let (code, out, _) = stand.compare(&other, &["--rtol", "1e-5"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("is of another family"), "{out}");
    // A plain run directory has notes only, as before.
    let (code, _, _) = harness(&["compare", &stand.text("run"), &stand.text("candidate")]);
    assert_eq!(code, 0);
}

#[test]
fn a_processor_that_is_not_known_is_said() {
    let stand = Stand::new();
    let mut unknown = Run::new(1);
    unknown.manifest.segments[0].ended = run(1).manifest.segments[0].ended.clone();
    unknown.write(&stand.path("run"));
    assert_eq!(stand.bless(&["--replace"]).0, 0);
    let (code, out, _) = stand.compare(&run(2), &[]);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("revision 2 of 20") && out.contains("does not say which processor it was made on"),
        "{out}"
    );
}

#[test]
fn a_golden_run_is_replaced_on_demand_and_counts_on() {
    let stand = Stand::new();
    let (code, _, errors) = stand.bless(&[]);
    assert_eq!(code, 2);
    assert!(
        errors.contains("holds golden run demo, revision 1")
            && errors.contains("--replace to store revision 2"),
        "{errors}"
    );
    for revision in [2, 3] {
        let (code, out, _) = stand.bless(&["--replace", "--note", "again"]);
        assert_eq!(code, 0);
        assert!(out.contains(&format!("revision {revision} of ")), "{out}");
    }
    let header: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(stand.golden().golden_header()).unwrap()).unwrap();
    let earlier = header["earlier"].as_array().unwrap();
    assert_eq!(
        (earlier.len(), &earlier[0]["note"], &earlier[1]["note"]),
        (2, &"the first".into(), &"again".into())
    );
    assert_eq!(header["steps"], STEPS);
    // Nothing is left beside it.
    let names: Vec<_> =
        std::fs::read_dir(stand.path("goldens")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["demo"]);
    let (code, out) = stand.list();
    assert_eq!(code, 0, "{out}");
    let row = out.lines().nth(1).unwrap();
    assert!(row.starts_with("demo                        3 20"), "{row}");
    assert!(row.contains("CPU GenuineIntel 6/143 (Xeon), AVX2"), "{row}");
}

#[test]
fn a_folder_that_is_no_golden_run_is_never_replaced() {
    let stand = Stand::new();
    let (run, other) = (stand.text("run"), stand.text("other"));
    std::fs::create_dir(&other).unwrap();
    std::fs::write(stand.path("other/precious"), "x").unwrap();
    let (code, _, errors) = harness(&["bless", &run, "--into", &other, "--unchecked", "--replace"]);
    assert_eq!(code, 2);
    assert!(errors.contains("exists and is no golden run"), "{errors}");
    assert!(stand.path("other/precious").exists());
    for name in ["..", "a b", ".hidden"] {
        let (code, _, errors) = harness(&["bless", &run, "--into", &stand.text(name), "--unchecked"]);
        assert_eq!(code, 2, "{errors}");
    }
    assert_eq!(harness(&["bless", &stand.text("nowhere"), "--into", &stand.text("goldens/x")]).0, 2);
    assert_eq!(harness(&["bless", &run]).0, 2);
}

#[test]
fn only_a_finished_run_without_faults_is_stored() {
    let stand = Stand::new();
    let into = stand.text("goldens/other");
    let (code, _, errors) = harness(&["bless", &stand.text("run"), "--into", &into]);
    assert_eq!(code, 100, "{errors}");
    assert!(errors.contains("lint found ") && errors.contains("the first: error "), "{errors}");
    let mut unfinished = run(1);
    unfinished.manifest.segments[0].ended = None;
    unfinished.write(&stand.path("unfinished"));
    let (code, _, errors) = harness(&["bless", &stand.text("unfinished"), "--into", &into]);
    assert_eq!(code, 101);
    assert!(errors.contains("has not come to its end"), "{errors}");
    assert!(!stand.path("goldens/other").exists());
}

/// Damages the stored run; the comparison must end with 101 and this message, and so must the list.
fn refused(damage: impl FnOnce(&RunDir), expected: &str) {
    let stand = Stand::new();
    damage(&stand.golden());
    let (code, out, errors) = stand.compare(&run(2), &[]);
    assert_eq!(code, 101, "{expected}: {out}{errors}");
    assert!(errors.contains(expected), "`{errors}` does not contain `{expected}`");
    let (code, out) = stand.list();
    assert_eq!(code, 101, "{out}");
    assert!(out.contains("damaged: ") && out.contains(expected), "{out}");
}

fn header(change: impl FnOnce(&mut serde_json::Value)) -> impl FnOnce(&RunDir) {
    move |run| {
        let path = run.golden_header();
        let mut tree = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut tree);
        std::fs::write(path, tree.to_string()).unwrap();
    }
}

#[test]
fn a_damaged_golden_run_is_never_compared_with() {
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    refused(|run| flip(run.metrics()), "metrics.jsonl: is not what was stored: restore it");
    refused(
        |run| flip(run.checkpoint(STEPS).join("shard-00000-of-00001.safetensors")),
        "safetensors: is not what was stored",
    );
    refused(
        |run| std::fs::write(run.digests(), "").unwrap(),
        "digests.jsonl: has 0 bytes, but was stored with",
    );
    refused(|run| std::fs::remove_file(run.samples()).unwrap(), "samples.jsonl");
    refused(
        |run| std::fs::write(run.metrics_csv(), "x").unwrap(),
        "metrics.csv: is not in the header's list",
    );
    refused(
        |run| {
            std::fs::create_dir_all(run.checkpoint(4))
                .map(|()| std::fs::write(run.checkpoint(4).join("manifest.json"), "{}").unwrap())
                .unwrap()
        },
        "is not in the header's list",
    );
    refused(
        |run| {
            let real = run.path().with_file_name("elsewhere");
            std::fs::rename(run.metrics(), &real).unwrap();
            std::os::unix::fs::symlink(real, run.metrics()).unwrap();
        },
        "metrics.jsonl: a symbolic link, which is refused",
    );
    refused(
        |run| {
            let real = run.path().with_file_name("elsewhere");
            std::fs::rename(run.checkpoints(), &real).unwrap();
            std::os::unix::fs::symlink(real, run.checkpoints()).unwrap();
        },
        "is a link",
    );
}

#[test]
fn a_hostile_header_is_refused() {
    refused(|run| std::fs::write(run.golden_header(), "{").unwrap(), "golden.json: EOF");
    refused(header(|tree| tree["golden_version"] = 2.into()), "golden_version 2 is newer than 1");
    refused(header(|tree| tree["files"] = serde_json::json!([])), "golden.json: does not list");
    for path in [
        "../run/metrics.jsonl",
        "/etc/passwd",
        "a/../metrics.jsonl",
        "./metrics.jsonl",
        "",
        "a/b/c/d",
        "metrics.jsonl/",
    ] {
        refused(
            header(|tree| tree["files"][0]["path"] = path.into()),
            "is not a plain path inside the golden run",
        );
    }
    refused(header(|tree| tree["files"][0]["bytes"] = (-1).into()), "golden.json: ");
    refused(header(|tree| tree["family"] = "x".into()), "golden.json: ");
    refused(
        |run| {
            std::fs::remove_file(run.golden_header()).unwrap();
            assert!(
                std::process::Command::new("mkfifo").arg(run.golden_header()).status().unwrap().success()
            );
        },
        "golden.json: not a plain file",
    );
}

#[test]
fn a_broken_header_is_not_replaced_either() {
    let stand = Stand::new();
    std::fs::write(stand.golden().golden_header(), "{").unwrap();
    assert_eq!(stand.bless(&["--replace"]).0, 101);
    assert!(stand.golden().metrics().exists());
}

#[test]
fn what_an_interrupted_attempt_left_is_no_obstacle() {
    let stand = Stand::new();
    std::fs::create_dir_all(stand.path("goldens/.demo.partial/x")).unwrap();
    std::fs::create_dir_all(stand.path("goldens/.demo.replaced/x")).unwrap();
    assert_eq!(stand.bless(&["--replace"]).0, 0);
    assert_eq!(stand.compare(&run(2), &[]).0, 0);
    assert_eq!(stand.list().1.lines().count(), 2);
}
