//! A model with two losses: each is the mean over its own targets in the global batch, whoever has them.

use std::path::Path;

use lockstep_record::{CaptureManifest, LossTerm, RunDir, StepLine, exit, read_json, read_lines};

use crate::launch::{Launch, assert_equal, exactly};

fn vla(ranks: usize) -> Launch {
    Launch::of("configs/vla-tiny.yaml", ranks)
}

fn metrics(run: &Path) -> Vec<StepLine> {
    read_lines(&RunDir::new(run).metrics()).unwrap().map(Result::unwrap).collect()
}

/// Dropout is on, an epoch ends within a step, and ranks have unlike numbers of micro-batches and of targets.
#[test]
fn a_vla_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join(name);
    vla(1).argument("--capture").argument("step=7").run(&run("golden")).ok();
    vla(3).argument("--capture").argument("step=7").run(&run("ddp")).ok();
    vla(2).zero1().stop_after(5).run(&run("zero1")).ok();
    vla(4).resume().run(&run("zero1")).ok();
    for name in ["ddp", "zero1"] {
        assert_equal(&run("golden"), &run(name));
    }
    // What the captures say of noise and times does not depend on who drew them.
    let drawn = |name: &str| {
        let path = RunDir::new(run(name)).capture(7).join("manifest.json");
        let capture: CaptureManifest = read_json(&path).unwrap();
        capture.micro_batches.into_iter().map(|batch| batch.others).collect::<Vec<_>>()
    };
    assert_eq!(drawn("golden"), drawn("ddp"));
    let names: Vec<String> = drawn("golden")[0].keys().cloned().collect();
    assert_eq!(names, ["actions", "counted", "noise", "times"]);
    // The control: the weights matter.
    vla(1).set("model.ar_weight=0.5").run(&run("other")).ok();
    assert!(!exactly(&run("golden"), &run("other")).passed());
    assert_ne!(metrics(&run("other"))[1].loss_terms, metrics(&run("golden"))[1].loss_terms);
}

#[test]
fn both_losses_are_recorded_apart() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["model.ar_weight=0.75", "model.fm_weight=2.5", "evaluate.micro_batches=4"];
    settings.into_iter().fold(vla(2), Launch::set).run(folder.path()).ok();
    let lines = metrics(folder.path());
    for line in &lines {
        let sum = |terms: &std::collections::BTreeMap<String, LossTerm>| {
            0.75 * terms["ar"].loss.0 + 2.5 * terms["fm"].loss.0
        };
        approx::assert_relative_eq!(line.loss.0, sum(&line.loss_terms), max_relative = 1e-6);
        assert_eq!(line.tokens, line.loss_terms.values().map(|term| term.targets).sum::<u64>());
        assert_eq!(line.validation_loss.is_some(), line.step % 5 == 0);
        if let Some(loss) = line.validation_loss {
            approx::assert_relative_eq!(loss.0, sum(&line.validation_loss_terms), max_relative = 1e-6);
        }
    }
    // Steps differ in how much there is of each, and in the ratio of the two.
    let targets = |name: &str| lines.iter().map(|line| line.loss_terms[name].targets).collect::<Vec<_>>();
    let (ar, fm) = (targets("ar"), targets("fm"));
    assert!(ar.windows(2).any(|pair| pair[0] != pair[1]), "{ar:?}");
    assert!((1..ar.len()).any(|step| ar[step] * fm[0] != ar[0] * fm[step]), "{ar:?} {fm:?}");
    // For spreadsheets, too.
    let csv = std::fs::read_to_string(RunDir::new(folder.path()).metrics_csv()).unwrap();
    let (header, first) = (csv.lines().next().unwrap(), csv.lines().nth(1).unwrap());
    assert!(header.ends_with(",loss_terms_ar,loss_terms_fm"), "{header}");
    let cell = first.rsplit(',').next().unwrap();
    assert_eq!(cell, lines[0].loss_terms["fm"].loss.to_string());
}

/// How the global batch is cut into micro-batches moves roundings and nothing more: not the samples, not the noise, not what
/// each loss is divided by. (Dropout is drawn by micro-batch.)
#[test]
fn the_cut_into_micro_batches_moves_roundings_only() {
    let folder = tempfile::tempdir().unwrap();
    let run = |micro_batches: usize| {
        let (run, size) = (folder.path().join(micro_batches.to_string()), 16 / micro_batches);
        let batch = [
            format!("batch.micro_batches={micro_batches}"),
            format!("batch.micro_batch_size={size}"),
            "schedule.steps=3".into(),
            "model.dropout=0".into(),
        ];
        batch.iter().fold(vla(1), |launch, setting| launch.set(setting)).run(&run).ok();
        metrics(&run)
    };
    let golden = run(8);
    for micro_batches in [1, 4, 16] {
        for (line, other) in golden.iter().zip(run(micro_batches)) {
            approx::assert_relative_eq!(line.loss.0, other.loss.0, max_relative = 2e-5);
            approx::assert_relative_eq!(line.gradient_norm.0, other.gradient_norm.0, max_relative = 1e-4);
            for (name, term) in &line.loss_terms {
                assert_eq!(term.targets, other.loss_terms[name].targets);
                approx::assert_relative_eq!(term.loss.0, other.loss_terms[name].loss.0, max_relative = 2e-5);
            }
        }
    }
}

#[test]
fn a_vla_that_cannot_be_trained_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["model.ar_weight=0", "model.fm_weight=0"], "there is nothing to learn"),
        (&["model.fm_weight=-1"], "model.fm_weight: found -1; give a number from 0 to 1000000"),
        (&["model.ar_weight=.nan"], "not a finite number"),
        (&["model.chunk=0"], "model.chunk: found 0; give a whole number from 1 to 256"),
        (&["data.path=book.txt"], "set it to embedded:reach"),
        (&["data.kind=text", "data.path=embedded:shakespeare"], "the model of this model.kind reads arm"),
    ];
    for (settings, says) in cases {
        let ended = settings.iter().fold(vla(1), |launch, setting| launch.set(setting)).run(folder.path());
        ended.code(exit::USAGE).says(says);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
}

#[cfg(feature = "mutations")]
mod planted {
    use super::*;
    use lockstep_harness::compare::Event;

    /// Each bug makes ranks matter, at the place where it is planted, and one rank alone does not show it.
    #[test]
    fn what_depends_on_the_rank_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: String, ranks: usize, bug: Option<&str>| {
            let run = folder.path().join(name);
            let launch = vla(ranks).set("schedule.steps=2");
            bug.into_iter().fold(launch, Launch::mutate).run(&run).ok();
            run
        };
        let golden = run("golden".into(), 1, None);
        for (bug, event) in [("actions-per-rank", Event::Forward), ("flow-noise-by-rank", Event::Data)] {
            assert_equal(&golden, &run(format!("{bug}-1"), 1, Some(bug)));
            let comparison = exactly(&golden, &run(format!("{bug}-3"), 3, Some(bug)));
            let difference = comparison.first_difference().unwrap_or_else(|| panic!("{bug} is missed"));
            assert_eq!((difference.place.step, difference.place.event), (Some(1), Some(event)), "{bug}");
        }
    }
}
