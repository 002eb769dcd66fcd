//! What flow matching draws at random when a sample is visited: the noise that its flows begin with, and the times at which
//! they are looked at.
//!
//! As with augmentation, a visit is named by epoch and sample id, which follow from the step: so no two visits are alike,
//! whoever makes them, in however large a batch, and after any restart.

use crate::random::Stream;

/// In place of the epoch, for samples that always look the same: an evaluation's.
const NO_EPOCH: u32 = u32::MAX;

/// The random numbers of one visit.
#[derive(Clone, Copy)]
pub struct Visit {
    seed: u64,
    id: u32,
    epoch: u32,
}

impl Visit {
    /// `epoch` is None for data that are to look the same every time.
    pub fn new(seed: u64, id: u64, epoch: Option<u64>) -> Self {
        // Samplers have ids below 2^32, and no training has as many epochs.
        Self { seed, id: id as u32, epoch: epoch.map_or(NO_EPOCH, |epoch| epoch as u32) }
    }

    /// Standard normal numbers.
    pub fn noise(&self, out: &mut [f32]) {
        Stream::flow_noise(self.seed, self.id, self.epoch).fill_normal(0.0, 1.0, out);
    }

    /// One uniform number in `[0, 1)` a chunk.
    pub fn times(&self, out: &mut [f32]) {
        let stream = Stream::flow_times(self.seed, self.id, self.epoch);
        let mut words = vec![0; out.len()];
        stream.fill_u32(&mut words);
        for (time, word) in out.iter_mut().zip(words) {
            // As many bits as fp32 holds: rounding never makes it 1.
            *time = (word >> 8) as f32 / (1 << 24) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(visit: Visit) -> (Vec<f32>, Vec<f32>) {
        let (mut noise, mut times) = (vec![0.0; 4096], vec![0.0; 4096]);
        visit.noise(&mut noise);
        visit.times(&mut times);
        (noise, times)
    }

    #[test]
    fn each_visit_has_its_own_numbers() {
        let first = drawn(Visit::new(1, 2, Some(3)));
        assert_eq!(first, drawn(Visit::new(1, 2, Some(3))));
        for other in [Visit::new(9, 2, Some(3)), Visit::new(1, 9, Some(3)), Visit::new(1, 2, Some(9))] {
            let other = drawn(other);
            assert!(other.0 != first.0 && other.1 != first.1);
        }
        assert_eq!(drawn(Visit::new(1, 2, None)), drawn(Visit::new(1, 2, None)));
        assert_ne!(drawn(Visit::new(1, 2, None)), first);
    }

    #[test]
    fn noise_is_normal_and_times_are_uniform() {
        let (noise, times) = drawn(Visit::new(5, 6, Some(7)));
        let moments = |values: &[f32]| {
            let mean = |power: i32| {
                values.iter().map(|&value| f64::from(value).powi(power)).sum::<f64>() / values.len() as f64
            };
            (mean(1), mean(2) - mean(1).powi(2))
        };
        let (mean, variance) = moments(&noise);
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.07, "{mean} {variance}");
        let (mean, variance) = moments(&times);
        assert!((mean - 0.5).abs() < 0.02 && (variance - 1.0 / 12.0).abs() < 0.005, "{mean} {variance}");
        assert!(times.iter().all(|time| (0.0..1.0).contains(time)));
    }
}
