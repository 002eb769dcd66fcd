//! Perturbed runs: values are moved at random by at most one unit in the last place, to see how far the run moves.
//!
//! A sum in another order is the exact sum of terms that are each off by a few rounding errors (Higham 2002, §4.2), so what a
//! library's all-reduce does to a step is imitated by moving what is added: each micro-batch's gradient. The reduced
//! gradient itself would not do: where the terms cancel, a unit of the last place of their sum is far less than what
//! another order changes. `all` moves the parameters too, as the rounding of other kernels would: a product with other
//! rounding is the exact product with weights that are off a little.
//!
//! Which way is a function of seed, tensor, element, micro-batch and step, never of the rank: a perturbed run has the same
//! bits on any number of ranks.

use lockstep_record::{Perturbation, Perturbed, Unit};
use tch::Tensor;

use crate::grad::flat;
use crate::launch::Failure;
use crate::random::Stream;
use crate::session::Session;
use crate::torch::TorchError;

/// In place of the micro-batch, for what belongs to none.
const NO_MICRO_BATCH: u32 = u32::MAX;

/// A copy of one micro-batch's gradient of the `parameter`-th of the model, with each element moved.
pub fn gradient(
    perturbation: &Perturbation,
    gradient: &Tensor,
    parameter: usize,
    micro_batch: usize,
    step: u64,
) -> Result<Tensor, TorchError> {
    let mut values = flat::values(gradient)?.into_owned();
    let stream = Stream::perturbation(perturbation.seed, parameter as u32, micro_batch as u32, step as u32);
    shift(&mut values, &stream, perturbation.unit);
    Ok(Tensor::f_from_slice(&values)?.f_to_device(gradient.device())?)
}

/// Moves the trained parameters after `step`, if they are to be moved: on all ranks alike.
pub fn parameters(session: &mut Session, step: u64) -> Result<(), Failure> {
    let Some(Perturbation { of: Perturbed::All, seed, unit }) = session.perturbation else { return Ok(()) };
    session.reducer.arrive_all()?;
    for parameter in session.layout.trained() {
        let slot = &session.layout.slots[parameter];
        let stream = Stream::perturbation(seed, parameter as u32, NO_MICRO_BATCH, step as u32);
        let bucket = &mut session.parameters.buffers_mut()[slot.bucket];
        bucket.edit(slot.range(), |values| shift(values, &stream, unit))?;
    }
    Ok(())
}

fn shift(values: &mut [f32], stream: &Stream, unit: Unit) {
    let mut words = vec![0; values.len()];
    stream.fill_u32(&mut words);
    for (value, word) in values.iter_mut().zip(words) {
        *value = shifted(*value, word, unit);
    }
}

/// A value moved by up to one unit in the last place, either way with the same probability. In fp32 that is by none half of
/// the time: the nearest number to a uniform draw from the two units around it. Zeros, infinities and NaN stay.
fn shifted(value: f32, word: u32, unit: Unit) -> f32 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let share = (f64::from(word) + 0.5) / f64::from(1u32 << 31) - 1.0;
    let moved = (f64::from(value) + share * last_place(value, unit)) as f32;
    if moved.is_finite() { moved } else { value }
}

/// The unit in the last place of a value that is not zero.
fn last_place(value: f32, unit: Unit) -> f64 {
    // Of a subnormal number the exponent is that of the smallest normal one.
    let exponent = ((value.to_bits() >> 23 & 0xff) as i32).max(1) - 127;
    f64::from(exponent - unit.fraction_bits()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn by_at_most_one_unit(bits: u32, word: u32) {
            let value = f32::from_bits(bits);
            for unit in [Unit::Fp32, Unit::Bf16, Unit::Fp16] {
                let moved = shifted(value, word, unit);
                if !value.is_finite() || value == 0.0 {
                    prop_assert_eq!(moved.to_bits(), value.to_bits());
                } else {
                    let distance = (f64::from(moved) - f64::from(value)).abs();
                    prop_assert!(distance <= last_place(value, unit), "{value} {moved}");
                }
            }
        }

        #[test]
        fn a_unit_is_the_distance_to_the_next_number(value in 1e-37f32..1e37) {
            prop_assert_eq!(last_place(value, Unit::Fp32), f64::from(value.next_up()) - f64::from(value));
            prop_assert_eq!(last_place(-value, Unit::Bf16), 65536.0 * last_place(value, Unit::Fp32));
        }
    }

    /// The variance that docs/tolerance.md reckons with.
    #[test]
    fn half_of_the_values_stay_and_neither_way_is_favoured() {
        let mut values = vec![1.5f32; 100_000];
        shift(&mut values, &Stream::perturbation(7, 1, 2, 3), Unit::Fp32);
        let count = |wanted: f32| values.iter().filter(|&&value| value == wanted).count() as f64 / 1e5;
        let (below, same, above) = (count(1.5f32.next_down()), count(1.5), count(1.5f32.next_up()));
        assert!((same - 0.5).abs() < 0.01, "{same}");
        assert!((below - 0.25).abs() < 0.01 && (above - 0.25).abs() < 0.01, "{below} {above}");
    }

    #[test]
    fn seed_tensor_micro_batch_and_step_each_matter() {
        let moved = |stream: Stream| {
            let mut values = vec![0.7f32; 100];
            shift(&mut values, &stream, Unit::Fp32);
            values
        };
        let first = moved(Stream::perturbation(1, 2, 3, 4));
        assert_eq!(first, moved(Stream::perturbation(1, 2, 3, 4)));
        for other in [(9, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9)] {
            assert_ne!(first, moved(Stream::perturbation(other.0, other.1, other.2, other.3)), "{other:?}");
        }
    }
}
