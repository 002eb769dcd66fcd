//! Learning rates.

use super::super::facts::{Context, File, StepFacts};
use super::super::finding::{Finding, Looked};
use super::super::history::History;
use super::close;

/// The learning rate is what the configuration's schedule gives for the step.
pub fn rate(context: &Context, _: Option<&StepFacts>, step: &StepFacts) -> Looked {
    let mut looked = Looked::default();
    let Some(line) = &step.metrics else { return looked };
    let found = line.learning_rate.0;
    let at = |message: String| Finding::new(File::Metrics.name(), Some(line.line), message).at(step.step);
    looked.holds(found >= 0.0 || found.is_nan(), || at(format!("the learning rate is {found}")));
    if let Some(schedule) = Schedule::of(context) {
        let expected = schedule.rate(step.step);
        // Libraries' cosines differ in the last bit.
        looked.holds(close(found, expected, 1e-12), || {
            let elsewhere =
                schedule.step_of(found).map_or(String::new(), |step| format!(", which is step {step}'s"));
            at(format!("the learning rate is {found}{elsewhere}; the schedule's is {expected}"))
        });
    }
    looked
}

/// The schedule as `docs/configuration.md` defines it.
struct Schedule<'a> {
    kind: &'a str,
    peak: f64,
    warmup: u64,
    steps: u64,
    floor: f64,
}

/// Steps of a schedule that are searched for a rate that is out of place.
const SEARCHED_MAX: u64 = 100_000;

impl<'a> Schedule<'a> {
    /// None unless the configuration has all of its keys: another trainer's may mean something else.
    fn of(context: &Context<'a>) -> Option<Self> {
        Some(Self {
            kind: context
                .text("schedule.kind")
                .filter(|kind| matches!(*kind, "cosine" | "linear" | "constant"))?,
            peak: context.number("optim.lr")?,
            warmup: context.count("schedule.warmup_steps")?,
            steps: context.count("schedule.steps")?,
            floor: context.number("schedule.final_fraction")?,
        })
    }

    fn rate(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        match self.kind {
            "constant" => self.peak,
            "linear" => self.peak * (self.floor + (1.0 - self.floor) * (1.0 - progress)),
            _ => {
                self.peak
                    * (self.floor
                        + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
            }
        }
    }

    /// The step that has this rate: a schedule that was not moved, or was moved twice, shows in it.
    fn step_of(&self, rate: f64) -> Option<u64> {
        (1..=self.steps.min(SEARCHED_MAX)).find(|&step| close(self.rate(step), rate, 1e-12))
    }
}

/// Steps after a resume that must repeat those from step 1 to be a schedule that began anew.
const REPEATED_MIN: usize = 3;

/// A resume goes on with the schedule: it does not begin it anew, and does not repeat the rate of the step before if
/// every step before had its own.
pub fn resume(context: &Context, history: &History) -> Looked {
    let mut looked = Looked::default();
    // What follows from the configuration is checked exactly by `rate`.
    let resumed = context.manifest.segments.iter().skip(1).filter(|_| Schedule::of(context).is_none());
    for segment in resumed {
        let steps = &history.steps;
        let split = steps.partition_point(|step| step.step <= segment.from_step);
        let (before, after) = steps.split_at(split);
        let known = before.len().min(after.len());
        if known < REPEATED_MIN {
            continue;
        }
        let rates =
            |from: &[super::super::Brief]| from.iter().map(|step| step.learning_rate).collect::<Vec<f64>>();
        let (start, end) = (rates(&before[..known]), rates(&after[..known]));
        let moves = start.windows(2).any(|two| two[0] != two[1]);
        let anew = moves && start == end;
        let stuck = before.last().zip(after.first()).is_some_and(|(last, first)| {
            let own = rates(before).windows(2).all(|two| two[0] != two[1]);
            own && last.learning_rate == first.learning_rate
        });
        let problem = match (anew, stuck) {
            (true, _) => Some("the schedule begins anew after the resume"),
            (_, true) => Some("the first step after the resume has the rate of the last one before it"),
            _ => None,
        };
        looked.fact(problem.map(|problem| {
            let first = &after[0];
            Finding::new(File::Metrics.name(), Some(first.line), problem).at(first.step)
        }));
    }
    looked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_of_each_schedule() {
        let schedule = |kind| Schedule { kind, peak: 1.0, warmup: 5, steps: 25, floor: 0.1 };
        for (kind, middle, last) in [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)] {
            let schedule = schedule(kind);
            let expected = [(1, 0.2), (5, 1.0), (15, middle), (25, last), (99, last)];
            for (step, rate) in expected {
                assert!(close(schedule.rate(step), rate, 1e-12), "{kind} {step}: {}", schedule.rate(step));
            }
        }
        assert_eq!(schedule("cosine").step_of(0.4), Some(2));
        assert_eq!(schedule("cosine").step_of(7.0), None);
        let none = Schedule { kind: "linear", peak: 1.0, warmup: 0, steps: 0, floor: 0.0 };
        assert!(none.rate(0).is_finite() && none.rate(1).is_finite());
    }
}
