//! Dropout whose mask depends on what is dropped, never on who computes it.

use lockstep_record::Digest;
use tch::{TchError, Tensor};

use crate::mutate::{Mutation, active, since_resume};
use crate::random::Stream;

/// Keys of one micro-batch's dropout masks: (seed, step, micro-batch), to which each site in the model adds its
/// own number.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub probability: f64,
    pub seed: u64,
    /// Number of the update, from 1.
    pub step: u64,
    /// Index in the global batch.
    pub micro_batch: usize,
    /// Not part of any key; a planted bug uses it.
    pub rank: usize,
}

impl Dropout {
    /// Inverted dropout (Srivastava et al. 2014): zero with the probability, else scaled by 1/(1 − probability).
    /// `site` numbers the places in the model.
    pub fn apply(&self, site: u32, input: &Tensor) -> Result<Tensor, TchError> {
        let mut factors = vec![0f32; input.numel()];
        self.stream(site).fill_keep_mask(1.0 - self.probability, &mut factors);
        if active(Mutation::DropoutNotScaled) {
            factors.iter_mut().for_each(|factor| *factor = factor.ceil().min(1.0));
        }
        let factors = Tensor::f_from_slice(&factors)?.f_view(input.size().as_slice())?;
        input.f_mul(&factors.f_to_device(input.device())?)
    }

    /// The random numbers of one site's mask.
    fn stream(&self, site: u32) -> Stream {
        let (micro_batch, step) = self.planted_key();
        Stream::dropout(self.seed, site, micro_batch as u32, step as u32)
    }

    /// The first 128 random bits that the first site draws, for the record: micro-batches in which they are equal have equal
    /// masks. None without dropout.
    pub fn evidence(&self) -> Option<Digest> {
        let mut words = [0u32; 4];
        self.stream(0).fill_u32(&mut words);
        let bits = words.iter().fold(0u128, |bits, &word| bits << 32 | u128::from(word));
        (self.probability > 0.0).then_some(Digest(bits))
    }

    /// The micro-batch and the step, unless a bug is planted.
    fn planted_key(&self) -> (usize, u64) {
        let micro_batch = match () {
            () if active(Mutation::DropoutByRank) => self.rank,
            () if active(Mutation::DropoutSameMask) => 0,
            () => self.micro_batch,
        };
        let step = match since_resume(Mutation::DropoutRestarts) {
            Some(from) => self.step - from,
            None if active(Mutation::DropoutSameStep) => 1,
            None => self.step,
        };
        (micro_batch, step)
    }

    /// Whether this micro-batch skips a layer that is skipped with this probability (LayerDrop: Fan et al. 2019).
    pub fn skips_layer(&self, layer: usize, probability: f64) -> bool {
        let stream = Stream::layer_drop(self.seed, layer as u32, self.micro_batch as u32, self.step as u32);
        probability > 0.0 && stream.uniform_f64(0) < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(dropout: Dropout, site: u32) -> Vec<f32> {
        let ones = Tensor::ones([64, 32], (tch::Kind::Float, tch::Device::Cpu));
        Vec::try_from(dropout.apply(site, &ones).unwrap().view(-1)).unwrap()
    }

    #[test]
    fn each_key_has_its_mask_and_the_rank_is_none_of_them() {
        let base = Dropout { probability: 0.25, seed: 1, step: 2, micro_batch: 3, rank: 0 };
        let others =
            [Dropout { seed: 9, ..base }, Dropout { step: 9, ..base }, Dropout { micro_batch: 9, ..base }];
        assert!(others.iter().all(|&other| mask(other, 0) != mask(base, 0)));
        assert_ne!(mask(base, 1), mask(base, 0));
        assert_eq!(mask(Dropout { rank: 5, ..base }, 0), mask(base, 0));
    }

    #[test]
    fn the_evidence_follows_the_mask() {
        let base = Dropout { probability: 0.25, seed: 1, step: 2, micro_batch: 3, rank: 0 };
        let others = [
            Dropout { seed: 9, ..base },
            Dropout { step: 9, ..base },
            Dropout { micro_batch: 9, ..base },
            Dropout { rank: 9, ..base },
        ];
        for other in others {
            let same_mask = mask(other, 0) == mask(base, 0);
            assert_eq!(other.evidence() == base.evidence(), same_mask, "{other:?}");
        }
        assert_eq!(Dropout { probability: 0.0, ..base }.evidence(), None);
    }

    #[test]
    fn layers_are_skipped_at_their_rate_and_by_micro_batch() {
        let base = Dropout { probability: 0.0, seed: 1, step: 2, micro_batch: 3, rank: 0 };
        let skipped = |rank: usize| -> Vec<bool> {
            let key =
                |index: usize| Dropout { step: 1 + index as u64 / 8, micro_batch: index % 8, rank, ..base };
            (0..4000).map(|index| key(index).skips_layer(index % 3, 0.3)).collect()
        };
        let rate = skipped(0).iter().filter(|&&skipped| skipped).count() as f64 / 4000.0;
        assert!((rate - 0.3).abs() < 0.03, "{rate}");
        assert_eq!(skipped(5), skipped(0));
        assert!((0..1000).all(|layer| !base.skips_layer(layer, 0.0)));
    }

    #[test]
    fn it_zeroes_its_share_and_keeps_the_mean() {
        let values = mask(Dropout { probability: 0.25, seed: 1, step: 2, micro_batch: 3, rank: 0 }, 0);
        let zeros = values.iter().filter(|&&value| value == 0.0).count() as f64 / values.len() as f64;
        assert!((zeros - 0.25).abs() < 0.04, "{zeros}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.75).abs() < 1e-6));
    }
}
