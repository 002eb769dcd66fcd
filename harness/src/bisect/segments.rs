//! Which execution of a run made which step, when the run was stopped and resumed. Pure.

use lockstep_record::Segment;

/// The steps that one execution made and that still count: `from + 1 ..= to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Index of its segment.
    pub segment: usize,
    /// The state that it started from.
    pub from: u64,
    /// The last step that no later execution did again; the largest number if none came after it.
    pub to: u64,
}

/// The executions whose steps count, in order. One that resumed from an earlier checkpoint did the steps after it again.
pub fn executions(segments: &[Segment]) -> Vec<Execution> {
    let mut all = Vec::new();
    let mut to = u64::MAX;
    for (index, segment) in segments.iter().enumerate().rev() {
        if segment.from_step < to {
            all.push(Execution { segment: index, from: segment.from_step, to });
            to = segment.from_step;
        }
    }
    all.reverse();
    all
}

/// The execution that made a step; the first one for the initial state.
pub fn execution_of(segments: &[Segment], step: u64) -> Option<Execution> {
    let all = executions(segments);
    all.iter().find(|execution| execution.from < step && step <= execution.to).or(all.first()).copied()
}

/// Whether the step was the first one after a resume.
pub fn resumed_before(segments: &[Segment], step: u64) -> bool {
    step > 1 && executions(segments).iter().any(|execution| execution.from + 1 == step)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub fn segment(from_step: u64, world_size: u32) -> Segment {
        Segment {
            from_step,
            started_unix_s: 1,
            world_size,
            strategy: "ddp".into(),
            reduction: "ordered".into(),
            compression: None,
            mutation: None,
            perturbation: None,
            backend: "mpi".into(),
            nccl: None,
            buckets: None,
            threads_per_rank: 1,
            cpu_capability: "AVX2".into(),
            versions: BTreeMap::new(),
            container_digest: None,
            ranks: Vec::new(),
            ended: None,
        }
    }

    proptest! {
        /// Each step after the first start has one execution: the last one that made it.
        #[test]
        fn every_step_has_the_last_execution_that_made_it(starts in prop::collection::vec(0u64..12, 1..6), step in 1u64..15) {
            let segments: Vec<_> = starts.iter().map(|&from| segment(from, 1)).collect();
            let all = executions(&segments);
            prop_assert!(all.windows(2).all(|two| two[0].to == two[1].from && two[0].segment < two[1].segment));
            prop_assert_eq!(all.last().map(|last| last.to), Some(u64::MAX));
            let expected = starts.iter().rposition(|&from| from < step);
            if let Some(expected) = expected {
                prop_assert_eq!(execution_of(&segments, step).map(|execution| execution.segment), Some(expected));
            }
        }
    }

    #[test]
    fn the_first_step_after_a_resume_is_known() {
        let segments = [segment(0, 2), segment(3, 1)];
        let resumed: Vec<u64> = (0..6).filter(|&step| resumed_before(&segments, step)).collect();
        assert_eq!(resumed, [4]);
    }
}
