//! Everything that a run trains with, built from its configuration: data, model, layout, strategy, optimizer.

mod batch;
mod parameters;
mod probe;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tch::Device;

use lockstep_record::{DataInfo, ModelInfo, Perturbation, TensorInfo, TrainingState, exit};

pub use parameters::Parameters;

use crate::checkpoint::{Expected, Tensors};
use crate::comm::{Comm, CommError};
use crate::compress;
use crate::config::Config;
use crate::config::schema::Reduction;
use crate::data::{self, Corpus, Sampler};
use crate::grad::accumulate::Accumulator;
use crate::grad::home::Home;
use crate::grad::layout::{Capacity, Layout, ParameterSpec};
use crate::grad::shared::SharedSums;
use crate::grad::unused::ParameterSet;
use crate::launch::{Failure, together};
use crate::model::{self, Initial, Model};
use crate::mutate::{Mutation, active, strikes};
use crate::optim::Optimizer;
use crate::precision::{self, Format, LossScaler};
use crate::quantity::bytes_text;
use crate::reduce::{Reducer, Tools};
use crate::shortage::{self, Holding, Needs, Place};
use crate::strategy::{self, Ownership, Setting};
use crate::telemetry::Telemetry;
use crate::torch::GradientHooks;
use crate::trace::Trace;

/// Bytes in the MiB of `parallel.bucket_mb`.
const MIB: f64 = 1048576.0;

pub struct Session<'a> {
    pub config: &'a Config,
    pub comm: &'a dyn Comm,
    pub corpus: Box<dyn Corpus>,
    pub sampler: Sampler,
    pub model: Box<dyn Model>,
    pub layout: Layout,
    pub ownership: Ownership,
    pub accumulator: Accumulator,
    pub reducer: Reducer<'a>,
    pub optimizer: Optimizer,
    /// Where the loss is scaled.
    pub scaler: Option<LossScaler>,
    pub parameters: Parameters,
    /// On the parameters' leaves.
    pub hooks: GradientHooks,
    pub trace: Trace,
    /// Of the GPU that this rank computes on.
    pub telemetry: Option<Telemetry>,
    /// Whether the ranks exchange nothing while they train.
    pub isolated: bool,
    /// Where forward and backward run.
    pub device: Device,
    /// Where parameters, gradients and the optimizer's state lie.
    pub home: Home,
    /// Why gradients are sent, though the ranks could have added them up in one memory.
    pub unshared: Option<String>,
    /// How gradients are compressed, as the record spells it; none where they travel whole, or not at all.
    pub compression: Option<String>,
    /// This rank's micro-batches.
    pub micro_batches: Range<usize>,
    /// Unused parameters that the log has named.
    pub named_unused: ParameterSet,
    /// Steps so far that were skipped one after the other.
    pub skipped_in_a_row: u64,
    /// What is moved on purpose.
    pub perturbation: Option<Perturbation>,
    initial: Vec<Initial>,
}

impl<'a> Session<'a> {
    /// Builds everything but the parameters' values; all ranks call it. Ranks that are `isolated` exchange nothing while
    /// they train: see [`strategy::build`]. The model computes on `device`.
    pub fn build(
        config: &'a Config,
        comm: &'a dyn Comm,
        isolated: bool,
        device: Device,
    ) -> Result<Self, Failure> {
        let trace = Trace::default();
        let corpus = load_corpus(config, comm)?;
        let batch = &config.batch;
        let info = corpus.info();
        let sampler =
            Sampler::new(config.run.seed, info.train_samples, batch.micro_batches, batch.micro_batch_size)
                .map_err(|error| Failure::shared(exit::USAGE, error))?;
        let model = model::build(&config.model, config.precision, info.vocabulary as usize);
        let (specs, initial): (Vec<ParameterSpec>, Vec<_>) = model.parameters().into_iter().unzip();
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let frozen = model::frozen(&names, &config.model.freeze)
            .map_err(|error| Failure::shared(exit::USAGE, error))?;
        let home = comm.home(device);
        let places = (place(device), place(home.device()));
        shortage::remember(holdings(config, comm, &specs, &frozen, info.vocabulary as usize, places), device);
        let ready = probe::ready_order(comm, &*corpus, &*model, config.precision, &specs, &frozen)?;
        let layout = Layout::plan(specs, &frozen, &ready, capacity(&config.parallel));
        let mut setting = Setting {
            layout: &layout,
            micro_batches: batch.micro_batches,
            reduction: config.parallel.reduction,
            format: reduce_format(config),
            rank: comm.rank(),
            world_size: comm.size(),
            shared: None,
        };
        let unshared = match share_sums(config, comm, &setting, home, isolated)? {
            Ok(shared) => {
                setting.shared = shared;
                None
            }
            Err(reason) => Some(reason),
        };
        let kind = config.parallel.strategy;
        let ownership = strategy::ownership(kind, &setting);
        let optimizer = Optimizer::new(&config.optim, &layout, ownership.owned(comm.rank()), home);
        let mut strategy = strategy::build(kind, &setting, &ownership, isolated);
        let compression = config.parallel.compression_name().filter(|_| comm.size() > 1 && !isolated);
        if compression.is_some() {
            strategy = compress::wrap(strategy, &config.parallel, config.run.seed, &setting, &ownership);
        }
        let shards = ownership.shards().iter().map(|shards| shards[comm.rank()].clone());
        let tools = Tools {
            strategy,
            shards: shards.take(layout.trained_buckets()).collect(),
            home,
            threads: i32::try_from(config.run.threads_per_rank).unwrap_or(i32::MAX),
            trace: trace.clone(),
        };
        let reducer = Reducer::new(comm, tools, config.parallel.overlap)?;
        let parameters = Parameters::new(&layout, home);
        let shared = setting.shared.as_deref().map(|shared| (shared, comm.rank()));
        Ok(Self {
            config,
            comm,
            sampler,
            accumulator: Accumulator::in_common(setting.accumulation(), &layout, home, shared)
                .in_format(setting.format),
            unshared,
            micro_batches: setting.micro_batches(),
            hooks: GradientHooks::install(parameters.leaves())?,
            parameters,
            corpus,
            model,
            layout,
            ownership,
            reducer,
            isolated,
            device,
            home,
            compression,
            optimizer,
            scaler: precision::scales_loss(config).then(|| LossScaler::new(&config.scaler)),
            trace,
            telemetry: None,
            named_unused: ParameterSet::default(),
            skipped_in_a_row: 0,
            perturbation: None,
            initial,
        })
    }

    /// Makes the initial parameters.
    pub fn initialise(&mut self) -> Result<(), Failure> {
        self.parameters.initialise(&self.layout, &self.initial, self.config.run.seed, self.comm)?;
        self.agree_on_parameters()
    }

    /// Whether all ranks hold the same parameters, by digest.
    pub fn agree_on_parameters(&self) -> Result<(), Failure> {
        let mine = self.parameters.digest()?;
        let all = self.comm.all_gather_bytes("gather of parameters", &mine.0.to_le_bytes())?;
        match all.iter().position(|digest| *digest != all[0]) {
            None => Ok(()),
            Some(_) if active(Mutation::UnequalStart) => Ok(()),
            Some(rank) => Err(Failure::shared(
                exit::INTERNAL,
                format!(
                    "rank {rank} does not hold the parameters of rank 0 after the broadcast: its memory or the network altered them"
                ),
            )),
        }
    }

    /// Whether communication could not be given a thread of its own, though that was asked for.
    pub fn overlap_is_missing(&self) -> bool {
        self.config.parallel.overlap && self.comm.size() > 1 && !self.reducer.overlaps()
    }

    pub fn tensors(&mut self) -> Tensors<'_> {
        Tensors {
            layout: &self.layout,
            parameters: self.parameters.buffers_mut(),
            optimizer: &mut self.optimizer,
        }
    }

    /// What a checkpoint after `step` steps says besides tensors.
    pub fn state(&self, step: u64) -> TrainingState {
        let DataInfo { digest, tokenizer_digest, .. } = self.corpus.info();
        TrainingState {
            step: if active(Mutation::StepOffByOne) { step - 1 } else { step },
            seed: self.config.run.seed,
            samples_seen: step
                * (self.config.batch.micro_batches * self.config.batch.micro_batch_size) as u64,
            optimizer: self.config.optim.kind.name().into(),
            tokenizer_digest,
            data_digest: digest,
            world_size: self.comm.size() as u32,
            strategy: self.config.parallel.strategy.name().into(),
            updates_left_out: self.updates_left_out(),
            skipped_in_a_row: self.skipped_in_a_row,
            loss_scale: self.scaler.as_ref().map(LossScaler::state),
        }
    }

    /// Loads a checkpoint into this session; all ranks call it.
    pub fn load(
        &mut self,
        folder: &std::path::Path,
    ) -> Result<TrainingState, crate::checkpoint::CheckpointError> {
        let DataInfo { digest, tokenizer_digest, .. } = self.corpus.info();
        let expected = Expected {
            optimizer: self.config.optim.kind.name(),
            tokenizer_digest: &tokenizer_digest,
            data_digest: &digest,
            seed: self.config.run.seed,
        };
        let comm = self.comm;
        let state = crate::checkpoint::load(comm, folder, &expected, &mut self.tensors())?;
        for (spec, count) in self.layout.parameters.iter().zip(self.optimizer.left_out_mut()) {
            *count = state.updates_left_out.get(&spec.name).copied().unwrap_or(0);
        }
        self.skipped_in_a_row = state.skipped_in_a_row;
        // A checkpoint of a training without a scale leaves the first one.
        if let (Some(scaler), Some(scale), false) =
            (&mut self.scaler, state.loss_scale, active(Mutation::ScaleResetOnResume))
        {
            scaler.restore(scale);
        }
        if strikes(Mutation::LoadOnOneRank, comm.rank(), comm.size()) {
            self.parameters.lose_the_first_bucket().map_err(CommError::from)?;
        }
        Ok(state)
    }

    /// By name, of the parameters that were left out of any update.
    fn updates_left_out(&self) -> BTreeMap<String, u64> {
        let counts = self.layout.parameters.iter().zip(self.optimizer.left_out());
        counts.filter(|&(_, &count)| count > 0).map(|(spec, &count)| (spec.name.clone(), count)).collect()
    }

    pub fn model_info(&self) -> ModelInfo {
        let tensor = |spec: &ParameterSpec| TensorInfo {
            name: spec.name.clone(),
            shape: spec.shape.iter().map(|&size| size as u64).collect(),
            dtype: "F32".into(),
        };
        let tensors = self.layout.parameters.iter().map(tensor).collect();
        ModelInfo { parameters: self.layout.elements() as u64, tensors }
    }
}

/// What this rank will need memory for.
fn holdings(
    config: &Config,
    comm: &dyn Comm,
    specs: &[ParameterSpec],
    frozen: &[bool],
    vocabulary: usize,
    (computes_on, buckets_in): (Place, Place),
) -> Vec<Holding> {
    let elements = |spec: &ParameterSpec| spec.elements() as u64;
    let trained = specs.iter().zip(frozen).filter(|(_, frozen)| !**frozen).map(|(spec, _)| elements(spec));
    let largest = specs.iter().max_by_key(|spec| spec.elements());
    shortage::holdings(&Needs {
        config,
        elements: specs.iter().map(elements).sum(),
        trained: trained.sum(),
        largest: largest.map_or(("none", 0), |spec| (spec.name.as_str(), elements(spec))),
        vocabulary,
        rank: comm.rank(),
        world_size: comm.size(),
        computes_on,
        buckets_in,
    })
}

/// Memory for the partial sums of all ranks, where they can all see it, and nothing but the ordered sum in fp32 looks at them.
/// In words why there is none, if that is a pity.
fn share_sums(
    config: &Config,
    comm: &dyn Comm,
    setting: &Setting,
    home: Home,
    isolated: bool,
) -> Result<Result<Option<Arc<SharedSums>>, String>, CommError> {
    let parallel = &config.parallel;
    let ordered = parallel.reduction == Reduction::Ordered && parallel.compression_name().is_none();
    let alone = comm.size() == 1 || isolated;
    if !parallel.shared_memory || alone || !ordered || setting.format.is_some() || home != Home::Host {
        return Ok(Ok(None));
    }
    let places = setting.places();
    let (bytes, commons) = (size_of::<f32>() * places.elements(), comm.commons(places.elements())?);
    let refused = |reason| format!("{reason}, where {} would be needed", bytes_text(bytes as u64));
    let shared = |commons| Arc::new(SharedSums::new(commons, places));
    Ok(commons.transpose().map(|commons| commons.map(shared)).map_err(refused))
}

/// The memory of a device.
fn place(device: Device) -> Place {
    if device == Device::Cpu { Place::Host } else { Place::Gpu }
}

/// The format in which gradients are added up, unless that is fp32.
fn reduce_format(config: &Config) -> Option<Format> {
    match active(Mutation::ReducedInBf16) {
        false => precision::format(config.reduce_dtype),
        true => Some(Format::Bf16),
    }
}

/// The configuration's bucket sizes.
fn capacity(parallel: &crate::config::schema::Parallel) -> Capacity {
    let bytes = |mib: f64| (mib * MIB) as usize;
    let bucket = bytes(parallel.bucket_mb);
    Capacity { bucket, edge: bytes(parallel.edge_bucket_mb).min(bucket) }
}

/// Rank 0 first, so that a tokenizer is learned once and the others find it.
fn load_corpus(config: &Config, comm: &dyn Comm) -> Result<Box<dyn Corpus>, Failure> {
    let load = || data::load(config);
    let first = if comm.rank() == 0 { Some(load()) } else { None };
    let first = together(comm, exit::USAGE, first.transpose())?;
    let corpus = together(comm, exit::USAGE, first.map_or_else(load, Ok))?;
    together(comm, exit::USAGE, same_data_as_rank_0(&corpus.info(), comm)?)?;
    Ok(corpus)
}

/// A path may name another file on another host.
fn same_data_as_rank_0(mine: &DataInfo, comm: &dyn Comm) -> Result<Result<(), String>, Failure> {
    let text = format!("data {} with tokenizer {}", mine.digest, mine.tokenizer_digest);
    let all = comm.all_gather_bytes("gather of data digests", text.as_bytes())?;
    Ok(match all[0] == text.as_bytes() {
        true => Ok(()),
        false => Err(format!(
            "it has {text}, but rank 0 has {}: put the same file at data.path on every host",
            String::from_utf8_lossy(&all[0])
        )),
    })
}
