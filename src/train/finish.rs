//! When a run saves, and when it ends.

use lockstep_record::{Outcome, RunDir};

use crate::checkpoint;
use crate::config::Config;
use crate::launch::Failure;
use crate::session::Session;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub step: u64,
    pub outcome: Outcome,
}

/// Whether and how the run ends after this step. The schedule's end wins over a signal: there is nothing left to
/// preempt.
pub fn ending(config: &Config, step: u64, last: u64, stop_requested: bool) -> Option<Outcome> {
    match () {
        () if step == config.schedule.steps => Some(Outcome::Finished),
        () if stop_requested => Some(Outcome::Preempted),
        () if step == last => Some(Outcome::Stopped),
        () => None,
    }
}

/// Whether the interval asks for a checkpoint after this step.
pub fn checkpoint_due(config: &Config, step: u64) -> bool {
    let settings = &config.checkpoint;
    let multiple = |every: u64| every > 0 && step.is_multiple_of(every);
    multiple(settings.every) || multiple(settings.milestone_every)
}

/// Saves the state after `step`; all ranks call it.
pub fn save_checkpoint(session: &mut Session, run: &RunDir, step: u64) -> Result<(), Failure> {
    let state = session.state(step);
    let (comm, settings) = (session.comm, &session.config.checkpoint);
    session.reducer.arrive_all()?;
    let shards = session.ownership.shards().to_vec();
    checkpoint::save(comm, run, &session.tensors(), &shards, &state, settings)?;
    tracing::info!(step, "checkpoint saved");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_schedule_wins() {
        let config = crate::config::load(&[], &["schedule.steps=20".into()], &|_| None).unwrap().config;
        assert_eq!(ending(&config, 20, 20, true), Some(Outcome::Finished));
        assert_eq!(ending(&config, 7, 20, true), Some(Outcome::Preempted));
        assert_eq!(ending(&config, 7, 7, false), Some(Outcome::Stopped));
        assert_eq!(ending(&config, 7, 20, false), None);
    }

    #[test]
    fn milestones_are_saved_even_off_the_interval() {
        let sets = ["checkpoint.every=4".into(), "checkpoint.milestone_every=6".into()];
        let config = crate::config::load(&[], &sets, &|_| None).unwrap().config;
        let due: Vec<u64> = (1..13).filter(|&step| checkpoint_due(&config, step)).collect();
        assert_eq!(due, [4, 6, 8, 12]);
    }
}
