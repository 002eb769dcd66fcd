//! What a step would take on more ranks than there are: fits a cost model to measured runs, holds some back
//! to see how well it predicts them, and goes on to numbers of ranks that nobody measured. docs/scaling.md
//! has the formulas and their limits.

mod extract;
mod fit;
mod least_squares;
mod measurement;
mod model;
mod partials;
mod picture;
mod refit;
mod scaling;
mod selector;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

pub use extract::{ExtractError, Extraction, extract};
use fit::System;
pub use fit::{Constants, FitError, LinkCost, WorkloadCost};
pub use measurement::{Measurement, MeasurementError, Reduction, Strategy, read_measurements};
pub use picture::picture;
pub use scaling::{Point, Predicted, Scaling, Scope, Series};
pub use selector::Selector;
pub use text::prediction_text;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub measurements: Vec<PathBuf>,
    /// A measurement that any of these selects is kept out of the fit.
    pub holdout: Vec<Selector>,
    /// Only curves of measurements that this selects.
    pub only: Option<Selector>,
    pub scope: Scope,
    /// The largest median error of held-out measurements that counts as a valid model, in percent.
    pub max_error_percent: f64,
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    #[error(transparent)]
    Measurement(#[from] MeasurementError),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error("--holdout selects no measurement: see the keys of a line, or leave it away")]
    NothingHeldOut,
    #[error("--holdout leaves {0} measurement(s) to fit: hold out less, or measure more")]
    NothingToFit(usize),
    #[error(
        "a measurement that is held out is of workload `{workload}` on link `{link}`, of which none is left to \
         fit: a model knows only what it was fitted to"
    )]
    HeldOutUnknown { workload: String, link: String },
    #[error(
        "no measurement of several ranks is selected, so there is no curve to predict: measure one, or change --only"
    )]
    NoCurve,
}

/// A measurement beside what the model says.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub measurement: Measurement,
    pub predicted_step_s: f64,
    /// |predicted ÷ measured − 1| · 100.
    pub error_percent: f64,
}

/// What came out. Everything in `scaling` is a prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Says so in the file, too.
    pub kind: &'static str,
    pub constants: Constants,
    /// Smallest and largest constants of each link over the fit and its refits.
    pub link_ranges: BTreeMap<String, (LinkCost, LinkCost)>,
    pub scope: Scope,
    pub fitted: Vec<Checked>,
    pub held_out: Vec<Checked>,
    pub fitted_median_error_percent: f64,
    /// Absent when nothing was held out: then nothing is known about how well it predicts.
    pub held_out_median_error_percent: Option<f64>,
    pub max_error_percent: f64,
    pub scaling: Vec<Scaling>,
}

impl Prediction {
    /// Whether the held-out measurements speak against the model.
    pub fn failed(&self) -> bool {
        self.held_out_median_error_percent.is_some_and(|error| error > self.max_error_percent)
    }
}

/// Fits, validates and predicts.
pub fn predict(options: &Options) -> Result<Prediction, PredictError> {
    let measurements = read_measurements(&options.measurements)?;
    let held =
        |measurement: &Measurement| options.holdout.iter().any(|selector| selector.matches(measurement));
    let (held_out, fitted): (Vec<&Measurement>, Vec<&Measurement>) =
        measurements.iter().partition(|measurement| held(measurement));
    if !options.holdout.is_empty() && held_out.is_empty() {
        return Err(PredictError::NothingHeldOut);
    }
    if fitted.len() < 2 {
        return Err(PredictError::NothingToFit(fitted.len()));
    }
    let system = System::of(&fitted);
    let constants = system.solve()?;
    let check = |measurement: &&Measurement| check(&constants, measurement);
    let fitted_checks = fitted.iter().map(check).collect::<Result<Vec<_>, _>>()?;
    let held_out = held_out.iter().map(check).collect::<Result<Vec<_>, _>>()?;

    let wanted = |measurement: &&Measurement| {
        measurement.ranks > 1 && options.only.as_ref().is_none_or(|selector| selector.matches(measurement))
    };
    let series: BTreeSet<Series> = measurements.iter().filter(wanted).map(Series::from).collect();
    if series.is_empty() {
        return Err(PredictError::NoCurve);
    }
    let refits = refit::refits(&system, &constants, &fitted_checks);
    let curve = |series: &Series| scaling::scaling(series, &constants, &refits, &options.scope);
    Ok(Prediction {
        kind: "prediction by a fitted cost model; only `measurement` entries were measured",
        scope: options.scope,
        scaling: series.iter().filter_map(curve).collect(),
        link_ranges: refit::link_ranges(&constants, &refits),
        fitted_median_error_percent: median_error(&fitted_checks).unwrap_or(0.0),
        held_out_median_error_percent: median_error(&held_out),
        max_error_percent: options.max_error_percent,
        fitted: fitted_checks,
        held_out,
        constants,
    })
}

fn check(constants: &Constants, measurement: &Measurement) -> Result<Checked, PredictError> {
    let predicted_step_s = constants.step_s(measurement).ok_or_else(|| PredictError::HeldOutUnknown {
        workload: measurement.workload.clone(),
        link: measurement.link.clone(),
    })?;
    let error_percent = (predicted_step_s / measurement.step_s - 1.0).abs() * 100.0;
    Ok(Checked { measurement: measurement.clone(), predicted_step_s, error_percent })
}

fn median_error(checked: &[Checked]) -> Option<f64> {
    let errors: Vec<f64> = checked.iter().map(|checked| checked.error_percent).collect();
    crate::median(&errors)
}
