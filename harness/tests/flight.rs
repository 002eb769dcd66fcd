//! `lockstep-harness flight` on files as a trainer leaves them, and on files as it never would.

mod common;

use std::fs;

use common::harness;
use lockstep_record::{RunDir, exit};
use tempfile::TempDir;

const DONE: &str = r#"{"sequence":1,"channel":"data","operation":"all-to-all","bucket":0,"step":1,"elements":8,"bytes":32,"dtype":"f32","started_us":1,"finished_us":2,"state":"done"}"#;

fn run_with(files: &[(&str, String)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    fs::create_dir_all(run.flight()).unwrap();
    files.iter().for_each(|(name, text)| fs::write(run.flight().join(name), text).unwrap());
    folder
}

fn flight(folder: &TempDir) -> (i32, String, String) {
    harness(&["flight", folder.path().to_str().unwrap()])
}

#[test]
fn the_rank_that_is_missing_is_named() {
    let second = DONE
        .replace("\"sequence\":1", "\"sequence\":2")
        .replace(",\"finished_us\":2,\"state\":\"done\"", ",\"state\":\"running\"");
    let folder = run_with(&[
        ("rank-00000.jsonl", format!("{DONE}\n{second}\n")),
        ("rank-00002.jsonl", format!("{DONE}\n")),
        // Not ranks' files.
        ("rank-7.jsonl", "nonsense".into()),
        ("notes.txt", "nonsense".into()),
    ]);
    let (code, out, errors) = flight(&folder);
    assert_eq!((code, errors.as_str()), (exit::OK, ""));
    assert_eq!(
        out,
        "control: no collectives\ndata: the ranks part at collective 2\n  \
         rank 0: all-to-all of bucket 0 (f32): running\n  \
         rank 1: left no file: stopped, killed, or its disk was gone\n  \
         rank 2: never came; its last was 1, all-to-all of bucket 0 (f32): done\n"
    );
}

#[test]
fn nonsense_is_refused_by_file_and_line() {
    let thousand_and_one =
        (1..=1001).map(|n| DONE.replace("\"sequence\":1", &format!("\"sequence\":{n}")) + "\n");
    for (text, message) in [
        (format!("{DONE}\n{DONE}\n"), "rank-00000.jsonl:2: sequence 1 after 1"),
        (thousand_and_one.collect(), "rank-00000.jsonl:1001: more than 1000 lines"),
        ("{}\n".into(), "rank-00000.jsonl:1: missing field"),
        (DONE.into(), "rank-00000.jsonl:1: the last line is cut short"),
    ] {
        let (code, _, errors) = flight(&run_with(&[("rank-00000.jsonl", text)]));
        assert_eq!(code, exit::CASE_FAILED, "{errors}");
        assert!(errors.contains(message), "`{message}` is not in: {errors}");
    }
}

#[test]
fn a_run_that_did_not_break_has_none() {
    let (code, _, errors) = flight(&run_with(&[]));
    assert_eq!(code, exit::NOTHING_TO_DO);
    assert!(errors.contains("no rank left a flight recorder"), "{errors}");
    let (code, _, errors) = harness(&["flight", "no-such-run"]);
    assert_eq!(code, exit::USAGE);
    assert!(errors.contains("no-such-run is not a run directory"), "{errors}");
}
