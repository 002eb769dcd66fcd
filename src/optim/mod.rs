//! Element-wise optimizers on flat buckets, over the part that this rank owns.
//!
//! An element's update depends on that element alone, and shards consist of whole blocks, so vectorised kernels
//! treat each element alike whoever owns it.

mod schedule;

use std::ops::Range;

use tch::Tensor;

pub use schedule::learning_rate;

use crate::config::schema::{Optim, OptimKind};
use crate::grad::flat::Flat;
use crate::grad::layout::Layout;
use crate::grad::unused::{ParameterSet, UpdateRun, update_runs};
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
    /// State of zeros for `owned[bucket]` of each bucket.
    pub fn new(settings: &Optim, layout: &Layout, owned: Vec<Range<usize>>) -> Self {
        let zeros = |_: &&str| owned.iter().map(|range| Flat::zeros(range.len())).collect();
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

    /// Update number `step` (from 1) of the owned part of `parameters`, without those that are `unused`.
    pub fn update(
        &mut self,
        layout: &Layout,
        unused: &ParameterSet,
        parameters: &mut [Flat],
        gradients: &[Flat],
        step: u64,
        lr: f64,
    ) -> Result<(), TorchError> {
        for bucket in 0..self.owned.len() {
            let owned = self.owned[bucket].clone();
            for UpdateRun { range, left_out } in update_runs(layout, bucket, &owned, &self.left_out, unused) {
                self.decay(bucket, &mut parameters[bucket].as_mut_slice()[range.clone()], lr);
                let mut parameter = parameters[bucket].view(range.clone());
                let mut gradient = gradients[bucket].view(range.clone());
                let state = range.start - owned.start..range.end - owned.start;
                self.update_run(bucket, &mut parameter, &mut gradient, state, step - left_out, lr)?;
            }
        }
        self.leave_out(unused.iter());
        Ok(())
    }

    fn weight_decay(&self, bucket: usize) -> f64 {
        if self.decays[bucket] { self.settings.weight_decay } else { 0.0 }
    }

    /// Decoupled weight decay (Loshchilov and Hutter 2019), `p *= 1 − lr · decay`, for SGD; AdamW's kernel has its own.
    fn decay(&self, bucket: usize, parameters: &mut [f32], lr: f64) {
        let rate = lr * self.weight_decay(bucket);
        if self.settings.kind == OptimKind::Sgd && rate != 0.0 {
            let factor = (1.0 - rate) as f32;
            parameters.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// One call of the kernel; `state` is the run's place in the optimizer's state.
    fn update_run(
        &mut self,
        bucket: usize,
        parameter: &mut Tensor,
        gradient: &mut Tensor,
        state: Range<usize>,
        step: u64,
        lr: f64,
    ) -> Result<(), TorchError> {
        let Optim { kind, betas, eps, momentum, .. } = self.settings;
        let weight_decay = self.weight_decay(bucket);
        let state = |kind: usize| self.state[kind][bucket].view(state.clone());
        match kind {
            OptimKind::Adamw => {
                let constants = AdamW { lr, betas, eps, weight_decay };
                fused_adamw(parameter, gradient, &mut state(0), &mut state(1), step, constants)
            }
            OptimKind::Sgd => fused_sgd(parameter, gradient, &mut state(0), lr, momentum, step == 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::flat;
    use crate::grad::layout::ParameterSpec;
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
            non_finite: crate::config::schema::NonFinite::Stop,
        }
    }

    fn layout() -> Layout {
        Layout::plan(vec![ParameterSpec { name: "w".into(), shape: vec![100, 50] }], 1 << 20)
    }

    fn value(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
    }

    /// Three updates by `ranks` owners of shards; returns parameters and the first kind of state.
    fn train(kind: OptimKind, ranks: usize) -> (Vec<f32>, Vec<f32>) {
        let layout = layout();
        let elements = layout.buckets[0].elements;
        let (mut parameters, mut gradients) = (vec![Flat::zeros(elements)], vec![Flat::zeros(elements)]);
        parameters[0].as_mut_slice().iter_mut().enumerate().for_each(|(i, p)| *p = value(i + 7));
        let mut owners: Vec<Optimizer> = (0..ranks)
            .map(|rank| share(elements / BLOCK_ELEMENTS, ranks, rank))
            .map(|blocks| blocks.start * BLOCK_ELEMENTS..blocks.end * BLOCK_ELEMENTS)
            .map(|owned| Optimizer::new(&settings(kind), &layout, vec![owned]))
            .collect();
        for step in 1..=3 {
            gradients[0].as_mut_slice().iter_mut().enumerate().for_each(|(i, g)| *g = value(i * 3 + step));
            for owner in &mut owners {
                owner
                    .update(&layout, &ParameterSet::default(), &mut parameters, &gradients, step as u64, 0.1)
                    .unwrap();
            }
        }
        let state = owners.iter().flat_map(|owner| owner.state(0)[0].as_slice().to_vec()).collect();
        (parameters[0].as_slice().to_vec(), state)
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

    /// As in PyTorch, where a parameter without a gradient is as if the step had not been: its bits, its state and the
    /// bias corrections that follow.
    #[test]
    fn a_step_left_out_is_as_if_it_had_not_been() {
        let specs = ["a", "b"].map(|name| ParameterSpec { name: name.into(), shape: vec![100, 50] });
        let layout = Layout::plan(specs.to_vec(), 1 << 20);
        let place = layout.slots[1].range();
        for kind in [OptimKind::Adamw, OptimKind::Sgd] {
            let run = |steps: &[(u64, bool)]| {
                let mut buffers = [flat::zeros(&layout), flat::zeros(&layout)];
                buffers[0][0].as_mut_slice().iter_mut().enumerate().for_each(|(i, p)| *p = value(i));
                let [parameters, gradients] = &mut buffers;
                let owned = vec![0..layout.buckets[0].elements];
                let mut optimizer = Optimizer::new(&settings(kind), &layout, owned);
                for (number, &(seed, used)) in steps.iter().enumerate() {
                    let gradient = gradients[0].as_mut_slice();
                    gradient.iter_mut().enumerate().for_each(|(i, g)| *g = value(i * 3 + seed as usize));
                    let unused: ParameterSet = (!used).then_some(1).into_iter().collect();
                    optimizer
                        .update(&layout, &unused, parameters, gradients, number as u64 + 1, 0.1)
                        .unwrap();
                }
                let state = optimizer.state(0)[0].as_slice()[place.clone()].to_vec();
                (
                    parameters[0].as_slice()[place.clone()].to_vec(),
                    state,
                    parameters[0].as_slice()[layout.slots[0].offset],
                )
            };
            let (with, without) = (run(&[(1, true), (9, false), (2, true)]), run(&[(1, true), (2, true)]));
            assert_eq!((&with.0, &with.1), (&without.0, &without.1), "{kind:?}");
            assert_ne!(with.2, without.2, "the other parameter was updated");
            let first = run(&[(9, false), (1, true)]);
            assert_eq!(first.0, run(&[(1, true)]).0, "{kind:?}: its first update comes later");
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
