//! Sums over steps and ranks, and the means that are shown.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::window::{PHASES, StepTimes};
use crate::median;

/// What `lockstep-harness trace` found.
#[derive(Clone, Debug, Serialize)]
pub struct TraceReport {
    /// All ranks' events in one file.
    pub merged: PathBuf,
    /// The steps that were asked for; a rank's figures are of those that are whole in its trace.
    pub selected: String,
    /// Over all steps of all ranks.
    pub overall: Figures,
    pub ranks: Vec<RankFigures>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RankFigures {
    pub rank: usize,
    /// `rank 0 on node1`, if the trace names it.
    pub label: String,
    pub step_median_us: f64,
    pub mean: Figures,
}

/// Means a step, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Steps of one rank each.
    pub steps: u64,
    /// From the training thread's first span of a step to the end of its last.
    pub step_us: f64,
    /// Of the training thread, by category.
    pub phases_us: BTreeMap<&'static str, f64>,
    /// The rest of `step_us`.
    pub other_us: f64,
    /// Time during which at least one collective was under way.
    pub communication_us: f64,
    /// The part of it during which the training thread waited for communication.
    pub exposed_us: f64,
    /// What it waited for ranks that had not come to a collective yet.
    pub late_us: f64,
    /// 1 − exposed ÷ communication; absent without communication.
    pub hidden: Option<f64>,
    pub buckets: Vec<BucketFigures>,
}

/// Means a step, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BucketFigures {
    pub bucket: u32,
    pub communication_us: f64,
    pub exposed_us: f64,
}

impl Figures {
    /// The bucket that the training thread waits for longest.
    pub fn most_exposed(&self) -> Option<&BucketFigures> {
        let exposed = self.buckets.iter().filter(|bucket| bucket.exposed_us > 0.0);
        exposed.max_by(|a, b| a.exposed_us.total_cmp(&b.exposed_us))
    }
}

/// Sums in microseconds; a few numbers a bucket, and one a step for the median.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    steps_us: Vec<f64>,
    steps: u64,
    total_us: f64,
    phases_us: [f64; PHASES.len()],
    communication_us: f64,
    exposed_us: f64,
    late_us: f64,
    buckets_us: BTreeMap<u32, (f64, f64)>,
}

impl Sums {
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn add(&mut self, times: &StepTimes) {
        self.steps_us.push(times.step_us);
        self.steps += 1;
        self.total_us += times.step_us;
        let StepTimes { communication_us, exposed_us, late_us, .. } = *times;
        self.add_parts(&times.phases_us, [communication_us, exposed_us, late_us], &times.buckets_us);
    }

    /// Adds another rank's sums, without its single steps.
    pub fn join(&mut self, other: &Sums) {
        self.steps += other.steps;
        self.total_us += other.total_us;
        let Sums { communication_us, exposed_us, late_us, .. } = *other;
        self.add_parts(&other.phases_us, [communication_us, exposed_us, late_us], &other.buckets_us);
    }

    fn add_parts(
        &mut self,
        phases_us: &[f64],
        [communication_us, exposed_us, late_us]: [f64; 3],
        buckets_us: &BTreeMap<u32, (f64, f64)>,
    ) {
        self.phases_us.iter_mut().zip(phases_us).for_each(|(sum, phase)| *sum += phase);
        self.communication_us += communication_us;
        self.exposed_us += exposed_us;
        self.late_us += late_us;
        for (&bucket, (communication, exposed)) in buckets_us {
            let sums = self.buckets_us.entry(bucket).or_default();
            sums.0 += communication;
            sums.1 += exposed;
        }
    }

    pub fn figures(&self) -> Figures {
        let mean = |sum: f64| if self.steps == 0 { 0.0 } else { sum / self.steps as f64 };
        let named: f64 = self.phases_us.iter().sum();
        let bucket = |(&bucket, &(communication, exposed)): (&u32, &(f64, f64))| BucketFigures {
            bucket,
            communication_us: mean(communication),
            exposed_us: mean(exposed),
        };
        Figures {
            steps: self.steps,
            step_us: mean(self.total_us),
            phases_us: PHASES
                .iter()
                .zip(self.phases_us)
                .map(|(phase, sum)| (phase.name(), mean(sum)))
                .collect(),
            other_us: mean((self.total_us - named).max(0.0)),
            communication_us: mean(self.communication_us),
            exposed_us: mean(self.exposed_us),
            late_us: mean(self.late_us),
            hidden: (self.communication_us > 0.0).then(|| 1.0 - self.exposed_us / self.communication_us),
            buckets: self.buckets_us.iter().map(bucket).collect(),
        }
    }

    pub fn of_rank(self, rank: usize, label: String) -> RankFigures {
        let step_median_us = median(&self.steps_us).unwrap_or(0.0);
        RankFigures { rank, label, step_median_us, mean: self.figures() }
    }
}

/// Of each step, the rank that waited least: the slowest, for which the others wait however fast the link is.
#[derive(Default)]
pub struct Slowest(BTreeMap<u64, Waited>);

struct Waited {
    waited_us: f64,
    communication_us: f64,
    exposed_us: f64,
}

impl Slowest {
    pub fn add(&mut self, times: &StepTimes) {
        let StepTimes { communication_us, exposed_us, late_us, .. } = *times;
        let waited = Waited { waited_us: exposed_us + late_us, communication_us, exposed_us };
        if self.0.get(&times.step).is_none_or(|least| waited.waited_us < least.waited_us) {
            self.0.insert(times.step, waited);
        }
    }

    /// Exposed ÷ all communication of these ranks; none without communication.
    pub fn exposed_share(&self) -> Option<f64> {
        let sum = |of: fn(&Waited) -> f64| self.0.values().map(of).sum::<f64>();
        let communication_us = sum(|waited| waited.communication_us);
        (communication_us > 0.0).then(|| sum(|waited| waited.exposed_us) / communication_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_waits_least_decides_a_steps_share() {
        let times = |step, exposed_us, late_us| StepTimes {
            step,
            step_us: 100.0,
            phases_us: [0.0; PHASES.len()],
            communication_us: 50.0,
            exposed_us,
            late_us,
            buckets_us: BTreeMap::new(),
        };
        let mut slowest = Slowest::default();
        assert_eq!(slowest.exposed_share(), None);
        // First one rank is behind, then the other.
        for times in [times(1, 20.0, 30.0), times(2, 5.0, 0.0), times(1, 10.0, 0.0), times(2, 4.0, 40.0)] {
            slowest.add(&times);
        }
        assert_eq!(slowest.exposed_share(), Some(0.15));
    }

    #[test]
    fn ranks_weigh_by_their_steps() {
        let times = |step_us, communication_us, exposed_us| StepTimes {
            step: 1,
            step_us,
            phases_us: [0.0, step_us / 2.0, 0.0, 0.0, 0.0, 0.0],
            communication_us,
            exposed_us,
            late_us: 0.0,
            buckets_us: BTreeMap::from([(0, (communication_us, exposed_us))]),
        };
        let (mut one, mut two, mut all) = (Sums::default(), Sums::default(), Sums::default());
        one.add(&times(10.0, 4.0, 2.0));
        two.add(&times(20.0, 4.0, 0.0));
        two.add(&times(30.0, 0.0, 0.0));
        all.join(&one);
        all.join(&two);
        let all = all.figures();
        assert_eq!((all.steps, all.step_us, all.other_us, all.hidden), (3, 20.0, 10.0, Some(0.75)));
        assert_eq!(all.most_exposed().map(|bucket| bucket.bucket), Some(0));
        assert_eq!(Sums::default().figures().hidden, None);
    }
}
