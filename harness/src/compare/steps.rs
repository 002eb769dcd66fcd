//! Samples and metrics, step by step.

use lockstep_record::{Real, SampleLine, StepLine};

use super::difference::{Check, Difference, Event, Place};
use super::join::Pair;
use super::values::{Format, Mode, Tolerance, Value};
use super::{CompareError, Stepped};

/// The outcome of comparing two `metrics.jsonl`.
pub struct Metrics {
    /// Steps that both have.
    pub steps: u64,
    pub checks: Vec<Check>,
}

/// Which samples each micro-batch was made of.
pub fn compare_samples(
    pairs: impl Iterator<Item = Result<Pair<SampleLine>, CompareError>>,
    first_step: u64,
) -> Result<Check, CompareError> {
    let mut check = Check::new("sample ids");
    for pair in pairs {
        let pair = pair?;
        if pair.step < first_step {
            continue;
        }
        let Some((golden, candidate)) = both(&mut check, pair) else { continue };
        let count = golden.micro_batches.len().max(candidate.micro_batches.len());
        for index in 0..count {
            let (left, right) = (golden.micro_batches.get(index), candidate.micro_batches.get(index));
            check.same(&left, &right, || {
                let place = Place::at(golden.step, Event::Data, "sample ids");
                let ids = |side: Option<&Vec<u64>>| Value::optional(side.map(|ids| format!("{ids:?}")));
                Difference::new(
                    Place { micro_batch: u32::try_from(index).ok(), ..place },
                    ids(left),
                    ids(right),
                )
            });
        }
    }
    Ok(check)
}

/// Both sides of a step, or a difference because one run lacks it.
fn both<T: Stepped>(check: &mut Check, pair: Pair<T>) -> Option<(T, T)> {
    match (pair.golden, pair.candidate) {
        (Some(golden), Some(candidate)) => Some((golden, candidate)),
        (golden, _) => {
            let mut sides = [Value::text("recorded"), Value::Absent];
            if golden.is_none() {
                sides.reverse();
            }
            let [golden, candidate] = sides;
            check.differ(Difference::new(Place::at(pair.step, Event::End, check.name), golden, candidate));
            None
        }
    }
}

/// Losses, norms and learning rates.
pub fn compare_metrics(
    pairs: impl Iterator<Item = Result<Pair<StepLine>, CompareError>>,
    first_step: u64,
    mode: Mode,
) -> Result<Metrics, CompareError> {
    let mut columns = Columns::new(mode);
    let mut steps = 0;
    for pair in pairs {
        let pair = pair?;
        if pair.step < first_step {
            continue;
        }
        if let Some((golden, candidate)) = both(&mut columns.presence, pair) {
            columns.presence.agree();
            columns.compare(&golden, &candidate);
            steps += 1;
        }
    }
    Ok(Metrics { steps, checks: columns.into_checks() })
}

/// One check per column of the metrics.
struct Columns {
    mode: Mode,
    presence: Check,
    position: Check,
    micro_batch_losses: Check,
    losses: Check,
    gradient_norms: Check,
    clip_coefficients: Check,
    learning_rates: Check,
    parameter_norms: Check,
    validation_losses: Check,
}

impl Columns {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            presence: Check::new("steps"),
            position: Check::new("epoch and tokens"),
            micro_batch_losses: Check::new("micro-batch losses"),
            losses: Check::new("losses"),
            gradient_norms: Check::new("gradient norms"),
            clip_coefficients: Check::new("clip coefficients"),
            learning_rates: Check::new("learning rates"),
            parameter_norms: Check::new("parameter norms"),
            validation_losses: Check::new("validation losses"),
        }
    }

    fn into_checks(self) -> Vec<Check> {
        let Self { presence, position, micro_batch_losses, losses, .. } = self;
        let rest = [self.gradient_norms, self.clip_coefficients, self.learning_rates];
        let last = [self.parameter_norms, self.validation_losses];
        [presence, position, micro_batch_losses, losses].into_iter().chain(rest).chain(last).collect()
    }

    fn compare(&mut self, golden: &StepLine, candidate: &StepLine) {
        let (mode, step) = (self.mode, golden.step);
        let integers =
            [("epoch", golden.epoch, candidate.epoch), ("tokens", golden.tokens, candidate.tokens)];
        for (name, left, right) in integers {
            let place = Place::at(step, Event::Data, name);
            let difference = || Difference::new(place, Value::text(left), Value::text(right));
            self.position.same(&left, &right, difference);
        }
        self.compare_micro_batches(golden, candidate);
        let at = |event, name| move || Place::at(step, event, name);
        let double = Format::F64;
        let values = |field: fn(&StepLine) -> Real| (field(golden), field(candidate));
        self.losses.reals(mode, values(|line| line.loss), double, at(Event::Forward, "loss"));
        let gradient_norm = at(Event::Norm, "gradient_norm");
        self.gradient_norms.reals(mode, values(|line| line.gradient_norm), double, gradient_norm);
        let clip = at(Event::Norm, "clip_coefficient");
        self.clip_coefficients.reals(mode, values(|line| line.clip_coefficient), double, clip);
        let rate = at(Event::Optimizer, "learning_rate");
        self.learning_rates.reals(mode, values(|line| line.learning_rate), double, rate);
        let norm = at(Event::Parameters, "parameter_norm");
        let parameters = parameter_norm_mode(mode);
        self.parameter_norms.reals(parameters, values(|line| line.parameter_norm), double, norm);
        // Runs may evaluate at different steps: only what both measured can differ.
        if let (Some(left), Some(right)) = (golden.validation_loss, candidate.validation_loss) {
            let place = at(Event::Validation, "validation_loss");
            self.validation_losses.reals(mode, (left, right), double, place);
        }
    }

    fn compare_micro_batches(&mut self, golden: &StepLine, candidate: &StepLine) {
        let (left, right) = (&golden.micro_batch_losses, &candidate.micro_batch_losses);
        let place = Place::at(golden.step, Event::Forward, "micro_batch_losses");
        if left.len() != right.len() {
            let count = |losses: &Vec<Real>| Value::text(format!("{} micro-batches", losses.len()));
            return self.micro_batch_losses.differ(Difference::new(place, count(left), count(right)));
        }
        for (index, values) in left.iter().copied().zip(right.iter().copied()).enumerate() {
            let place = || Place { micro_batch: u32::try_from(index).ok(), ..place.clone() };
            self.micro_batch_losses.reals(self.mode, values, Format::F32, place);
        }
    }
}

/// The bar for the norm of all parameters: its own where the plan sets one.
fn parameter_norm_mode(mode: Mode) -> Mode {
    match mode {
        Mode::Tolerance(Tolerance { parameter_norm_atol: Some(bar), .. }) => {
            // "Less than" is "at most the next smaller number".
            Mode::Tolerance(Tolerance { rtol: 0.0, atol: bar.next_down(), parameter_norm_atol: None })
        }
        other => other,
    }
}
