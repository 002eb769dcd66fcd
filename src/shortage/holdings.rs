//! What a training needs memory for, as far as its configuration tells: pure.

use super::error::Place;
use crate::config::Config;
use crate::config::schema::{Compression, ModelKind, OptimKind, Precision, Reduction, StrategyKind};
use crate::data::TURN_TOKENS;
use crate::grad::tree::Accumulation;
use crate::partition::share;

const F32_BYTES: u64 = 4;
const MIB: f64 = 1_048_576.0;
/// Values as wide as the model that a transformer's block keeps of each token for backward: two norms, queries, keys and
/// values, the attention's two results, the hidden layer before and after its activation, what dropout and the residual
/// stream add.
const MAPS_PER_BLOCK: u64 = 18;
/// Maps that a block of a ResNet keeps: two convolutions, norms and activations, and the sum.
const MAPS_PER_RESNET_BLOCK: u64 = 7;
/// Pixels of a side of an image.
const IMAGE_SIDE: u64 = 32;

/// Memory for one purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub place: Place,
    pub what: String,
    pub bytes: u64,
    /// What makes it smaller.
    pub lower: &'static str,
}

/// What a rank is asked to train.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    pub config: &'a Config,
    /// Elements of all parameters, of those that are trained, and of the largest.
    pub elements: u64,
    pub trained: u64,
    pub largest: (&'a str, u64),
    pub vocabulary: usize,
    pub rank: usize,
    pub world_size: usize,
    /// Where forward and backward run.
    pub computes_on: Place,
    /// Where parameters, gradients and the optimizer's state lie.
    pub buckets_in: Place,
}

/// Everything of a good size, in no order.
pub fn holdings(needs: &Needs) -> Vec<Holding> {
    let Needs { config, elements, trained, computes_on, buckets_in, .. } = *needs;
    let mut all = Vec::new();
    let mut add = |place, what: String, bytes, lower| all.push(Holding { place, what, bytes, lower });
    let whole = f32_bytes(elements);
    let (name, largest) = needs.largest;
    let text =
        format!("parameters (the largest, {name}: {})", crate::quantity::bytes_text(f32_bytes(largest)));
    add(buckets_in, text, whole, MODEL);
    let sums = slots(needs);
    let text = format!("sums of gradients ({sums} for each parameter)");
    add(
        buckets_in,
        text,
        f32_bytes(trained).saturating_mul(sums),
        "start more ranks, or lower batch.micro_batches",
    );
    let ranks = (needs.world_size as u64).max(1);
    let shared_by = if config.parallel.strategy == StrategyKind::Zero1 { ranks } else { 1 };
    let kinds = if config.optim.kind == OptimKind::Adamw { 2 } else { 1 };
    let state = f32_bytes(trained).saturating_mul(kinds);
    add(buckets_in, "optimizer state".into(), state / shared_by, optimizer_remedy(config));
    add(buckets_in, "one micro-batch's gradient".into(), f32_bytes(trained), MODEL);
    let bucket = ((config.parallel.bucket_mb * MIB) as u64).max(f32_bytes(largest));
    let mut messages = |place| {
        add(place, "messages of one bucket".into(), bucket.saturating_mul(2), "lower parallel.bucket_mb");
    };
    if needs.world_size > 1 {
        messages(buckets_in);
    }
    // What is compressed is compressed on the host.
    if needs.world_size > 1 && buckets_in != Place::Host && config.parallel.compression != Compression::None {
        messages(Place::Host);
    }
    if computes_on != buckets_in {
        add(computes_on, "copies of the parameters".into(), whole, MODEL);
        add(computes_on, "one micro-batch's gradient".into(), f32_bytes(trained), MODEL);
    }
    if buckets_in != Place::Host {
        // Every rank writes its share, whatever the strategy.
        let saved = whole.saturating_add(state) / ranks;
        add(Place::Host, "copies for a checkpoint".into(), saved, "start more ranks, which share it");
    }
    if config.precision != Precision::Fp32 {
        add(computes_on, "16-bit copies of the parameters".into(), whole / 2, MODEL);
    }
    add(
        computes_on,
        "activations of one micro-batch (an estimate)".into(),
        activation_bytes(needs),
        activations_remedy(config),
    );
    all
}

const MODEL: &str = "lower model.width or model.layers";

fn optimizer_remedy(config: &Config) -> &'static str {
    match config.parallel.strategy {
        StrategyKind::Zero1 => "start more ranks, which share it",
        _ => "set parallel.strategy: zero1, under which the ranks share it",
    }
}

fn activations_remedy(config: &Config) -> &'static str {
    match (config.model.kind, config.precision) {
        (ModelKind::Gpt, Precision::Fp32) => {
            "lower batch.micro_batch_size or model.context; precision: bf16 halves most of them"
        }
        (ModelKind::Gpt, _) => "lower batch.micro_batch_size or model.context",
        (_, Precision::Fp32) => "lower batch.micro_batch_size; precision: bf16 halves most of them",
        _ => "lower batch.micro_batch_size",
    }
}

fn f32_bytes(elements: u64) -> u64 {
    elements.saturating_mul(F32_BYTES)
}

/// Buffers as large as the gradient.
fn slots(needs: &Needs) -> u64 {
    let micro_batches = needs.config.batch.micro_batches;
    let mine = share(micro_batches, needs.world_size, needs.rank);
    match needs.config.parallel.reduction {
        Reduction::Native => 1,
        Reduction::Ordered => Accumulation::along_tree(mine, micro_batches).slots as u64,
    }
}

/// What backward needs of the forward pass.
fn activation_bytes(needs: &Needs) -> u64 {
    let Needs { config, vocabulary, .. } = *needs;
    let (model, batch) = (&config.model, config.batch.micro_batch_size as u64);
    let computed = if config.precision == Precision::Fp32 { F32_BYTES } else { F32_BYTES / 2 };
    let product = |factors: &[u64]| factors.iter().fold(1u64, |all, factor| all.saturating_mul(*factor));
    let (width, layers) = (model.width as u64, model.layers as u64);
    let transformer = |length: u64| {
        let blocks = product(&[batch, length, layers, width, MAPS_PER_BLOCK, computed]);
        // The logits and their logarithms, which the loss has in fp32.
        blocks.saturating_add(product(&[batch, length, vocabulary as u64, 2, F32_BYTES]))
    };
    match model.kind {
        ModelKind::Gpt => transformer(model.context as u64),
        ModelKind::Vla => {
            transformer((model.turns as u64).saturating_mul((TURN_TOKENS + model.chunk) as u64))
        }
        ModelKind::Resnet => {
            let stage = |stage: u32| {
                let side = IMAGE_SIDE.checked_shr(stage).unwrap_or(0).max(1);
                let channels = width.saturating_mul(1 << stage.min(32));
                product(&[batch, layers, MAPS_PER_RESNET_BLOCK, channels, side, side, computed])
            };
            (0..model.stages as u32).map(stage).fold(0, u64::saturating_add)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(sets: &[&str]) -> Config {
        let sets: Vec<String> = sets.iter().map(|set| (*set).into()).collect();
        crate::config::load(&[], &sets, &|_| None).unwrap().config
    }

    fn needs(config: &Config) -> Needs<'_> {
        Needs {
            config,
            elements: 1000,
            trained: 800,
            largest: ("wte.weight", 300),
            vocabulary: 256,
            rank: 0,
            world_size: 4,
            computes_on: Place::Host,
            buckets_in: Place::Host,
        }
    }

    fn bytes_of(holdings: &[Holding], place: Place, what: &str) -> Option<u64> {
        let fits = |holding: &&Holding| holding.place == place && holding.what.starts_with(what);
        holdings.iter().find(fits).map(|holding| holding.bytes)
    }

    #[test]
    fn a_training_on_the_cpu() {
        let ddp = config(&["batch.micro_batches=8", "batch.micro_batch_size=2", "model.context=16"]);
        let all = holdings(&needs(&ddp));
        let host = |what| bytes_of(&all, Place::Host, what);
        assert_eq!(host("parameters (the largest, wte.weight: 1.2 KiB)"), Some(4000));
        assert_eq!(host("optimizer state"), Some(2 * 3200));
        assert_eq!(host("sums of gradients (1 for"), Some(3200));
        // Two samples of 16 tokens through 4 layers of width 128, and the logits.
        assert_eq!(host("activations"), Some(32 * (4 * 128 * 18 * 4 + 256 * 8)));
        assert_eq!(host("16-bit copies"), None);
        let zero1 = config(&["parallel.strategy=zero1", "precision=bf16"]);
        let all = holdings(&needs(&zero1));
        assert_eq!(bytes_of(&all, Place::Host, "optimizer state"), Some(2 * 3200 / 4));
        assert_eq!(bytes_of(&all, Place::Host, "16-bit copies"), Some(2000));
        assert_eq!(
            bytes_of(&holdings(&Needs { world_size: 1, ..needs(&ddp) }), Place::Host, "messages"),
            None
        );
    }

    /// Over NCCL, and of a process alone.
    #[test]
    fn on_a_gpu_everything_lies_there() {
        let gpu = |sets: &[&str]| {
            let config = config(sets);
            holdings(&Needs { computes_on: Place::Gpu, buckets_in: Place::Gpu, ..needs(&config) })
        };
        let all = gpu(&[]);
        let there = |what| bytes_of(&all, Place::Gpu, what);
        assert_eq!((there("parameters (the largest"), there("copies of the parameters")), (Some(4000), None));
        assert_eq!((there("optimizer state"), there("one micro-batch's gradient")), (Some(6400), Some(3200)));
        assert!(there("sums of gradients").is_some() && there("messages").is_some());
        let of_the_host: Vec<_> = all.iter().filter(|holding| holding.place == Place::Host).collect();
        assert_eq!(of_the_host.len(), 1);
        assert_eq!(
            (of_the_host[0].what.as_str(), of_the_host[0].bytes),
            ("copies for a checkpoint", 10_400 / 4)
        );
        let compressed = gpu(&["parallel.strategy=ddp", "parallel.compression=bf16"]);
        assert!(bytes_of(&compressed, Place::Host, "messages").is_some());
    }

    /// Over MPI, which moves the host's memory.
    #[test]
    fn with_buckets_on_the_host_only_what_computes_lies_on_the_gpu() {
        let config = config(&[]);
        let all = holdings(&Needs { computes_on: Place::Gpu, ..needs(&config) });
        assert_eq!(bytes_of(&all, Place::Gpu, "copies of the parameters"), Some(4000));
        assert!(bytes_of(&all, Place::Gpu, "activations").is_some());
        assert_eq!(bytes_of(&all, Place::Host, "activations"), None);
        assert_eq!(bytes_of(&all, Place::Gpu, "optimizer state"), None);
    }

    proptest! {
        #[test]
        fn more_never_needs_less(
            width in 1usize..1 << 40, layers in 1usize..1 << 20, size in 1usize..1 << 20, kind in 0..3usize,
        ) {
            let kinds = [ModelKind::Gpt, ModelKind::Vla, ModelKind::Resnet];
            let mut smaller = config(&[]);
            smaller.model.kind = kinds[kind];
            (smaller.model.width, smaller.model.layers, smaller.batch.micro_batch_size) = (width, layers, size);
            let mut larger = smaller.clone();
            larger.batch.micro_batch_size += 1;
            let total = |config: &Config| {
                holdings(&needs(config)).iter().fold(0u64, |all, holding| all.saturating_add(holding.bytes))
            };
            prop_assert!(total(&smaller) <= total(&larger));
        }
    }
}
