//! What is trained in a clean run, and how it is launched: drawn from a seed, so that a campaign can be repeated. Pure.

use crate::verify::Stage;

/// Runs that share a training, and with it their golden run.
pub const RUNS_PER_TRAINING: usize = 8;

/// Which model is trained, on what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gpt,
    Resnet,
    Vla,
}

impl Kind {
    /// As `model.kind` spells it.
    fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Resnet => "resnet",
            Self::Vla => "vla",
        }
    }

    /// The smallest configuration that has it, in `configs`.
    pub fn config(self) -> &'static str {
        match self {
            Self::Gpt => "tiny.yaml",
            Self::Resnet => "resnet-tiny.yaml",
            Self::Vla => "vla-tiny.yaml",
        }
    }

    fn shape(self, draws: &mut Draws) -> Vec<String> {
        match self {
            Self::Gpt => gpt_shape(draws),
            Self::Resnet => resnet_shape(draws),
            Self::Vla => vla_shape(draws),
        }
    }
}

/// What decides the result of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    pub kind: Kind,
    pub set: Vec<String>,
    pub steps: u64,
    pub micro_batches: u32,
}

/// How it is launched: nothing of it may change one bit.
#[derive(Clone, Debug)]
pub struct Launched {
    pub stages: Vec<Stage>,
}

/// An endless sequence of numbers from a seed: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
/// number generators").
struct Draws(u64);

impl Draws {
    /// Of two numbers that name the sequence.
    fn new(seed: u64, stream: u64) -> Self {
        let mut draws = Self(seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F));
        draws.next();
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// One of `first..=last`.
    fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.next() % (last - first + 1)
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.between(0, all.len() as u64 - 1) as usize].clone()
    }

    /// One of two, the rare one in a sixth of all draws.
    fn rarely<T>(&mut self, rare: T, usual: T) -> T {
        if self.between(0, 5) == 0 { rare } else { usual }
    }
}

/// The training of a run: seed, model, batch, optimizer, schedule, precision.
pub fn training(seed: u64, run: usize) -> Trained {
    let mut draws = Draws::new(seed, 2 * (run / RUNS_PER_TRAINING) as u64);
    let kind = draws.one_of(&[Kind::Gpt, Kind::Gpt, Kind::Gpt, Kind::Resnet, Kind::Vla]);
    let (micro_batches, size) = (draws.between(4, 9), draws.between(1, 3));
    let (warmup, steps) = (draws.between(0, 2), draws.between(3, 5));
    // From less than an epoch to more than one in a step.
    let samples = draws.between(micro_batches * size / 2 + 1, 5 * micro_batches * size);
    let mut set = vec![
        format!("model.kind={}", kind.name()),
        format!("run.seed={}", draws.next() >> 1),
        format!("batch.micro_batches={micro_batches}"),
        format!("batch.micro_batch_size={size}"),
        format!("schedule.steps={steps}"),
        format!("schedule.warmup_steps={warmup}"),
        format!("schedule.kind={}", draws.one_of(&["cosine", "linear", "constant"])),
        format!("data.max_samples={samples}"),
        format!("model.dropout={}", draws.one_of(&["0", "0.1", "0.5"])),
        format!("optim.clip_norm={}", draws.one_of(&["null", "0.3", "1.0"])),
        format!("optim.kind={}", draws.one_of(&["adamw", "adamw", "sgd"])),
        // Most processors compute in 16 bits by way of fp32, which takes its time.
        format!("precision={}", draws.rarely("bf16", "fp32")),
        format!("reduce_dtype={}", draws.rarely("bf16", "fp32")),
    ];
    set.extend(kind.shape(&mut draws));
    Trained { kind, set, steps, micro_batches: micro_batches as u32 }
}

/// Rotary positions need heads of even width.
fn transformer_shape(draws: &mut Draws, layers_max: u64) -> Vec<String> {
    let heads = draws.one_of(&[1, 2, 4]);
    vec![
        format!("model.layers={}", draws.between(1, layers_max)),
        format!("model.heads={heads}"),
        format!("model.width={}", heads * 2 * draws.between(4, 12)),
    ]
}

fn gpt_shape(draws: &mut Draws) -> Vec<String> {
    let mut shape = transformer_shape(draws, 3);
    shape.push(format!("model.context={}", draws.between(5, 24)));
    shape.push(format!("model.positions={}", draws.one_of(&["learned", "rotary"])));
    shape
}

/// The second loss always counts; the first one may be left out of the sum.
fn vla_shape(draws: &mut Draws) -> Vec<String> {
    let mut shape = transformer_shape(draws, 2);
    shape.push(format!("model.turns={}", draws.between(1, 2)));
    shape.push(format!("model.chunk={}", draws.between(1, 5)));
    shape.push(format!("model.ar_weight={}", draws.one_of(&["0", "0.5", "1"])));
    shape.push(format!("model.fm_weight={}", draws.one_of(&["0.3", "1", "2"])));
    shape
}

fn resnet_shape(draws: &mut Draws) -> Vec<String> {
    vec![
        format!("model.stages={}", draws.between(1, 2)),
        "model.width=8".into(),
        format!("data.augment={}", draws.one_of(&["true", "false"])),
    ]
}

/// The launches of a run: ranks, strategy, buckets, messages, overlap, and where it is stopped and resumed.
pub fn launches(seed: u64, run: usize) -> Launched {
    let Trained { steps, micro_batches, .. } = training(seed, run);
    let mut draws = Draws::new(seed, 2 * run as u64 + 1);
    // One in three is resumed, one in nine twice.
    let resumes = [0, 0, 0, 0, 0, 0, 1, 1, 2][draws.between(0, 8) as usize];
    let mut stops: Vec<u64> = (0..resumes).map(|_| draws.between(1, steps - 1)).collect();
    stops.sort_unstable();
    stops.dedup();
    let ends = stops.into_iter().map(Some).chain([None]);
    Launched { stages: ends.map(|stop_after| stage(&mut draws, micro_batches, stop_after)).collect() }
}

fn stage(draws: &mut Draws, micro_batches: u32, stop_after: Option<u64>) -> Stage {
    let ranks = draws.between(1, u64::from(micro_batches.min(4))) as u32;
    let strategy =
        if ranks == 1 { draws.one_of(&["single", "ddp", "zero1"]) } else { draws.one_of(&["ddp", "zero1"]) };
    let set = vec![
        format!("parallel.bucket_mb={}", draws.one_of(&["0.01", "0.05", "2"])),
        format!("parallel.edge_bucket_mb={}", draws.one_of(&["0.005", "1"])),
        format!("parallel.message_kb={}", draws.one_of(&["1", "7", "60"])),
        format!("parallel.shared_memory={}", draws.one_of(&["true", "false"])),
        format!("parallel.overlap={}", draws.one_of(&["true", "false"])),
        format!("parallel.mpi_threads={}", draws.one_of(&["multiple", "serialized", "funneled"])),
    ];
    Stage { ranks, strategy: strategy.into(), set, stop_after }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn value<'a>(set: &'a [String], key: &str) -> &'a str {
        set.iter().find_map(|set| set.strip_prefix(key)?.strip_prefix('=')).unwrap_or("")
    }

    proptest! {
        #[test]
        fn every_draw_can_be_trained(seed: u64, run in 0usize..500) {
            let Trained { kind, set, steps, micro_batches } = training(seed, run);
            let number = |key: &str| value(&set, key).parse::<u64>().unwrap();
            prop_assert!(number("data.max_samples") >= 1 && number("schedule.warmup_steps") < steps);
            prop_assert_eq!(number("batch.micro_batches"), u64::from(micro_batches));
            prop_assert!(number("run.seed") <= i64::MAX as u64);
            prop_assert_eq!(value(&set, "model.kind"), kind.name());
            for key in ["precision", "reduce_dtype"] {
                prop_assert!(["fp32", "bf16"].contains(&value(&set, key)));
            }
            if kind != Kind::Resnet {
                prop_assert_eq!(number("model.width") / number("model.heads") % 2, 0);
                prop_assert_eq!(number("model.width") % number("model.heads"), 0);
            }
            // Keys of one model alone: another would refuse some of them.
            for (key, owner) in [("model.positions", Kind::Gpt), ("model.stages", Kind::Resnet), ("model.chunk", Kind::Vla)] {
                prop_assert_eq!(!value(&set, key).is_empty(), kind == owner);
            }
            if kind == Kind::Vla {
                prop_assert!(number("model.turns") >= 1 && number("model.chunk") >= 1);
                let weight = |key: &str| value(&set, key).parse::<f64>().unwrap();
                prop_assert!(weight("model.ar_weight") >= 0.0 && weight("model.fm_weight") > 0.0);
            }
            let Launched { stages } = launches(seed, run);
            for stage in &stages {
                prop_assert!(stage.ranks >= 1 && stage.ranks <= micro_batches.min(4));
                prop_assert!(stage.ranks == 1 || stage.strategy != "single");
                prop_assert!(stage.set.iter().all(|set| set.starts_with("parallel.")));
            }
            let stops: Vec<u64> = stages.iter().map(|stage| stage.stop_after.unwrap_or(steps)).collect();
            prop_assert!(stops.windows(2).all(|two| two[0] < two[1]) && stops[0] > 0 && stops.last() == Some(&steps));
        }

        #[test]
        fn a_draw_is_a_function_of_seed_and_run(seed: u64, run in 0usize..500) {
            prop_assert_eq!(training(seed, run), training(seed, run));
            prop_assert_eq!(format!("{:?}", launches(seed, run)), format!("{:?}", launches(seed, run)));
            let neighbour = run / RUNS_PER_TRAINING * RUNS_PER_TRAINING;
            prop_assert_eq!(training(seed, run), training(seed, neighbour));
            prop_assert_ne!(training(seed, run), training(seed, run + RUNS_PER_TRAINING));
        }
    }

    #[test]
    fn two_hundred_runs_vary_everything() {
        let mut seen = BTreeSet::new();
        for run in 0..200 {
            let trained = training(1, run);
            let stages = launches(1, run).stages;
            seen.insert(format!("resumes={}", stages.len() - 1));
            for stage in &stages {
                seen.insert(format!("{} {}", stage.ranks, stage.strategy));
                seen.extend(stage.set.iter().cloned());
            }
            seen.extend(trained.set);
        }
        let expected = [
            "resumes=0",
            "resumes=1",
            "resumes=2",
            "1 single",
            "1 ddp",
            "1 zero1",
            "2 ddp",
            "2 zero1",
            "3 ddp",
            "3 zero1",
            "4 ddp",
            "4 zero1",
            "parallel.overlap=false",
            "parallel.message_kb=1",
            "parallel.shared_memory=false",
            "parallel.bucket_mb=0.01",
            "parallel.mpi_threads=funneled",
            "model.kind=gpt",
            "model.kind=resnet",
            "model.kind=vla",
            "model.ar_weight=0",
            "precision=bf16",
            "reduce_dtype=bf16",
            "model.layers=3",
            "model.positions=rotary",
            "optim.kind=sgd",
            "batch.micro_batches=7",
            "batch.micro_batch_size=3",
            "optim.clip_norm=null",
            "schedule.steps=3",
        ];
        let missing: Vec<_> = expected.iter().filter(|&&value| !seen.contains(value)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
