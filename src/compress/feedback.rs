//! Rounding to 16 bits, with what it leaves out kept for the next time.

use crate::mutate::{Mutation, active};
use crate::precision::Format;

/// Elements that are worked on together: they stay in the processor's cache.
const STRETCH: usize = 1024;

impl Format {
    /// Rounds `values + residuals`, and leaves in `residuals` what rounding took away.
    ///
    /// # Panics
    /// If the slices are not of one length.
    pub fn round_with_feedback(self, values: &[f32], residuals: &mut [f32], rounded: &mut [u16]) {
        assert!(values.len() == residuals.len() && values.len() == rounded.len());
        let (mut wanted, mut sent) = ([0f32; STRETCH], [0f32; STRETCH]);
        let stretches =
            values.chunks(STRETCH).zip(residuals.chunks_mut(STRETCH)).zip(rounded.chunks_mut(STRETCH));
        for ((values, residuals), rounded) in stretches {
            let (wanted, sent) = (&mut wanted[..values.len()], &mut sent[..values.len()]);
            for ((wanted, value), residual) in wanted.iter_mut().zip(values).zip(&*residuals) {
                *wanted = if active(Mutation::FeedbackSign) { value - residual } else { value + residual };
            }
            self.round(wanted, rounded);
            self.widen(rounded, sent);
            for ((residual, wanted), sent) in residuals.iter_mut().zip(wanted).zip(sent) {
                *residual = left_out(*wanted, *sent);
            }
        }
    }
}

/// Exact, since both lie within half a step of the coarser format. A number that is not finite leaves nothing: it ends the
/// step, and must not reach the next one.
fn left_out(wanted: f32, sent: f32) -> f32 {
    if sent.is_finite() && !active(Mutation::ForgetResiduals) { wanted - sent } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [Format; 2] = [Format::Bf16, Format::Fp16];

    #[test]
    fn what_overflows_is_infinite_and_leaves_no_residual() {
        let (mut residuals, mut rounded) = ([0.0; 3], [0; 3]);
        Format::Fp16.round_with_feedback(&[1e5, -1e5, f32::NAN], &mut residuals, &mut rounded);
        let mut sent = [0.0; 3];
        Format::Fp16.widen(&rounded, &mut sent);
        assert_eq!(sent[..2], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(sent[2].is_nan());
        assert_eq!(residuals, [0.0; 3]);
    }

    /// Multiples of 2^-12 below 64: neither their sums nor what rounding leaves of them is rounded in fp32.
    fn grid() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec((-65_536..65_536i32).prop_map(|value| value as f32 / 4096.0), 5..3000)
    }

    /// Sums over `steps` repetitions of what was sent, and the last residuals.
    fn send(format: Format, values: &[f32], steps: usize, feedback: bool) -> (Vec<f64>, Vec<f32>) {
        let (mut residuals, mut rounded) = (vec![0.0; values.len()], vec![0; values.len()]);
        let (mut sent, mut sums) = (vec![0.0; values.len()], vec![0.0; values.len()]);
        for _ in 0..steps {
            format.round_with_feedback(values, &mut residuals, &mut rounded);
            format.widen(&rounded, &mut sent);
            sums.iter_mut().zip(&sent).for_each(|(sum, &sent)| *sum += f64::from(sent));
            if !feedback {
                residuals.fill(0.0);
            }
        }
        (sums, residuals)
    }

    proptest! {
        #[test]
        fn what_was_sent_is_what_was_wanted_but_for_the_last_residual(values in grid(), steps in 1..6usize) {
            for format in FORMATS {
                let (sums, residuals) = send(format, &values, steps, true);
                for ((sum, residual), value) in sums.iter().zip(residuals).zip(&values) {
                    prop_assert_eq!(sum + f64::from(residual), steps as f64 * f64::from(*value));
                }
            }
        }
    }

    /// The negative control: without the residual the error grows with every step.
    #[test]
    fn without_feedback_errors_pile_up() {
        let values = [1.001, 0.3, -7.77];
        let worst = |feedback| {
            let (sums, _) = send(Format::Bf16, &values, 100, feedback);
            let errors = sums.iter().zip(values).map(|(sum, value)| (sum - 100.0 * f64::from(value)).abs());
            errors.fold(0.0, f64::max)
        };
        assert!(worst(true) < 0.02, "{}", worst(true));
        assert!(worst(false) > 0.1, "{}", worst(false));
    }
}
