//! The bug zoo: a bug of each group is planted in the real trainer and named right; and the judge itself can fail. `make
//! zoo` runs all of them.

use std::path::{Path, PathBuf};

use clap::Parser;
use lockstep_harness::cli::Cli;
use lockstep_record::exit;

use crate::launch::take_turn;

/// Runs `lockstep-harness zoo`; exit code, what it printed, and its errors.
fn zoo(out: &Path, arguments: &[&str]) -> (i32, String, String) {
    let _turn = take_turn();
    let (out, trainer) = (out.display().to_string(), env!("CARGO_BIN_EXE_lockstep"));
    let places = ["lockstep-harness", "zoo", "--out", &out, "--trainer", trainer];
    let (mut printed, mut errors) = (Vec::new(), Vec::new());
    let cli = Cli::try_parse_from(places.iter().chain(arguments)).unwrap();
    let code = cli.run(&mut printed, &mut errors);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (code, text(printed), text(errors))
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[cfg(feature = "mutations")]
mod planted {
    use super::*;

    /// One of each group, none of them the easiest.
    const BUGS: [&str; 15] = [
        "reduction/bucket-not-reduced",
        "accumulation/lost-hook",
        "loss/mean-per-rank",
        "norm/clip-on-some-ranks",
        "random/dropout-same-step",
        "data/trains-on-validation",
        "schedule/rate-on-one-rank",
        "optimizer/stale-parameters",
        "zero1/gather-skips-a-bucket",
        "checkpoint/tensors-swapped",
        "resume/reshard-offset",
        "compression/feedback-sign",
        "precision/clip-before-unscale",
        "collectives/gather-length",
        "nccl/stream-not-awaited",
    ];

    #[test]
    fn a_bug_of_each_group_is_named_right() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("zoo");
        // Tests have the double elsewhere.
        let double = crate::nccl::double();
        let plan = catalogue(folder.path(), &[("{trainer_dir}/liblockstep_nccl_double.so", double.as_str())]);
        let only: Vec<&str> = BUGS.iter().flat_map(|bug| ["--only", bug]).collect();
        let (code, text, errors) = zoo(&out, &[&[plan.as_str()], &only[..]].concat());
        assert_eq!(code, exit::OK, "{text}\n{errors}");
        let report = json(out.join("zoo.json"));
        assert_eq!(report["score"]["bugs"], BUGS.len());
        assert_eq!(report["score"]["named"], BUGS.len(), "{text}");
        // What proves nothing more is removed.
        assert!(!out.join("tensors-swapped").exists());
        let table = std::fs::read_to_string(out.join("zoo.md")).unwrap();
        assert!(
            table.contains("| schedule/rate-on-one-rank | ddp-2 | 1 | schedule | learning_rate | right |"),
            "{table}"
        );
    }

    /// A copy of the catalogue with something replaced.
    fn catalogue(folder: &Path, replaced: &[(&str, &str)]) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("harness/plans/zoo.yaml")).unwrap();
        let configs = format!("{}/configs", root.display());
        let replace = |text: String, (old, new): &(&str, &str)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        };
        let text = replaced.iter().fold(text.replace("../../configs", &configs), replace);
        let path = folder.join("catalogue.yaml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The negative controls of the judge: an answer that is wrong by the catalogue, and a bug without any effect.
    #[test]
    fn wrong_answers_and_bugs_without_effect_fail_the_zoo() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = catalogue(
            folder.path(),
            &[
                (
                    "    answer: { step: 2, phase: schedule, tensor: learning_rate }",
                    "    answer: { step: 3, phase: optimizer, tensor: learning_rate }",
                ),
                (
                    "    at: src/model/dropout.rs\n    launch: single-resumed",
                    "    at: src/model/dropout.rs\n    launch: single",
                ),
            ],
        );
        let out = folder.path().join("zoo");
        let only = ["--only", "schedule-not-stepped", "--only", "dropout-restarts"];
        let (code, text, errors) = zoo(&out, &[&[wrong.as_str()], &only[..]].concat());
        assert_eq!(code, exit::DIFFERENT, "{text}\n{errors}");
        assert!(text.contains("schedule-not-stepped: WRONG step, phase: step 2: learning_rate"), "{text}");
        assert!(text.contains("dropout-restarts: MISSED: nothing differs"), "{text}");
        assert!(text.contains("THE BARS ARE NOT MET"), "{text}");
        // Whoever looks into it finds the run.
        assert!(out.join("dropout-restarts/run/manifest.json").is_file());
    }

    #[test]
    fn the_clean_campaign_can_fail() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("clean");
        let (code, text, errors) = zoo(&out, &["--clean", "3", "--plant", "seed-not-used"]);
        assert_eq!(code, exit::DIFFERENT, "{text}\n{errors}");
        assert_eq!(json(out.join("clean.json"))["false_alarms"], 3, "{text}");
        assert!(text.contains("FALSE ALARM: step 1: sample ids"), "{text}");
    }
}

#[test]
fn clean_runs_raise_no_alarm() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("clean");
    let (code, text, errors) = zoo(&out, &["--clean", "6", "--seed", "7"]);
    assert_eq!(code, exit::OK, "{text}\n{errors}");
    let report = json(out.join("clean.json"));
    assert_eq!((&report["runs"], &report["false_alarms"]), (&6.into(), &0.into()), "{text}");
    assert!(
        text.contains("6 clean runs of 1 trainings (seed 7): 0 false alarms, 0 could not run."),
        "{text}"
    );
}

#[cfg(not(feature = "mutations"))]
#[test]
fn a_trainer_without_planted_bugs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, errors) = zoo(&folder.path().join("zoo"), &[]);
    assert_eq!(code, exit::CASE_FAILED);
    assert!(errors.contains("--features lockstep/mutations"), "{errors}");
}

#[test]
fn a_pattern_that_names_no_bug_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, errors) =
        zoo(&folder.path().join("zoo"), &["--only", "reduction/", "--only", "no-such-bug"]);
    let expected = if cfg!(feature = "mutations") { exit::USAGE } else { exit::CASE_FAILED };
    assert_eq!(code, expected, "{errors}");
    assert!(!folder.path().join("zoo").exists());
}
