//! From measurements to constants, by least squares of relative errors.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::least_squares::{Row, independence, solve};
use super::measurement::Measurement;
use super::model::{BACKWARD, CONSTANTS, Cost, FIXED, FORWARD, LATENCY, OPTIMIZER, PER_BYTE, Setting, Terms};

/// Below it, noise of 2 % in the measurements becomes 100 % in the constant.
const INDEPENDENCE_MIN: f64 = 0.02;
/// Rounds of choosing what is hidden and solving; a few suffice.
const ROUNDS_MAX: usize = 50;

/// Constants of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkloadCost {
    /// Of one micro-batch.
    pub forward_s: f64,
    /// Of one micro-batch.
    pub backward_s: f64,
    /// Of the whole update.
    pub optimizer_s: f64,
    /// Of a step, whatever its setting.
    pub fixed_s: f64,
}

/// Constants of one link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LinkCost {
    /// Of one message.
    pub latency_s: f64,
    /// Of one byte that a rank sends, whatever is done with it on either side.
    pub seconds_per_byte: f64,
}

/// What was fitted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Constants {
    pub workloads: BTreeMap<String, WorkloadCost>,
    /// Links over which at least one measurement communicated.
    pub links: BTreeMap<String, LinkCost>,
}

impl Constants {
    /// Constants for a workload on a link; none if either was not fitted. One rank needs no link.
    pub fn of(&self, workload: &str, link: &str, ranks: u32) -> Option<Terms> {
        let WorkloadCost { forward_s, backward_s, optimizer_s, fixed_s } = *self.workloads.get(workload)?;
        let nothing = LinkCost { latency_s: 0.0, seconds_per_byte: 0.0 };
        let link = if ranks == 1 { nothing } else { *self.links.get(link)? };
        Some([forward_s, backward_s, optimizer_s, fixed_s, link.latency_s, link.seconds_per_byte])
    }

    /// Predicted seconds of a measured step; none if its workload or link was not fitted.
    pub fn step_s(&self, measurement: &Measurement) -> Option<f64> {
        let constants = self.of(&measurement.workload, &measurement.link, measurement.ranks)?;
        Some(Setting::from(measurement).step().at(&constants))
    }
}

/// Why measurements do not determine the constants.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    #[error(
        "link `{0}`: latency and bandwidth cannot be told apart: measure it with another number of buckets as well, \
         by parallel.bucket_mb, or with other numbers of ranks"
    )]
    Link(String),
    #[error(
        "workload `{0}`: what a step takes beside its micro-batches cannot be told from communication: measure \
         it on one rank as well, or with another number of micro-batches"
    )]
    Workload(String),
}

/// Where each workload's and link's constants are among the unknowns.
#[derive(Clone)]
struct Unknowns {
    workloads: Vec<String>,
    links: Vec<String>,
}

/// Unknowns of a workload come first: [`FORWARD`] to [`FIXED`].
const PER_WORKLOAD: usize = 4;
const PER_LINK: usize = CONSTANTS - PER_WORKLOAD;

impl Unknowns {
    fn of(measurements: &[&Measurement]) -> Self {
        let names = |name: fn(&Measurement) -> &String, which: fn(&Measurement) -> bool| {
            let names: BTreeSet<&String> =
                measurements.iter().filter(|measurement| which(measurement)).map(|m| name(m)).collect();
            names.into_iter().cloned().collect()
        };
        Self {
            workloads: names(|measurement| &measurement.workload, |_| true),
            links: names(|measurement| &measurement.link, |measurement| measurement.ranks > 1),
        }
    }

    fn count(&self) -> usize {
        self.workloads.len() * PER_WORKLOAD + self.links.len() * PER_LINK
    }

    fn position(&self, measurement: &Measurement, constant: usize) -> Option<usize> {
        let place = |names: &[String], name: &String| names.binary_search(name).ok();
        match constant {
            LATENCY | PER_BYTE => {
                let link = place(&self.links, &measurement.link)?;
                Some(self.workloads.len() * PER_WORKLOAD + link * PER_LINK + constant - LATENCY)
            }
            _ => Some(place(&self.workloads, &measurement.workload)? * PER_WORKLOAD + constant),
        }
    }

    /// Constants of one measurement.
    fn pick(&self, solution: &[f64], measurement: &Measurement) -> Terms {
        std::array::from_fn(|constant| self.position(measurement, constant).map_or(0.0, |at| solution[at]))
    }

    /// The equation `terms = target`, whose error counts relative to `unit`.
    fn row(&self, measurement: &Measurement, terms: &Terms, target: f64, unit: f64) -> Row {
        let mut factors = vec![0.0; self.count()];
        for (constant, term) in terms.iter().enumerate().filter(|(_, term)| **term != 0.0) {
            if let Some(at) = self.position(measurement, constant) {
                factors[at] += term / unit;
            }
        }
        Row { factors, target: target / unit }
    }

    fn constants(&self, solution: &[f64]) -> Constants {
        let workload = |(name, values): (&String, &[f64])| {
            let [forward_s, backward_s, optimizer_s, fixed_s] =
                [FORWARD, BACKWARD, OPTIMIZER, FIXED].map(|constant| values[constant]);
            (name.clone(), WorkloadCost { forward_s, backward_s, optimizer_s, fixed_s })
        };
        let link = |(name, values): (&String, &[f64])| {
            (name.clone(), LinkCost { latency_s: values[0], seconds_per_byte: values[1] })
        };
        let (workloads, links) = solution.split_at(self.workloads.len() * PER_WORKLOAD);
        Constants {
            workloads: self.workloads.iter().zip(workloads.chunks(PER_WORKLOAD)).map(workload).collect(),
            links: self.links.iter().zip(links.chunks(PER_LINK)).map(link).collect(),
        }
    }

    /// Refuses constants that the measurements leave open.
    fn check(&self, rows: &[Row]) -> Result<(), FitError> {
        let own = independence(rows, self.count());
        let (workloads, links) = own.split_at(self.workloads.len() * PER_WORKLOAD);
        let open = |values: &[f64]| values.iter().any(|own| *own < INDEPENDENCE_MIN);
        for (name, values) in self.links.iter().zip(links.chunks(PER_LINK)) {
            if open(values) {
                return Err(FitError::Link(name.clone()));
            }
        }
        for (name, values) in self.workloads.iter().zip(workloads.chunks(PER_WORKLOAD)) {
            if open(values) {
                return Err(FitError::Workload(name.clone()));
            }
        }
        Ok(())
    }
}

/// An equation of one measurement.
#[derive(Clone)]
struct Equation<'a> {
    measurement: &'a Measurement,
    cost: Cost,
    target: f64,
    /// Errors count relative to it.
    unit: f64,
    /// Whether the target is a time of a whole step, which the noise of other ranks and of the link is in.
    of_step: bool,
}

/// What a measurement says about the constants.
fn equations(measurement: &Measurement) -> Vec<Equation<'_>> {
    let setting = Setting::from(measurement);
    let linear = |base: Terms| Cost { base, larger_of: Vec::new() };
    let one = |constant: usize, factor: f64| {
        let mut terms = [0.0; CONSTANTS];
        terms[constant] = factor;
        linear(terms)
    };
    let equation = |cost, target, unit, of_step| Equation { measurement, cost, target, unit, of_step };
    let Measurement { step_s, forward_s, backward_s, optimizer_s, .. } = *measurement;
    let mut equations = vec![
        equation(setting.step(), step_s, step_s, true),
        equation(one(FORWARD, 1.0), forward_s, forward_s, false),
        equation(one(BACKWARD, 1.0), backward_s, backward_s, false),
        equation(one(OPTIMIZER, setting.optimizer_share()), optimizer_s, optimizer_s, false),
    ];
    if measurement.ranks > 1 {
        let communication = measurement.communication_s.filter(|seconds| *seconds > 0.0);
        let communication =
            communication.map(|seconds| equation(linear(setting.communication()), seconds, seconds, true));
        // What is exposed can be next to nothing: its error counts as a part of the step.
        let exposed = measurement.exposed_s.map(|seconds| equation(setting.exposed(), seconds, step_s, true));
        equations.extend(communication.into_iter().chain(exposed));
    }
    equations
}

/// Everything that measurements say about their constants.
pub struct System<'a> {
    unknowns: Unknowns,
    equations: Vec<Equation<'a>>,
}

impl<'a> System<'a> {
    pub fn of(measurements: &[&'a Measurement]) -> Self {
        let equations = measurements.iter().flat_map(|measurement| equations(measurement)).collect();
        Self { unknowns: Unknowns::of(measurements), equations }
    }

    /// The same with each time of a step changed by a factor of its own.
    pub fn scaled(&self, mut factor: impl FnMut() -> f64) -> Self {
        let mut equations = self.equations.clone();
        equations
            .iter_mut()
            .filter(|equation| equation.of_step)
            .for_each(|equation| equation.target *= factor());
        Self { unknowns: self.unknowns.clone(), equations }
    }

    /// Fits the constants.
    ///
    /// A cost is the larger of two linear functions wherever something hides. So: choose one of the two
    /// everywhere, solve, choose again by the solution, until the choice stays. This starts from both extremes,
    /// and the best solution of all counts.
    pub fn solve(&self) -> Result<Constants, FitError> {
        let mut best: Option<(f64, Vec<f64>, Vec<Row>)> = None;
        for member in [0, 1] {
            let mut terms: Vec<Terms> =
                self.equations.iter().map(|equation| equation.cost.linear_with(member)).collect();
            for _ in 0..ROUNDS_MAX {
                let rows = self.rows(&terms);
                let solution = solve(&rows, self.unknowns.count());
                let next = self.linear_at(&solution);
                let error = self.squared_error(&solution);
                if best.as_ref().is_none_or(|(least, _, _)| error < *least) {
                    best = Some((error, solution, rows));
                }
                if next == terms {
                    break;
                }
                terms = next;
            }
        }
        let (_, solution, rows) = best.unwrap_or_default();
        self.unknowns.check(&rows)?;
        Ok(self.unknowns.constants(&solution))
    }

    fn rows(&self, terms: &[Terms]) -> Vec<Row> {
        let row = |(equation, terms): (&Equation, &Terms)| {
            self.unknowns.row(equation.measurement, terms, equation.target, equation.unit)
        };
        self.equations.iter().zip(terms).map(row).collect()
    }

    fn linear_at(&self, solution: &[f64]) -> Vec<Terms> {
        let linear = |equation: &Equation| {
            equation.cost.linear_at(&self.unknowns.pick(solution, equation.measurement))
        };
        self.equations.iter().map(linear).collect()
    }

    fn squared_error(&self, solution: &[f64]) -> f64 {
        let error = |equation: &Equation| {
            let constants = self.unknowns.pick(solution, equation.measurement);
            ((equation.cost.at(&constants) - equation.target) / equation.unit).powi(2)
        };
        self.equations.iter().map(error).sum()
    }
}

#[cfg(test)]
#[path = "fit_tests.rs"]
pub(super) mod tests;
