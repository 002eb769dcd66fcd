//! Samples and metrics, step by step.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_record::{LossScale, LossTerm, Real, SampleLine, StepLine};

use super::bars::{Bars, Subject, Uncovered};
use super::difference::{Check, Difference, Event, Place};
use super::join::Pair;
use super::values::{Format, Value};
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
    bars: Bars,
) -> Result<Metrics, CompareError> {
    let mut columns = Columns::new(bars);
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

/// By name.
type Terms = BTreeMap<String, LossTerm>;

/// `65536 after 3 finite steps`
pub fn scale_text(scale: LossScale) -> String {
    format!("{} after {} finite steps", scale.scale, scale.finite_steps)
}

/// One check per column of the metrics.
struct Columns<'a> {
    bars: Bars<'a>,
    uncovered: Uncovered,
    presence: Check,
    position: Check,
    micro_batch_losses: Check,
    losses: Check,
    loss_scales: Check,
    gradient_norms: Check,
    clip_coefficients: Check,
    learning_rates: Check,
    parameter_norms: Check,
    validation_losses: Check,
}

impl<'a> Columns<'a> {
    fn new(bars: Bars<'a>) -> Self {
        Self {
            bars,
            uncovered: Uncovered::default(),
            presence: Check::new("steps"),
            position: Check::new("epoch and tokens"),
            micro_batch_losses: Check::new("micro-batch losses"),
            losses: Check::new("losses"),
            loss_scales: Check::new("loss scales"),
            gradient_norms: Check::new("gradient norms"),
            clip_coefficients: Check::new("clip coefficients"),
            learning_rates: Check::new("learning rates"),
            parameter_norms: Check::new("parameter norms"),
            validation_losses: Check::new("validation losses"),
        }
    }

    fn into_checks(self) -> Vec<Check> {
        let Self { presence, position, micro_batch_losses, mut losses, loss_scales, uncovered, .. } = self;
        losses.note = uncovered.text();
        let rest = [self.gradient_norms, self.clip_coefficients, self.learning_rates];
        let last = [self.parameter_norms, self.validation_losses];
        // Most trainings have none.
        let scales = (loss_scales.compared > 0).then_some(loss_scales);
        let first = [presence, position, micro_batch_losses, losses].into_iter().chain(scales);
        first.chain(rest).chain(last).collect()
    }

    fn compare(&mut self, golden: &StepLine, candidate: &StepLine) {
        let step = golden.step;
        let integers =
            [("epoch", golden.epoch, candidate.epoch), ("tokens", golden.tokens, candidate.tokens)];
        for (name, left, right) in integers {
            let place = Place::at(step, Event::Data, name);
            let difference = || Difference::new(place, Value::text(left), Value::text(right));
            self.position.same(&left, &right, difference);
        }
        self.compare_micro_batches(golden, candidate);
        self.compare_terms(step, "loss_terms", &golden.loss_terms, &candidate.loss_terms);
        let values = |field: fn(&StepLine) -> Real| (field(golden), field(candidate));
        self.column(step, Event::Forward, "loss", values(|line| line.loss));
        self.compare_scales(golden, candidate);
        self.column(step, Event::Norm, "gradient_norm", values(|line| line.gradient_norm));
        self.column(step, Event::Norm, "clip_coefficient", values(|line| line.clip_coefficient));
        self.column(step, Event::Optimizer, "learning_rate", values(|line| line.learning_rate));
        self.column(step, Event::Parameters, "parameter_norm", values(|line| line.parameter_norm));
        // Runs may evaluate at different steps: only what both measured can differ.
        if let (Some(left), Some(right)) = (golden.validation_loss, candidate.validation_loss) {
            self.column(step, Event::Validation, "validation_loss", (left, right));
        }
        let (left, right) = (&golden.validation_loss_terms, &candidate.validation_loss_terms);
        self.compare_terms(step, "validation_loss_terms", left, right);
    }

    /// The losses that a model's loss is the sum of, where both runs recorded them apart.
    fn compare_terms(&mut self, step: u64, column: &'static str, left: &Terms, right: &Terms) {
        if left.is_empty() || right.is_empty() {
            return;
        }
        let (event, losses) = match column {
            "loss_terms" => (Event::Forward, &mut self.losses),
            _ => (Event::Validation, &mut self.validation_losses),
        };
        for name in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
            let (what, one, other) = (format!("{column}.{name}"), left.get(name), right.get(name));
            let (Some(one), Some(other)) = (one, other) else {
                let recorded = |term: Option<&LossTerm>| Value::optional(term.map(|_| "recorded"));
                losses.differ(Difference::new(Place::at(step, event, what), recorded(one), recorded(other)));
                continue;
            };
            self.position.same(&one.targets, &other.targets, || {
                let place = Place::at(step, Event::Data, format!("targets of {what}"));
                Difference::new(place, Value::text(one.targets), Value::text(other.targets))
            });
            let (subject, values) = (Subject::column(step, &what), (one.loss, other.loss));
            match self.bars.value(subject, values) {
                None => self.uncovered.note(subject),
                Some(mode) => {
                    losses.reals(mode, values, Format::F64, || Place::at(step, event, what.clone()));
                }
            }
        }
    }

    fn column(&mut self, step: u64, event: Event, name: &'static str, values: (Real, Real)) {
        let subject = Subject::column(step, name);
        let Some(mode) = self.bars.value(subject, values) else { return self.uncovered.note(subject) };
        let check = match name {
            "loss" => &mut self.losses,
            "gradient_norm" => &mut self.gradient_norms,
            "clip_coefficient" => &mut self.clip_coefficients,
            "learning_rate" => &mut self.learning_rates,
            "parameter_norm" => &mut self.parameter_norms,
            _ => &mut self.validation_losses,
        };
        check.reals(mode, values, Format::F64, || Place::at(step, event, name));
    }

    /// Exactly, whatever the mode: a scale is no result of rounding.
    fn compare_scales(&mut self, golden: &StepLine, candidate: &StepLine) {
        let (left, right) = (golden.loss_scale, candidate.loss_scale);
        if left.is_none() && right.is_none() {
            return;
        }
        let scale = |side: Option<LossScale>| Value::optional(side.map(scale_text));
        self.loss_scales.same(&left, &right, || {
            Difference::new(Place::at(golden.step, Event::Forward, "loss_scale"), scale(left), scale(right))
        });
    }

    fn compare_micro_batches(&mut self, golden: &StepLine, candidate: &StepLine) {
        let (left, right) = (&golden.micro_batch_losses, &candidate.micro_batch_losses);
        let place = Place::at(golden.step, Event::Forward, "micro_batch_losses");
        if left.len() != right.len() {
            let count = |losses: &Vec<Real>| Value::text(format!("{} micro-batches", losses.len()));
            return self.micro_batch_losses.differ(Difference::new(place, count(left), count(right)));
        }
        for (index, values) in left.iter().copied().zip(right.iter().copied()).enumerate() {
            let micro_batch = u32::try_from(index).ok();
            let subject = Subject { micro_batch, ..Subject::column(golden.step, "micro_batch_losses") };
            let Some(mode) = self.bars.value(subject, values) else {
                self.uncovered.note(subject);
                continue;
            };
            let place = || Place { micro_batch, ..place.clone() };
            self.micro_batch_losses.reals(mode, values, Format::F32, place);
        }
    }
}
