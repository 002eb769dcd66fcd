//! Element-wise optimizers on flat buckets, over the part that this rank owns.
//!
//! An element's update depends on that element alone, and shards consist of whole blocks, so vectorised kernels
//! treat each element alike whoever owns it.

mod schedule;

use std::ops::Range;

pub use schedule::learning_rate;

use crate::config::schema::{Optim, OptimKind};
use crate::grad::flat::Flat;
use crate::grad::home::Home;
use crate::grad::layout::Layout;
use crate::grad::unused::{ParameterSet, UpdateRun, update_runs};
use crate::mutate::{Mutation, active, active_from, since_resume};
use crate::torch::{AdamW, TorchError, fused_adamw, fused_sgd};

/// The optimizer and its state for the owned part of each bucket.
pub struct Optimizer {
    settings: Optim,
    decays: Vec<bool>,
    owned: Vec<Range<usize>>,
    /// By parameter: updates that it was left out of. Its bias corrections count the others only.
    left_out: Vec<u64>,
    /// `state[kind][bucket]`, as long as the owned part; kinds as [`state_names`] lists them.
    state: Vec<Vec<Flat>>,
}

/// What an optimizer keeps per element, as checkpoints and digests name it.
pub fn state_names(kind: OptimKind) -> &'static [&'static str] {
    match kind {
        OptimKind::Adamw => &["exp_avg", "exp_avg_sq"],
        OptimKind::Sgd => &["momentum"],
    }
}

impl Optimizer {
    /// State of zeros for `owned[bucket]` of each bucket, beside parameters and gradients.
    pub fn new(settings: &Optim, layout: &Layout, owned: Vec<Range<usize>>, home: Home) -> Self {
        let zeros = |_: &&str| owned.iter().map(|range| Flat::zeros(home, range.len())).collect();
        Self {
            state: state_names(settings.kind).iter().map(zeros).collect(),
            settings: settings.clone(),
            left_out: vec![0; layout.parameters.len()],
            decays: layout.buckets.iter().map(|bucket| bucket.decays).collect(),
            owned,
        }
    }

    /// The part of each bucket that this rank updates.
    pub fn owned(&self) -> &[Range<usize>] {
        &self.owned
    }

    /// State of one kind, a buffer a bucket, over the owned part.
    pub fn state(&self, kind: usize) -> &[Flat] {
        &self.state[kind]
    }

    /// As [`Optimizer::state`], for a resume to fill.
    pub fn state_mut(&mut self, kind: usize) -> &mut [Flat] {
        &mut self.state[kind]
    }

    /// Handles of a bucket's state, by kind.
    pub fn state_of(&self, bucket: usize) -> Vec<Flat> {
        self.state.iter().map(|buckets| buckets[bucket].same_memory()).collect()
    }

    pub fn state_names(&self) -> &'static [&'static str] {
        state_names(self.settings.kind)
    }

    /// Bytes of state that this rank holds.
    pub fn state_bytes(&self) -> u64 {
        self.state.iter().flatten().map(|flat| 4 * flat.len() as u64).sum()
    }

    /// Bytes of fp32 masters that this rank updates.
    pub fn master_bytes(&self) -> u64 {
        self.owned.iter().map(|range| 4 * range.len() as u64).sum()
    }

    /// By parameter: updates that it was left out of.
    pub fn left_out(&self) -> &[u64] {
        &self.left_out
    }

    /// As [`Optimizer::left_out`], for a resume to fill.
    pub fn left_out_mut(&mut self) -> &mut [u64] {
        &mut self.left_out
    }

    /// Leaves the `parameters` out of an update: as if their gradients had not been there.
    pub fn leave_out(&mut self, parameters: impl Iterator<Item = usize>) {
        parameters.for_each(|parameter| self.left_out[parameter] += 1);
    }

    /// Update number `step` (from 1) of a bucket without its `unused` parameters, to be applied here or on another
    /// thread. Until then the bucket's state is not to be touched.
    pub fn prepare(
        &self,
        layout: &Layout,
        bucket: usize,
        unused: &ParameterSet,
        step: u64,
        lr: f64,
    ) -> Update {
        let owned = &self.owned[bucket];
        Update {
            settings: self.settings.clone(),
            weight_decay: if self.decays[bucket] || active(Mutation::DecayOnEverything) {
                self.settings.weight_decay
            } else {
                0.0
            },
            first: owned.start,
            runs: update_runs(layout, bucket, owned, &self.left_out, unused),
            state: self.state_of(bucket),
            step: planted_step(step),
            lr: if active(Mutation::RateInSinglePrecision) { f64::from(lr as f32) } else { lr },
            goes_astray: bucket == 0 && active_from(Mutation::StaleParameters, 3),
        }
    }
}

/// One bucket's update.
pub struct Update {
    settings: Optim,
    weight_decay: f64,
    /// Where the owned part, and with it the state, begins in the bucket.
    first: usize,
    runs: Vec<UpdateRun>,
    state: Vec<Flat>,
    step: u64,
    lr: f64,
    /// The planted bug: the optimizer holds parameters that are no longer the model's.
    goes_astray: bool,
}

/// Which update this is, unless a bug is planted.
fn planted_step(step: u64) -> u64 {
    match active(Mutation::NoBiasCorrection) {
        true => u64::from(u32::MAX),
        false => since_resume(Mutation::StepCountRestarts).map_or(step, |from| step - from),
    }
}

impl Update {
    /// Updates `parameters` and the optimizer's state.
    pub fn apply(self, parameters: &mut Flat, gradient: &Flat) -> Result<(), TorchError> {
        let mut stale = self.goes_astray.then(|| Flat::zeros(parameters.home(), parameters.len()));
        let parameters = stale.as_mut().unwrap_or(parameters);
        for UpdateRun { range, left_out } in &self.runs {
            self.decay(parameters, range)?;
            self.update_run(parameters, gradient, range, self.step - left_out)?;
        }
        Ok(())
    }

    /// Decoupled weight decay (Loshchilov and Hutter 2019), `p *= 1 − lr · decay`, for SGD; AdamW's kernel has its own.
    fn decay(&self, parameters: &mut Flat, range: &Range<usize>) -> Result<(), TorchError> {
        match self.settings.kind {
            OptimKind::Sgd => parameters.scale(range, (1.0 - self.lr * self.weight_decay) as f32),
            OptimKind::Adamw => Ok(()),
        }
    }

    /// One call of the kernel, as the `step`-th update of these parameters.
    fn update_run(
        &self,
        parameters: &Flat,
        gradient: &Flat,
        range: &Range<usize>,
        step: u64,
    ) -> Result<(), TorchError> {
        let Optim { kind, mut betas, eps, momentum, .. } = self.settings;
        let (lr, mut weight_decay) = (self.lr, self.weight_decay);
        let (mut parameter, mut gradient) = (parameters.view(range.clone()), gradient.view(range.clone()));
        if active(Mutation::BetasSwapped) {
            betas.reverse();
        }
        if active(Mutation::CoupledDecay) {
            gradient += &parameter * weight_decay;
            weight_decay = 0.0;
        }
        let state = |kind: usize| self.state[kind].view(range.start - self.first..range.end - self.first);
        match kind {
            OptimKind::Adamw => {
                let constants = AdamW { lr, betas, eps, weight_decay };
                fused_adamw(&mut parameter, &mut gradient, &mut state(0), &mut state(1), step, constants)
            }
            OptimKind::Sgd => {
                let first = step == 1 || active(Mutation::MomentumForgotten);
                fused_sgd(&mut parameter, &mut gradient, &mut state(0), lr, momentum, first)
            }
        }
    }
}

#[cfg(test)]
mod tests;
