//! The learning rate as a pure function of the step: nothing of it needs to be saved.

use crate::config::schema::{Schedule, ScheduleKind};
use crate::mutate::{Mutation, active, since_resume};

/// Learning rate of update `step`, from 1: a linear rise to `peak` over the warm-up, then the schedule's fall to
/// `final_fraction · peak` at the last step.
pub fn learning_rate(schedule: &Schedule, peak: f64, step: u64) -> f64 {
    if since_resume(Mutation::RateOverridden).is_some() {
        return peak;
    }
    let step = planted_step(step);
    if step <= schedule.warmup_steps {
        return peak * step as f64 / schedule.warmup_steps as f64;
    }
    let span = schedule.steps.saturating_sub(schedule.warmup_steps).max(1);
    let progress = ((step - schedule.warmup_steps) as f64 / span as f64).min(1.0);
    let floor = schedule.final_fraction;
    match schedule.kind {
        ScheduleKind::Constant => peak,
        ScheduleKind::Linear => peak * (floor + (1.0 - floor) * (1.0 - progress)),
        ScheduleKind::Cosine => {
            peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
        }
    }
}

/// The step itself, unless a bug is planted.
fn planted_step(step: u64) -> u64 {
    match () {
        () if active(Mutation::ScheduleNotStepped) => 1,
        () if active(Mutation::ScheduleTwice) => 2 * step,
        () if active(Mutation::WarmupOffByOne) => step - 1,
        () if since_resume(Mutation::ScheduleAheadOnResume).is_some() => step + 1,
        () => since_resume(Mutation::ScheduleRestarts).map_or(step, |from| step - from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, warmup_steps: 4, steps: 20, final_fraction: 0.1 }
    }

    #[test]
    fn it_rises_then_falls_to_the_floor() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let rate = |step| learning_rate(&schedule(kind), 2.0, step);
            assert_relative_eq!(rate(1), 0.5);
            assert_relative_eq!(rate(4), 2.0);
            assert_relative_eq!(rate(12), 2.0 * 0.55, epsilon = 1e-12);
            assert_relative_eq!(rate(20), 0.2, epsilon = 1e-12);
            assert!((4..20).all(|step| rate(step + 1) < rate(step)));
        }
    }

    #[test]
    fn constant_stays_at_the_peak_and_no_warm_up_starts_there() {
        assert_eq!(learning_rate(&schedule(ScheduleKind::Constant), 2.0, 17), 2.0);
        let abrupt = Schedule { warmup_steps: 0, ..schedule(ScheduleKind::Constant) };
        assert_eq!(learning_rate(&abrupt, 2.0, 1), 2.0);
    }
}
