//! Which checkpoints to delete: a pure decision.

use crate::config::schema::Checkpoint;

/// The steps whose checkpoints are to go, given all published ones in ascending order: all but the newest `keep`,
/// the milestones, and the initial state where it was asked for.
pub fn surplus(steps: &[u64], settings: &Checkpoint) -> Vec<u64> {
    let milestone = |step: &u64| match *step {
        0 => settings.at_start,
        step => settings.milestone_every > 0 && step.is_multiple_of(settings.milestone_every),
    };
    let ordinary: Vec<u64> = steps.iter().copied().filter(|step| !milestone(step)).collect();
    let surplus = ordinary.len().saturating_sub(settings.keep.max(1));
    ordinary[..surplus].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(keep: usize, milestone_every: u64, at_start: bool) -> Checkpoint {
        Checkpoint { every: 1, keep, milestone_every, at_start }
    }

    #[test]
    fn the_newest_and_the_milestones_stay() {
        assert_eq!(surplus(&[10, 20, 30, 40, 50], &settings(2, 20, false)), [10]);
        assert_eq!(surplus(&[10, 20, 30], &settings(2, 0, false)), [10]);
        assert_eq!(surplus(&[0, 10, 20], &settings(1, 0, true)), [10]);
    }

    #[test]
    fn the_last_one_is_never_deleted() {
        assert!(surplus(&[10], &settings(0, 0, false)).is_empty());
        assert!(surplus(&[], &settings(2, 0, false)).is_empty());
    }
}
