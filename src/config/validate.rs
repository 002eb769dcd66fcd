//! How values fit together. Everything here is a pure function of the configuration, except that the data's
//! file is looked for.

use std::path::Path;

use serde_json::Value;

use super::check::{check_values, get};
use super::document::shown;
use super::error::Problem;
use super::keys::{Key, Keys};
use super::schema::{
    Backend, Compression, Config, Data, DataKind, ModelKind, Parallel, Positions, Precision, Reduction,
    StrategyKind, TokenizerKind,
};
use crate::data::TURN_TOKENS;
use crate::precision::scales_loss;

/// Before the name of data that are part of the program.
const EMBEDDED_PREFIX: &str = "embedded:";
/// GroupNorm has this many groups in every layer of a ResNet.
const RESNET_GROUPS: usize = 8;
/// Most file systems allow a name of 255 bytes; the rest is for suffixes.
const NAME_BYTES_MAX: usize = 200;
/// The 256 bytes come first in a learned vocabulary, and it holds at least one merge.
const VOCABULARY: std::ops::RangeInclusive<usize> = 257..=65_536;
/// A look at a GPU takes a good part of this.
const TELEMETRY_SECONDS_MIN: f64 = 0.01;
/// libtorch counts elements and bytes in signed 64-bit integers.
const SIZE_MAX: u128 = i64::MAX as u128;

/// Everything that is wrong with a configuration, whatever the number of ranks.
pub fn validate(config: &Config) -> Result<(), Vec<Problem>> {
    // A configuration need not come from files: single values are checked here too.
    let tree = serde_json::to_value(config).unwrap_or(Value::Null);
    let mut problems = check_values(|key| get(&tree, key));
    problems.extend(across_fields(config));
    problems.extend(data_file(&config.data));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Whether `world_size` ranks can run `config`.
pub fn validate_world(config: &Config, world_size: usize) -> Result<(), Problem> {
    let micro_batches = config.batch.micro_batches;
    if config.parallel.strategy == StrategyKind::Single && world_size != 1 {
        let message = format!("single is for one rank, but there are {world_size}");
        return Err(Problem::new("parallel.strategy", message, "choose ddp or zero1, or start one process"));
    }
    if config.parallel.backend == Backend::Solo && world_size != 1 {
        let message = format!("solo is for one rank, but there are {world_size}");
        return Err(Problem::new("parallel.backend", message, "choose auto or mpi, or start one process"));
    }
    if micro_batches < world_size {
        let message = format!("{micro_batches} micro-batches cannot be shared by {world_size} ranks");
        let remedy = format!("set it to at least {world_size} (it changes the result), or start fewer ranks");
        return Err(Problem::new("batch.micro_batches", message, remedy));
    }
    Ok(())
}

fn across_fields(config: &Config) -> Vec<Problem> {
    let checks = [
        run_name(&config.run.name),
        path("run.dir", &config.run.dir),
        path("data.path", &config.data.path),
        path("data.cache_dir", &config.data.cache_dir),
        model_and_data(config),
        resnet(config),
        vla(config),
        heads(config),
        betas(config.optim.betas),
        clip_norm(config.optim.clip_norm),
        compression(&config.parallel),
        reduce_dtype(config),
        scaler(config),
        vocabulary(&config.data),
        warmup(config),
        evaluation(config),
        telemetry(config.record.telemetry_every_s),
        sizes(config),
    ];
    checks.into_iter().flatten().collect()
}

fn run_name(name: &str) -> Option<Problem> {
    let plain =
        !matches!(name, "" | "." | "..") && !name.contains(['/', '\\']) && !name.contains(char::is_control);
    if plain && name.len() <= NAME_BYTES_MAX {
        return None;
    }
    let message = format!("\"{}\" is not a plain folder name", shown(name));
    let remedy =
        format!("give one of up to {NAME_BYTES_MAX} bytes without slashes; run.dir says where it lies");
    Some(Problem::new("run.name", message, remedy))
}

fn path(key: &str, path: &Path) -> Option<Problem> {
    let text = path.to_string_lossy();
    if text.is_empty() {
        return Some(Problem::new(key, "the path is empty", "give one"));
    }
    if text.contains('\0') {
        return Some(Problem::new(key, "the path holds a NUL character", "remove it"));
    }
    if text.starts_with("~/") || text == "~" {
        return Some(Problem::new(key, "`~` is not expanded in a configuration", "write ${HOME} instead"));
    }
    None
}

/// What the data of a kind are called inside the program, and what else `data.path` may be.
fn sources(kind: DataKind) -> (&'static str, &'static str) {
    match kind {
        DataKind::Text => ("shakespeare", "a text file"),
        DataKind::Images => ("shapes", "a folder with CIFAR-10's binary version"),
        DataKind::Arm => ("reach", "nothing else"),
    }
}

fn model_and_data(config: &Config) -> Option<Problem> {
    let (reads, word) = match config.model.kind {
        ModelKind::Gpt => (DataKind::Text, "text"),
        ModelKind::Resnet => (DataKind::Images, "images"),
        ModelKind::Vla => (DataKind::Arm, "arm"),
    };
    let remedy =
        format!("set it to {word} and data.path to embedded:{}, or choose another model", sources(reads).0);
    let message = format!("the model of this model.kind reads {word}");
    (config.data.kind != reads).then(|| Problem::new("data.kind", message, remedy))
}

fn resnet(config: &Config) -> Option<Problem> {
    let model = &config.model;
    if model.kind != ModelKind::Resnet {
        let message = "only images can be augmented";
        return config.data.augment.then(|| Problem::new("data.augment", message, "set it to false"));
    }
    if !model.width.is_multiple_of(RESNET_GROUPS) {
        let message = format!("{} channels cannot be normalised in {RESNET_GROUPS} groups", model.width);
        return Some(Problem::new("model.width", message, format!("give a multiple of {RESNET_GROUPS}")));
    }
    let message = "a resnet's blocks are not skipped: its stages change shape";
    (model.layer_drop > 0.0).then(|| Problem::new("model.layer_drop", message, "set it to 0"))
}

fn vla(config: &Config) -> Option<Problem> {
    let model = &config.model;
    if model.kind != ModelKind::Vla {
        return None;
    }
    if model.ar_weight == 0.0 && model.fm_weight == 0.0 {
        let message = "this and model.fm_weight are 0: there is nothing to learn";
        return Some(Problem::new("model.ar_weight", message, "give one of them a number above 0"));
    }
    if !model.width.is_multiple_of(2) {
        let message = format!("{} is odd: a time becomes as many sines as cosines", model.width);
        return Some(Problem::new("model.width", message, "give an even number"));
    }
    let message = "a vla's positions are learned: not only tokens have them";
    (model.positions != Positions::Learned)
        .then(|| Problem::new("model.positions", message, "choose learned"))
}

fn heads(config: &Config) -> Option<Problem> {
    let model = &config.model;
    if model.kind == ModelKind::Resnet {
        return None;
    }
    if model.heads == 0 || !model.width.is_multiple_of(model.heads) {
        let message = format!("{} heads do not divide model.width, {}", model.heads, model.width);
        return Some(Problem::new("model.heads", message, "make the width a multiple of the heads"));
    }
    let head_width = model.width / model.heads;
    if model.positions == Positions::Rotary && !head_width.is_multiple_of(2) {
        let message =
            format!("rotary needs heads of even width, but model.width / model.heads is {head_width}");
        return Some(Problem::new("model.positions", message, "change width or heads, or choose learned"));
    }
    None
}

fn betas(betas: [f64; 2]) -> Option<Problem> {
    let bad = betas.into_iter().find(|beta| !(0.0..1.0).contains(beta))?;
    Some(Problem::new("optim.betas", format!("{bad} is out of range"), "give two numbers from 0 below 1"))
}

/// As JSON a NaN reads like null, which would mean no clipping.
fn clip_norm(clip_norm: Option<f64>) -> Option<Problem> {
    let bad = clip_norm.filter(|norm| !norm.is_finite())?;
    Some(Problem::new("optim.clip_norm", format!("found {bad}"), "give a number above 0, or null"))
}

/// The library's all-reduce adds numbers that it understands; compressed ones are added here.
fn compression(parallel: &Parallel) -> Option<Problem> {
    if parallel.compression == Compression::None || parallel.reduction == Reduction::Ordered {
        return None;
    }
    let message = "compressed gradients cannot be added by the library (parallel.reduction: native)";
    Some(Problem::new("parallel.compression", message, "choose reduction: ordered, or compression: none"))
}

/// Rounding at every node of the tree is what keeps 16-bit sums the same for every number of ranks.
fn reduce_dtype(config: &Config) -> Option<Problem> {
    let (format, parallel) = (config.reduce_dtype.name(), &config.parallel);
    let problem = |message: String, remedy: &str| Some(Problem::new("reduce_dtype", message, remedy));
    match () {
        () if config.reduce_dtype == Precision::Fp32 => None,
        () if parallel.reduction == Reduction::Native => problem(
            format!("the library (parallel.reduction: native) cannot add in {format}"),
            "choose reduction: ordered, or reduce_dtype: fp32",
        ),
        () if parallel.compression != Compression::None => problem(
            format!("gradients that are added in {format} already are not compressed as well"),
            "choose compression: none, or reduce_dtype: fp32",
        ),
        () => None,
    }
}

/// Settings of a scale that there is not, and residuals of compression, which belong to the scale of their step.
fn scaler(config: &Config) -> Option<Problem> {
    if scales_loss(config) && config.parallel.compression != Compression::None {
        let message = "what compression leaves out of a step is of no use in the next one, whose loss scale may be another";
        let remedy = "choose compression: none (reduce_dtype: fp16 sends 16 bits, too), or another precision";
        return Some(Problem::new("parallel.compression", message, remedy));
    }
    if config.precision == Precision::Fp16 {
        return None;
    }
    let base = serde_json::to_value(&super::load(&[], &[], &|_| None).ok()?.config).ok()?;
    let mine = serde_json::to_value(config).ok()?;
    let changed =
        |key: &&Key| key.name.starts_with("scaler.") && get(&base, &key.name) != get(&mine, &key.name);
    let key = Keys::get().keys.iter().find(changed)?;
    let message = format!("under precision: {} the loss is not scaled", config.precision.name());
    Some(Problem::new(
        key.name.as_str(),
        message,
        "leave the section `scaler` as it is, or set precision: fp16",
    ))
}

fn vocabulary(data: &Data) -> Option<Problem> {
    if data.kind != DataKind::Text
        || data.tokenizer != TokenizerKind::Bpe
        || VOCABULARY.contains(&data.vocabulary)
    {
        return None;
    }
    let message = format!("bpe cannot have {} tokens", data.vocabulary);
    let remedy = format!("give a whole number from {} to {}", VOCABULARY.start(), VOCABULARY.end());
    Some(Problem::new("data.vocabulary", message, remedy))
}

fn warmup(config: &Config) -> Option<Problem> {
    let (warmup, steps) = (config.schedule.warmup_steps, config.schedule.steps);
    let message = format!("{warmup} is more than schedule.steps, {steps}");
    (warmup > steps)
        .then(|| Problem::new("schedule.warmup_steps", message, "lower it, or train for more steps"))
}

fn evaluation(config: &Config) -> Option<Problem> {
    if config.evaluate.every == 0 || config.data.validation_fraction > 0.0 {
        return None;
    }
    let message = "there is nothing to evaluate on: data.validation_fraction is 0";
    Some(Problem::new("evaluate.every", message, "set it to 0, or keep some data for validation"))
}

fn telemetry(seconds: f64) -> Option<Problem> {
    let message = format!("{seconds} s is shorter than a look at a GPU may take");
    let remedy = format!("give at least {TELEMETRY_SECONDS_MIN}, or 0 for none");
    let is_too_short = seconds > 0.0 && seconds < TELEMETRY_SECONDS_MIN;
    is_too_short.then(|| Problem::new("record.telemetry_every_s", message, remedy))
}

/// Products that the program forms later must fit in the integers that it forms them in.
fn sizes(config: &Config) -> Option<Problem> {
    let product =
        |factors: &[usize]| factors.iter().fold(1u128, |all, factor| all.saturating_mul(*factor as u128));
    let (model, batch) = (&config.model, &config.batch);
    let vocabulary = config.data.vocabulary.max(256);
    let length = match model.kind {
        ModelKind::Vla => model.turns.saturating_mul(TURN_TOKENS.saturating_add(model.chunk)),
        ModelKind::Gpt | ModelKind::Resnet => model.context,
    };
    let widest = model.width << (model.stages - 1).min(5);
    let parameters = match model.kind {
        ModelKind::Gpt | ModelKind::Vla => {
            let block = product(&[12, model.width, model.width]) + product(&[13, model.width]);
            let embeddings = product(&[vocabulary + length, model.width]);
            block.saturating_mul(model.layers as u128).saturating_add(embeddings)
        }
        // Every block counted as one of the last and widest stage.
        ModelKind::Resnet => product(&[20, widest, widest, model.layers, model.stages]),
    };
    // Parameters, their gradients and two moments, of four bytes each.
    let state_bytes = parameters.saturating_mul(16);
    if state_bytes > SIZE_MAX {
        let message = "the parameters' size overflows";
        return Some(Problem::new("model.width", message, "lower model.width or model.layers"));
    }
    let logits = product(&[batch.micro_batch_size, length, vocabulary, 4]);
    let scores = product(&[batch.micro_batch_size, model.heads, length, length, 4]);
    if logits.max(scores) > SIZE_MAX {
        let message = "the size of a micro-batch's activations overflows";
        return Some(Problem::new("batch.micro_batch_size", message, "lower it or model.context"));
    }
    let samples = product(&[batch.micro_batches, batch.micro_batch_size]);
    if samples.saturating_mul(u128::from(config.schedule.steps)).saturating_mul(length as u128) > SIZE_MAX {
        let message = "the number of tokens in the whole training overflows";
        return Some(Problem::new("schedule.steps", message, "lower it"));
    }
    None
}

fn data_file(data: &Data) -> Option<Problem> {
    let text = data.path.to_string_lossy();
    let (embedded, other) = sources(data.kind);
    if let Some(name) = text.strip_prefix(EMBEDDED_PREFIX) {
        let remedy = format!("there is {EMBEDDED_PREFIX}{embedded}");
        let message = format!("the program holds no data of this data.kind named {}", shown(name));
        return (name != embedded).then(|| Problem::new("data.path", message, remedy));
    }
    if data.kind == DataKind::Arm {
        let message = "an arm is simulated by the program, not read from a file";
        return Some(Problem::new("data.path", message, format!("set it to {EMBEDDED_PREFIX}{embedded}")));
    }
    let remedy = format!(
        "give {other} (relative paths start from the working directory), or {EMBEDDED_PREFIX}{embedded}"
    );
    let (fits, wanted): (fn(&std::fs::Metadata) -> bool, _) = match data.kind {
        DataKind::Text | DataKind::Arm => (std::fs::Metadata::is_file, "a regular file"),
        DataKind::Images => (std::fs::Metadata::is_dir, "a folder"),
    };
    match std::fs::metadata(&data.path) {
        Ok(metadata) if fits(&metadata) => None,
        Ok(_) => Some(Problem::new("data.path", format!("{} is not {wanted}", shown(&text)), remedy)),
        Err(error) => {
            Some(Problem::new("data.path", format!("cannot read {}: {error}", shown(&text)), remedy))
        }
    }
}
