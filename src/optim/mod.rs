//! Element-wise optimizers on flat buckets, over the part that this rank owns.
//!
//! An element's update depends on that element alone, and shards consist of whole blocks, so vectorised kernels
//! treat each element alike whoever owns it.

mod schedule;

use std::ops::Range;

pub use schedule::learning_rate;

use crate::config::schema::{Optim, OptimKind};
use crate::grad::flat::Flat;
use crate::grad::layout::Layout;
use crate::torch::{AdamW, TorchError, fused_adamw, fused_sgd};

/// The optimizer and its state for the owned part of each bucket.
pub struct Optimizer {
    settings: Optim,
    decays: Vec<bool>,
    owned: Vec<Range<usize>>,
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
    /// State of zeros for `owned[bucket]` of each bucket.
    pub fn new(settings: &Optim, layout: &Layout, owned: Vec<Range<usize>>) -> Self {
        let zeros = |_: &&str| owned.iter().map(|range| Flat::zeros(range.len())).collect();
        Self {
            state: state_names(settings.kind).iter().map(zeros).collect(),
            settings: settings.clone(),
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

    /// Update number `step` (from 1) of a bucket, to be applied here or on another thread. Until then the bucket's state
    /// is not to be touched.
    pub fn prepare(&self, bucket: usize, step: u64, lr: f64) -> Update {
        Update {
            settings: self.settings.clone(),
            weight_decay: if self.decays[bucket] { self.settings.weight_decay } else { 0.0 },
            owned: self.owned[bucket].clone(),
            state: self.state.iter().map(|buckets| buckets[bucket].same_memory()).collect(),
            step,
            lr,
        }
    }
}

/// One bucket's update.
pub struct Update {
    settings: Optim,
    weight_decay: f64,
    owned: Range<usize>,
    state: Vec<Flat>,
    step: u64,
    lr: f64,
}

impl Update {
    /// Updates the owned part of `parameters` and the optimizer's state.
    pub fn apply(self, parameters: &mut Flat, gradient: &Flat) -> Result<(), TorchError> {
        let Self { settings, weight_decay, owned, state, step, lr } = self;
        if owned.is_empty() {
            return Ok(());
        }
        let mut gradient = gradient.view(owned.clone());
        let state = |kind: usize| state[kind].view(0..owned.len());
        match settings.kind {
            OptimKind::Adamw => {
                let Optim { betas, eps, .. } = settings;
                fused_adamw(
                    &mut parameters.view(owned.clone()),
                    &mut gradient,
                    &mut state(0),
                    &mut state(1),
                    step,
                    AdamW { lr, betas, eps, weight_decay },
                )
            }
            OptimKind::Sgd => {
                decay(&mut parameters.as_mut_slice()[owned.clone()], lr * weight_decay);
                fused_sgd(
                    &mut parameters.view(owned.clone()),
                    &mut gradient,
                    &mut state(0),
                    lr,
                    settings.momentum,
                    step == 1,
                )
            }
        }
    }
}

/// Decoupled weight decay (Loshchilov and Hutter 2019): `p *= 1 − rate`.
fn decay(parameters: &mut [f32], rate: f64) {
    if rate != 0.0 {
        let factor = (1.0 - rate) as f32;
        parameters.iter_mut().for_each(|value| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::layout::{Capacity, ParameterSpec};
    use crate::partition::share;
    use lockstep_record::BLOCK_ELEMENTS;

    fn settings(kind: OptimKind) -> Optim {
        Optim {
            kind,
            lr: 0.1,
            betas: [0.9, 0.95],
            eps: 1e-8,
            momentum: 0.9,
            weight_decay: 0.1,
            clip_norm: None,
        }
    }

    fn layout() -> Layout {
        let spec = ParameterSpec { name: "w".into(), shape: vec![100, 50] };
        Layout::plan(vec![spec], &[0], Capacity { bucket: 1 << 20, edge: 1 << 20 })
    }

    fn value(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
    }

    /// Three updates by `ranks` owners of shards; returns parameters and the first kind of state.
    fn train(kind: OptimKind, ranks: usize) -> (Vec<f32>, Vec<f32>) {
        let layout = layout();
        let elements = layout.buckets[0].elements;
        let (mut parameters, mut gradient) = (Flat::zeros(elements), Flat::zeros(elements));
        parameters.as_mut_slice().iter_mut().enumerate().for_each(|(i, p)| *p = value(i + 7));
        let owners: Vec<Optimizer> = (0..ranks)
            .map(|rank| share(elements / BLOCK_ELEMENTS, ranks, rank))
            .map(|blocks| blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS)
            .map(|owned| Optimizer::new(&settings(kind), &layout, vec![owned]))
            .collect();
        for step in 1..=3 {
            gradient.as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = value(i * 3 + step));
            for owner in &owners {
                owner.prepare(0, step as u64, 0.1).apply(&mut parameters, &gradient).unwrap();
            }
        }
        let state = owners.iter().flat_map(|owner| owner.state(0)[0].as_slice().to_vec()).collect();
        (parameters.as_slice().to_vec(), state)
    }

    #[test]
    fn shards_update_as_the_whole_does() {
        for kind in [OptimKind::Adamw, OptimKind::Sgd] {
            let whole = train(kind, 1);
            for ranks in 2..=5 {
                assert_eq!(train(kind, ranks), whole, "{kind:?} on {ranks} ranks");
            }
        }
    }

    #[test]
    fn adamw_follows_its_formula() {
        let (parameters, exp_avg) = train(OptimKind::Adamw, 1);
        let (mut p, mut m, mut v) = (f64::from(value(7)), 0.0, 0.0);
        for step in 1..=3 {
            let g = f64::from(value(step));
            p *= 1.0 - 0.1 * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            let correction = |beta: f64| 1.0 - beta.powi(step as i32);
            p -= 0.1 * (m / correction(0.9)) / ((v / correction(0.95)).sqrt() + 1e-8);
        }
        approx::assert_relative_eq!(f64::from(parameters[0]), p, max_relative = 1e-5);
        approx::assert_relative_eq!(f64::from(exp_avg[0]), m, max_relative = 1e-5);
    }

    #[test]
    fn sgd_follows_its_formula() {
        let (parameters, buffer) = train(OptimKind::Sgd, 1);
        let (mut p, mut m) = (f64::from(value(7)), 0.0);
        for step in 1..=3 {
            m = 0.9 * m + f64::from(value(step));
            p = p * (1.0 - 0.1 * 0.1) - 0.1 * m;
        }
        approx::assert_relative_eq!(f64::from(parameters[0]), p, max_relative = 1e-5);
        approx::assert_relative_eq!(f64::from(buffer[0]), m, max_relative = 1e-5);
    }
}
