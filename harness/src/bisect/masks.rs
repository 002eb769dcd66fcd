//! Whether the dropout masks explain losses that differ. Pure.

use lockstep_record::Digest;
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Phase};
use super::part::{Pair, owner};

/// Sample ids that a sentence lists.
const LISTED_MAX: usize = 4;

/// Dropout masks that are not the golden run's, of the micro-batch that a finding names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasksApart {
    /// What the micro-batch was made of.
    pub samples: Vec<u64>,
    /// Of the step's first sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Who drew the candidate's masks, in a world of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// What the masks follow from: see `masks` in docs/run-record.md.
    pub golden: Digest,
    pub candidate: Digest,
    /// Micro-batches of the step whose masks differ, this one included.
    pub count: u64,
}

/// The masks of the micro-batch whose loss is found to differ, if they differ, too. Of runs of one program only: another may
/// leave another kind of evidence.
pub fn apart(pair: Pair, finding: &Finding) -> Option<MasksApart> {
    let index = usize::try_from(finding.micro_batch.filter(|_| finding.phase == Phase::Forward)?).ok()?;
    let (golden, candidate) = (pair.golden.samples.as_ref()?, pair.candidate.samples.as_ref()?);
    let (left, right) = (*golden.masks.get(index)?, *candidate.masks.get(index)?);
    let different = golden.masks.iter().zip(&candidate.masks).filter(|(left, right)| left != right);
    (left != right).then(|| MasksApart {
        samples: candidate.micro_batches.get(index).cloned().unwrap_or_default(),
        epoch: pair.candidate.metrics.as_ref().map(|line| line.epoch),
        rank: owner(index, candidate.masks.len(), pair.world),
        golden: left,
        candidate: right,
        count: different.count() as u64,
    })
}

impl std::fmt::Display for MasksApart {
    /// A clause of a finding's sentence.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "the dropout mask of {}", ids(&self.samples))?;
        if let Some(epoch) = self.epoch {
            write!(formatter, " (epoch {epoch})")?;
        }
        formatter.write_str(" differs")?;
        if let Some(rank) = self.rank {
            write!(formatter, " on rank {rank}")?;
        }
        write!(formatter, " (golden {}, candidate {})", self.golden, self.candidate)?;
        match self.count.saturating_sub(1) {
            0 => Ok(()),
            1 => formatter.write_str(", and so does that of one more micro-batch"),
            others => write!(formatter, ", and so do those of {others} more micro-batches"),
        }
    }
}

/// `sample 7`, `samples 12 and 141`, `samples 1, 2, 3, 4 and 28 more`.
fn ids(samples: &[u64]) -> String {
    let shown: Vec<String> = samples.iter().take(LISTED_MAX).map(u64::to_string).collect();
    let more = samples.len() - shown.len();
    match &shown[..] {
        [] => "its samples".into(),
        [one] => format!("sample {one}"),
        _ if more > 0 => format!("samples {} and {more} more", shown.join(", ")),
        [first @ .., last] => format!("samples {} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::steps::StepRecord;
    use super::*;
    use lockstep_record::SampleLine;
    use proptest::prelude::*;

    fn record(masks: &[u128]) -> StepRecord {
        let micro_batches = (0..masks.len() as u64).map(|index| vec![2 * index, 2 * index + 1]).collect();
        let masks = masks.iter().copied().map(Digest).collect();
        let samples = SampleLine { step: 3, micro_batches, masks };
        StepRecord { step: 3, samples: Some(samples), ..StepRecord::default() }
    }

    fn of(golden: &[u128], candidate: &[u128], phase: Phase, micro_batch: Option<u32>) -> Option<MasksApart> {
        let (golden, candidate) = (record(golden), record(candidate));
        let finding = Finding { micro_batch, ..Finding::new(Some(3), phase) };
        apart(Pair { golden: &golden, candidate: &candidate, world: Some(2) }, &finding)
    }

    #[test]
    fn the_mask_is_named_by_samples_and_rank() {
        let found = of(&[1, 2, 3, 4], &[1, 2, 8, 9], Phase::Forward, Some(2)).unwrap();
        assert_eq!((found.rank, found.count, found.samples.as_slice()), (Some(1), 2, &[4, 5][..]));
        let text = found.to_string();
        assert!(
            text.starts_with("the dropout mask of samples 4 and 5 differs on rank 1 (golden 0"),
            "{text}"
        );
        assert!(text.ends_with("), and so does that of one more micro-batch"), "{text}");
        let alone = MasksApart { epoch: Some(6), rank: None, count: 1, samples: vec![7], ..found };
        assert!(alone.to_string().starts_with("the dropout mask of sample 7 (epoch 6) differs (golden 0"));
        assert_eq!(ids(&[1, 2, 3, 4, 5, 6]), "samples 1, 2, 3, 4 and 2 more");
    }

    /// The controls: what is no reason for the difference is not given as one.
    #[test]
    fn masks_that_agree_or_are_not_known_explain_nothing() {
        assert_eq!(of(&[1, 2], &[1, 9], Phase::Forward, Some(0)), None, "another micro-batch's");
        assert_eq!(of(&[1, 2], &[1, 9], Phase::LocalGradient, Some(1)), None, "the losses agree");
        assert_eq!(of(&[1, 2], &[1, 9], Phase::Forward, None), None, "no micro-batch");
        assert_eq!(of(&[1, 2], &[], Phase::Forward, Some(1)), None, "not recorded");
    }

    proptest! {
        #[test]
        fn whatever_was_recorded_the_verdict_is_of_the_named_micro_batch(
            golden in prop::collection::vec(0u128..3, 0..6), candidate in prop::collection::vec(0u128..3, 0..6), index in 0u32..8,
        ) {
            let (left, right) = (golden.get(index as usize), candidate.get(index as usize));
            let expected = left.is_some() && right.is_some() && left != right;
            prop_assert_eq!(of(&golden, &candidate, Phase::Forward, Some(index)).is_some(), expected);
        }
    }
}
