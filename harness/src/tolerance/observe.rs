//! What a run's record says of each step, as numbers whose distance from another run's can be taken.

use std::collections::{BTreeMap, HashMap};

use lockstep_record::{DigestLine, Phase, Real, RunDir, Sketch, StepLine};

use super::envelope::Series;
use crate::compare::{CompareError, lines};

/// One series at one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// A number of the metrics, or the norm of a tensor.
    pub value: f64,
    /// Of a tensor, where it was recorded.
    pub sketch: Option<Sketch>,
}

/// How far apart two observations are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apart {
    pub value: f64,
    /// Without sketches NaN.
    pub distance: f64,
}

impl Observation {
    pub fn apart(&self, other: &Self) -> Apart {
        let distance = match (&self.sketch, &other.sketch) {
            (Some(one), Some(other)) => one.distance(other),
            _ => f64::NAN,
        };
        Apart { value: (self.value - other.value).abs(), distance }
    }
}

/// Numbers for series, the same for all runs.
#[derive(Debug, Default)]
pub struct Names {
    pub series: Vec<Series>,
    numbers: HashMap<Series, usize>,
}

impl Names {
    fn number(&mut self, series: Series) -> usize {
        *self.numbers.entry(series).or_insert_with_key(|series| {
            self.series.push(series.clone());
            self.series.len() - 1
        })
    }
}

/// A run's observations: by step, and within one by series.
pub type Steps = BTreeMap<u64, BTreeMap<usize, Observation>>;

/// The columns of the metrics that are numbers computed from tensors, by name. The learning rate is not among them: it is a
/// function of the step.
fn columns(line: &StepLine) -> Vec<(String, Real)> {
    let columns = [
        ("loss", line.loss),
        ("gradient_norm", line.gradient_norm),
        ("clip_coefficient", line.clip_coefficient),
        ("parameter_norm", line.parameter_norm),
    ];
    let columns = columns.into_iter().chain(line.validation_loss.map(|loss| ("validation_loss", loss)));
    let columns = columns.map(|(name, value)| (name.to_owned(), value));
    let terms = line.loss_terms.iter().map(|(name, term)| (format!("loss_terms.{name}"), term.loss));
    let of_validation = line.validation_loss_terms.iter();
    let validation = of_validation.map(|(name, term)| (format!("validation_loss_terms.{name}"), term.loss));
    columns.chain(terms).chain(validation).collect()
}

/// Reads a run's metrics and digests.
pub fn observe(run: &RunDir, names: &mut Names) -> Result<Steps, CompareError> {
    let mut steps = Steps::new();
    for line in lines::<StepLine>(&run.metrics())? {
        let line = line?;
        let step = steps.entry(line.step).or_default();
        let mut note = |micro_batch: Option<u32>, name: &str, value: Real| {
            let series = Series { phase: None, micro_batch, name: name.into() };
            step.insert(names.number(series), Observation { value: value.0, sketch: None });
        };
        columns(&line).into_iter().for_each(|(name, value)| note(None, &name, value));
        for (index, loss) in (0u32..).zip(&line.micro_batch_losses) {
            note(Some(index), "micro_batch_losses", *loss);
        }
    }
    for line in lines::<DigestLine>(&run.digests())? {
        let line = line?;
        // Data and rate are functions of the step, and each rank's norm is in the metrics already.
        if matches!(line.phase, Phase::Data | Phase::Norm | Phase::Schedule) {
            continue;
        }
        let series = Series { phase: Some(line.phase), micro_batch: line.micro_batch, name: line.tensor };
        let observation = Observation { value: line.norm.0, sketch: line.sketch };
        // A replica that has parted comes second; whoever compares replicas will say so.
        steps.entry(line.step).or_default().entry(names.number(series)).or_insert(observation);
    }
    Ok(steps)
}
