//! What one run gives: numbers from its record and from its launch, and whether two runs did the same work.

use lockstep_record::{Manifest, RecordError, RunDir, StepLine, read_lines};
use serde::{Deserialize, Serialize};

use crate::compare::{Verdict, compare_manifests};
use crate::median;

/// Losses of the first step agree this closely if both runs began with the same weights and samples:
/// gradients have not been added yet, so only rounding in the forward pass can part them.
const FIRST_LOSS_RTOL: f64 = 1e-4;

/// What is compared. Each run gives one number, and a pair gives ours ÷ theirs; [`Metric::ExposedShare`] is a
/// quotient already, and a pair gives ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Tokens of a step ÷ the median seconds of the measured steps; in turns, ÷ their mean.
    TokensPerSecond,
    /// From the launch to the first line of `metrics.jsonl`.
    StartupSeconds,
    /// The largest resident set of any rank.
    ResidentBytes,
    /// Communication that the training waits for ÷ all communication, over the measured steps, from the ranks' traces: of each
    /// step on the rank that is behind, since the others wait for it and not for the link.
    ExposedShare,
    /// Optimizer state and master parameters of the rank that holds most.
    StateBytes,
}

impl Metric {
    /// As plans and tables spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokensPerSecond => "tokens_per_second",
            Self::StartupSeconds => "startup_seconds",
            Self::ResidentBytes => "resident_bytes",
            Self::ExposedShare => "exposed_share",
            Self::StateBytes => "state_bytes",
        }
    }

    /// Whether it depends on who else uses the cores.
    pub fn is_timed(self) -> bool {
        !matches!(self, Self::ResidentBytes | Self::StateBytes)
    }

    /// One run's number with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::TokensPerSecond => format!("{value:.0} tokens/s"),
            Self::StartupSeconds => format!("{value:.2} s"),
            Self::ExposedShare => format!("{:.1} %", 100.0 * value),
            Self::ResidentBytes | Self::StateBytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub tokens_per_second: f64,
    pub startup_seconds: f64,
    pub resident_bytes: f64,
    /// See [`Metric::ExposedShare`]; None without traces, or without communication.
    pub exposed_share: Option<f64>,
    /// 0 if the record does not say.
    pub state_bytes: f64,
    /// Of each measured step, in order.
    pub step_seconds: Vec<f64>,
    /// Wall-clock time of the whole launch, with that of the other if they took turns.
    pub seconds: f64,
    /// CPU time that everything else on the machine took meanwhile, as a share of all cores.
    pub others_share: f64,
}

impl Measured {
    /// None if its record does not say.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        let value = match metric {
            Metric::TokensPerSecond => self.tokens_per_second,
            Metric::StartupSeconds => self.startup_seconds,
            Metric::ResidentBytes => self.resident_bytes,
            Metric::ExposedShare => return self.exposed_share,
            Metric::StateBytes => self.state_bytes,
        };
        (value > 0.0).then_some(value)
    }
}

/// What a pair gives; None if a run has no such number.
pub fn figure(ours: &Measured, theirs: &Measured, metric: Metric) -> Option<f64> {
    let ours = ours.value(metric)?;
    let figure = match metric {
        Metric::ExposedShare => ours,
        _ => ours / theirs.value(metric)?,
    };
    figure.is_finite().then_some(figure)
}

/// A finished run's record.
#[derive(Clone, Debug)]
pub struct Record {
    pub manifest: Manifest,
    pub steps: Vec<StepLine>,
}

impl Record {
    pub fn read(run: &RunDir, manifest: Manifest) -> Result<Self, RecordError> {
        let steps = read_lines::<StepLine>(&run.metrics())?.collect::<Result<_, _>>()?;
        Ok(Self { manifest, steps })
    }

    /// The numbers of the steps after the warm-up; `startup_seconds`, `seconds` and `others_share` come from
    /// the launch.
    pub fn measure(&self, warmup_steps: u64, launch: LaunchTimes) -> Result<Measured, String> {
        let measured: Vec<&StepLine> = self.steps.iter().filter(|line| line.step > warmup_steps).collect();
        let taking_turns = launch.step_seconds.is_some();
        let own = || measured.iter().map(|line| line.seconds.total).collect();
        let step_seconds: Vec<f64> = launch.step_seconds.unwrap_or_else(own);
        // In turns both sides met the machine's slow moments alike, so that all of their time tells most.
        let typical = match taking_turns {
            true => Some(step_seconds.iter().sum::<f64>() / step_seconds.len() as f64),
            false => median(&step_seconds),
        };
        let (Some(last), Some(typical)) = (measured.last(), typical) else {
            return Err(format!("its record has no step after the {warmup_steps} of the warm-up"));
        };
        if !(typical.is_finite() && typical > 0.0) {
            return Err(format!("its record says that a step took {typical} s"));
        }
        let ranks = self.manifest.segments.iter().flat_map(|segment| &segment.ranks);
        let state = ranks.map(|rank| rank.optimizer_bytes + rank.master_bytes).max();
        Ok(Measured {
            tokens_per_second: last.tokens as f64 / typical,
            startup_seconds: launch.startup_seconds,
            resident_bytes: last.resident_bytes_max as f64,
            exposed_share: launch.exposed_share,
            state_bytes: state.unwrap_or_default() as f64,
            step_seconds,
            seconds: launch.seconds,
            others_share: launch.others_share,
        })
    }
}

/// What is known of a run from outside.
#[derive(Clone, Debug)]
pub struct LaunchTimes {
    pub startup_seconds: f64,
    pub seconds: f64,
    pub others_share: f64,
    /// Of the steps after the warm-up, if the run took turns with another: its own clock went on while it was frozen.
    pub step_seconds: Option<Vec<f64>>,
    /// See [`Metric::ExposedShare`].
    pub exposed_share: Option<f64>,
}

/// Why two runs must not be compared, if they did not do the same work: model, data, precision and everything
/// else that decides the result, threads a rank, steps, tokens a step, and the weights and samples that they
/// began with.
pub fn unlike(ours: &Record, theirs: &Record) -> Option<String> {
    let (checks, _) = compare_manifests(&ours.manifest, &theirs.manifest);
    if let Some(check) = checks.iter().find(|check| check.verdict == Verdict::Different) {
        let what = check.first.as_ref().map_or(check.name.to_owned(), ToString::to_string);
        return Some(format!(
            "ours (called golden here) and theirs (the candidate) are not the same work: {what}"
        ));
    }
    let threads = |record: &Record| record.manifest.segments.last().map(|segment| segment.threads_per_rank);
    let tokens = |record: &Record| record.steps.iter().map(|line| line.tokens).collect::<Vec<_>>();
    let facts = [
        ("threads a rank", format!("{:?}", threads(ours)), format!("{:?}", threads(theirs))),
        ("steps", ours.steps.len().to_string(), theirs.steps.len().to_string()),
        ("tokens of each step", format!("{:?}", tokens(ours)), format!("{:?}", tokens(theirs))),
    ];
    if let Some((what, ours, theirs)) = facts.into_iter().find(|(_, ours, theirs)| ours != theirs) {
        return Some(format!("{what}: ours {ours}, theirs {theirs}"));
    }
    let loss = |record: &Record| record.steps.first().map_or(f64::NAN, |line| line.loss.0);
    let (ours, theirs) = (loss(ours), loss(theirs));
    let close = (ours - theirs).abs() <= FIRST_LOSS_RTOL * theirs.abs();
    (!close).then(|| format!("the first step's loss: ours {ours}, theirs {theirs}: they did not begin alike"))
}
