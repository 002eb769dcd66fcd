//! Proof that the proof works: what equality rests on is broken, one thing at a time, in the code that ships; each
//! time exactly the runs that depend on it must differ, and at the place where it was broken.

use std::path::Path;

use lockstep_harness::compare::Event;

use crate::launch::{Launch, exactly};

/// The runs that are compared with one process, by name.
const CELLS: [&str; 8] =
    ["ddp-2", "ddp-3", "ddp-8", "zero1-2", "zero1-3", "single-resumed", "ddp-2-resumed", "zero1-2-resumed"];

fn launch(cell: &str, mutation: &str, run: &Path) {
    let mut words = cell.split('-');
    let strategy = words.next().unwrap();
    let ranks = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
    let new = || {
        let launch = Launch::ranks(ranks).mutate(mutation).set(&format!("parallel.strategy={strategy}"));
        launch.set("record.local_gradients=true").set("schedule.steps=6").set("checkpoint.every=0")
    };
    if cell.ends_with("resumed") {
        new().stop_after(3).run(run).ok();
        new().resume().run(run).ok();
    } else {
        new().run(run).ok();
    }
}

/// Plants a bug everywhere and checks which cells turn red, and where they first part from the golden run.
fn check(mutation: &str, red: &[&str], first: Event) {
    check_cells(&CELLS, mutation, red, first);
}

fn check_cells(cells: &[&str], mutation: &str, red: &[&str], first: Event) {
    let folder = tempfile::tempdir().unwrap();
    let golden = folder.path().join("golden");
    launch("single", mutation, &golden);
    for &cell in cells {
        let run = folder.path().join(cell);
        launch(cell, mutation, &run);
        let comparison = exactly(&golden, &run);
        let difference = comparison.first_difference();
        assert_eq!(difference.is_some(), red.contains(&cell), "{mutation}, {cell}: {difference:?}");
        if let Some(difference) = difference {
            assert_eq!(difference.place.event, Some(first), "{mutation}, {cell}: {difference:?}");
        }
    }
}

const MANY_RANKS: [&str; 7] =
    ["ddp-2", "ddp-3", "ddp-8", "zero1-2", "zero1-3", "ddp-2-resumed", "zero1-2-resumed"];

/// Two ranks' partial sums are one addition in any order; more are not.
#[test]
fn the_order_of_the_tree() {
    check("rank-order", &["ddp-3", "ddp-8", "zero1-3"], Event::ReducedGradient);
}

#[test]
fn random_numbers_by_micro_batch() {
    check("dropout-by-rank", &MANY_RANKS, Event::Forward);
}

#[test]
fn norms_by_blocks() {
    check("norm-by-shard", &MANY_RANKS, Event::Norm);
}

#[test]
fn shards_of_whole_blocks() {
    check_cells(&CELLS[..7], "shard-alignment", &["zero1-2", "zero1-3"], Event::ReducedGradient);
}

/// A checkpoint of such shards has digests that its own tensors do not have, so it does not even load.
#[test]
fn a_checkpoint_of_cut_blocks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let launch = || Launch::ranks(2).zero1().mutate("shard-alignment");
    launch().stop_after(3).run(folder.path()).ok();
    let ended = launch().resume().run(folder.path()).code(lockstep_record::exit::NO_CHECKPOINT);
    ended.says("does not have the digest that it was saved with");
}

#[test]
fn one_copy_of_the_parameters() {
    check("one-ranks-parameter", &MANY_RANKS, Event::Parameters);
}

#[test]
fn samples_by_micro_batch() {
    check("one-sample-id", &MANY_RANKS, Event::Data);
}

#[test]
fn optimizer_state_on_resume() {
    check("forget-optimizer", &["single-resumed", "ddp-2-resumed", "zero1-2-resumed"], Event::Optimizer);
}
