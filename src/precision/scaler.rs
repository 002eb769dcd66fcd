//! Loss scaling (Micikevicius et al. 2018): the loss is multiplied by a large number before backward, so that small gradients
//! are not zero in fp16, and the step's gradient is divided by it before anything looks at it. The number is found by trial:
//! halved after a step whose gradient overflowed, doubled after many that did not, as `torch.amp.GradScaler` does.

use lockstep_record::{LossScale, Real};

use crate::config::schema::{NonFinite, Scaler};
use crate::mutate::{Mutation, active};

/// The smallest scale: its inverse is still finite in fp32.
const SCALE_MIN: f32 = 1e-30;
/// Steps that may be skipped one after the other. A spike that a schedule recovers from is over sooner; parameters that are
/// spoilt are not, and every further step would be wasted.
pub const SKIPPED_IN_A_ROW_MAX: u64 = 10;

/// The loss scale and how it changes: the same on all ranks, since all know whether the gradient was finite.
#[derive(Clone, Debug, PartialEq)]
pub struct LossScaler {
    settings: Scaler,
    scale: f32,
    /// Steps since the scale last changed, all with finite gradients.
    finite_steps: u64,
}

impl LossScaler {
    pub fn new(settings: &Scaler) -> Self {
        let scale = (settings.init_scale as f32).max(SCALE_MIN);
        Self { settings: settings.clone(), scale, finite_steps: 0 }
    }

    /// What the loss is multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// What the gradient is multiplied by: exact for powers of two.
    pub fn inverse(&self) -> f32 {
        f64::from(self.scale).recip() as f32
    }

    /// After a step, as `torch.amp.GradScaler.update`: a gradient that is not finite shrinks the scale, and
    /// `growth_interval` finite ones in a row let it grow, unless it would become infinite.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            self.scale = ((f64::from(self.scale) * self.settings.backoff_factor) as f32).max(SCALE_MIN);
            self.finite_steps = if active(Mutation::OverflowCounted) { self.finite_steps + 1 } else { 0 };
            return;
        }
        self.finite_steps += 1;
        if self.finite_steps >= self.settings.growth_interval {
            let grown = (f64::from(self.scale) * self.settings.growth_factor) as f32;
            self.scale = if grown.is_finite() { grown } else { self.scale };
            self.finite_steps = 0;
        }
    }

    /// What a checkpoint and the metrics hold of it.
    pub fn state(&self) -> LossScale {
        LossScale { scale: Real(f64::from(self.scale)), finite_steps: self.finite_steps }
    }

    /// Goes on from a checkpoint's state, which [`is_usable`] has approved.
    pub fn restore(&mut self, state: LossScale) {
        self.scale = state.scale.0 as f32;
        self.finite_steps = state.finite_steps;
    }
}

/// Whether a scale can come from a run: a positive fp32 number.
pub fn is_usable(state: &LossScale) -> bool {
    let scale = state.scale.0;
    (f64::from(SCALE_MIN)..=f64::from(f32::MAX)).contains(&scale) && f64::from(scale as f32) == scale
}

/// What to do about a step's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Update,
    /// The loss scale was too large: leave out the update.
    Rescale,
    /// Leave out the update, as `optim.non_finite: skip` wants it.
    Skip,
    /// End the run: `optim.non_finite: stop`.
    Stop,
    /// End the run: too many steps were skipped one after the other.
    GiveUp,
}

/// Decides about a gradient, the same on all ranks. While the loss scale is above 1, an overflow is the scale's; at 1 and
/// below, the gradient itself does not fit, and `policy` says what then. `skipped_in_a_row` counts earlier steps.
pub fn verdict(finite: bool, scale: Option<f32>, policy: NonFinite, skipped_in_a_row: u64) -> Verdict {
    match policy {
        _ if finite => Verdict::Update,
        _ if scale.is_some_and(|scale| scale > 1.0) => Verdict::Rescale,
        NonFinite::Stop => Verdict::Stop,
        NonFinite::Skip if skipped_in_a_row + 1 >= SKIPPED_IN_A_ROW_MAX => Verdict::GiveUp,
        NonFinite::Skip => Verdict::Skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::ScalerUse;
    use proptest::prelude::*;
    use tch::{Device, Kind, Tensor};

    fn settings(init_scale: f64, growth_factor: f64, backoff_factor: f64, growth_interval: u64) -> Scaler {
        Scaler { enabled: ScalerUse::Auto, init_scale, growth_factor, backoff_factor, growth_interval }
    }

    /// `torch._amp_update_scale_`, which GradScaler calls.
    struct Libtorch {
        scale: Tensor,
        tracker: Tensor,
        settings: Scaler,
    }

    impl Libtorch {
        fn update(&mut self, finite: bool) {
            let found = Tensor::from_slice(&[if finite { 0f32 } else { 1.0 }]).squeeze();
            let Scaler { growth_factor, backoff_factor, growth_interval, .. } = self.settings;
            let mut scale = self.scale.shallow_clone();
            let (grow, back) = (growth_factor, backoff_factor);
            let _ =
                scale.internal_amp_update_scale_(&self.tracker, &found, grow, back, growth_interval as i64);
        }
    }

    proptest! {
        #[test]
        fn it_moves_as_torchs_does(
            init in prop::sample::select(vec![65536.0, 1.0, 3.7, 1e30]),
            growth in 1.1f64..8.0,
            backoff in 0.1f64..0.9,
            interval in 1u64..5,
            steps in prop::collection::vec(prop::bool::weighted(0.7), 1..80),
        ) {
            let settings = settings(init, growth, backoff, interval);
            let mut ours = LossScaler::new(&settings);
            let scalar = |value: f32| Tensor::from_slice(&[value]).squeeze();
            let tracker = Tensor::zeros([], (Kind::Int, Device::Cpu));
            let mut theirs = Libtorch { scale: scalar(init as f32), tracker, settings };
            for finite in steps {
                ours.update(finite);
                theirs.update(finite);
                prop_assert_eq!(f64::from(ours.scale()), theirs.scale.double_value(&[]));
                prop_assert_eq!(ours.finite_steps as i64, theirs.tracker.int64_value(&[]));
                prop_assert!(is_usable(&ours.state()));
                prop_assert!(ours.inverse().is_finite() && ours.inverse() > 0.0);
            }
        }

        /// Stopped anywhere and resumed, it goes on as if nothing had happened.
        #[test]
        fn a_restored_scaler_goes_on(steps in prop::collection::vec(any::<bool>(), 2..40), cut in 0usize..40) {
            let settings = settings(65536.0, 2.0, 0.5, 3);
            let mut whole = LossScaler::new(&settings);
            let mut resumed = LossScaler::new(&settings);
            for (index, &finite) in steps.iter().enumerate() {
                whole.update(finite);
                resumed.update(finite);
                if index == cut % steps.len() {
                    let text = serde_json::to_string(&resumed.state()).unwrap();
                    resumed = LossScaler::new(&settings);
                    resumed.restore(serde_json::from_str(&text).unwrap());
                }
                prop_assert_eq!(&whole, &resumed);
            }
        }
    }

    #[test]
    fn it_neither_overflows_nor_vanishes() {
        let mut scaler = LossScaler::new(&settings(1e30, 1e6, 1e-6, 1));
        (0..50).for_each(|_| scaler.update(true));
        assert!(scaler.scale().is_finite() && scaler.inverse() > 0.0);
        (0..50).for_each(|_| scaler.update(false));
        assert!(scaler.scale() > 0.0 && scaler.inverse().is_finite());
    }

    #[test]
    fn damaged_states_are_refused() {
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 0.1, 1e-40] {
            assert!(!is_usable(&LossScale { scale: Real(scale), finite_steps: 0 }), "{scale}");
        }
        assert!(is_usable(&LossScale { scale: Real(65536.0), finite_steps: u64::MAX }));
    }

    #[test]
    fn an_overflow_is_the_scales_fault_while_there_is_a_scale() {
        use NonFinite::{Skip, Stop};
        for policy in [Stop, Skip] {
            assert_eq!(verdict(true, None, policy, 99), Verdict::Update);
            assert_eq!(verdict(true, Some(1e-9), policy, 99), Verdict::Update);
            assert_eq!(verdict(false, Some(2.0), policy, 99), Verdict::Rescale);
        }
        for scale in [None, Some(1.0), Some(0.25)] {
            assert_eq!(verdict(false, scale, Stop, 0), Verdict::Stop);
            assert_eq!(verdict(false, scale, Skip, 8), Verdict::Skip);
            assert_eq!(verdict(false, scale, Skip, 9), Verdict::GiveUp);
        }
    }
}
