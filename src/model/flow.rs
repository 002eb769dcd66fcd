//! Flow matching: actions as the end of a flow that begins with noise.
//!
//! Between noise ε and actions a lies the straight line x_t = (1 − t)·ε + t·a, so t = 0 is noise and t = 1 the actions: the
//! conditional path of Lipman et al. 2023 ("Flow Matching for Generative Modeling", section 4.1) with σ_min = 0, which is the
//! rectified flow of Liu et al. 2023; π0 (Black et al. 2024) learns actions so. A model that predicts the line's velocity
//! a − ε at x_t learns the mean velocity of all lines through x_t; following it from noise leads to a sample of the actions.

use tch::{TchError, Tensor};

use super::ActionChunks;

impl ActionChunks {
    /// x_t: what the model is shown.
    pub fn at_their_times(&self) -> Result<Tensor, TchError> {
        let times = self.times.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
        self.noise.f_add(&self.velocity()?.f_mul(&times)?)
    }

    /// a − ε: what it is to predict.
    pub fn velocity(&self) -> Result<Tensor, TchError> {
        self.actions.f_sub(&self.noise)
    }

    /// Squared error of a predicted velocity, summed over the elements that count.
    pub fn squared_error(&self, predicted: &Tensor) -> Result<Tensor, TchError> {
        let error = predicted.f_sub(&self.velocity()?)?.f_mul(&self.counted)?;
        error.f_square()?.f_sum(tch::Kind::Float)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One sample of one turn, with a single joint.
    fn chunks(actions: &[f32], noise: &[f32], counted: &[f32], time: f32) -> ActionChunks {
        let tensor = |values: &[f32]| Tensor::from_slice(values).view([1, 1, values.len() as i64, 1]);
        ActionChunks {
            actions: tensor(actions),
            counted: tensor(counted),
            noise: tensor(noise),
            times: Tensor::from_slice(&[time]).view([1, 1]),
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.view(-1)).unwrap()
    }

    proptest! {
        /// Whoever follows the velocity from anywhere on the line comes to the actions at time 1, and to the noise at 0.
        #[test]
        fn the_velocity_leads_from_noise_to_actions(action in -2f32..2.0, noise in -4f32..4.0, time in 0f32..1.0) {
            let chunks = chunks(&[action], &[noise], &[1.0], time);
            let (x, velocity) = (values(&chunks.at_their_times().unwrap())[0], values(&chunks.velocity().unwrap())[0]);
            prop_assert!((x + (1.0 - time) * velocity - action).abs() < 1e-5);
            prop_assert!((x - time * velocity - noise).abs() < 1e-5);
        }

        #[test]
        fn only_what_counts_is_summed(
            elements in prop::collection::vec((-1f32..1.0, -1f32..1.0, -1f32..1.0, any::<bool>()), 1..9),
        ) {
            let column = |part: fn(&(f32, f32, f32, bool)) -> f32| elements.iter().map(part).collect::<Vec<f32>>();
            let counted = column(|element| f32::from(u8::from(element.3)));
            let chunks = chunks(&column(|element| element.0), &column(|element| element.1), &counted, 0.5);
            let predicted = Tensor::from_slice(&column(|element| element.2)).view([1, 1, elements.len() as i64, 1]);
            let error = |&(action, noise, predicted, counts): &(f32, f32, f32, bool)| {
                if counts { f64::from(predicted - (action - noise)).powi(2) } else { 0.0 }
            };
            let expected: f64 = elements.iter().map(error).sum();
            let found = chunks.squared_error(&predicted).unwrap().double_value(&[]);
            prop_assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
        }
    }
}
