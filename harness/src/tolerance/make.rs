//! From a golden run and perturbed ones to an envelope.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lockstep_record::{Manifest, Perturbation, Perturbed, Phase, Real};

use super::ToleranceError;
use super::calibrate::{prediction_limit, ratios, spread};
use super::envelope::{Envelope, Factor, Header, Measure, Series, Spreads, file_digest};
use super::observe::{Apart, Names, Steps, observe};
use super::theory::{UNIT_ROUNDOFF, perturbed_at_most, sum_factor};
use crate::compare::{Run, compare_manifests};

/// Fewer perturbed runs say too little about how much they vary.
pub const RUNS_MIN: usize = 6;
/// The probability of a false alarm in one comparison, shared evenly among the factors.
pub const FALSE_ALARMS: f64 = 1e-3;
/// By how much a sketch may overestimate a distance: 8·3² is exceeded by chi-square of 8 with a probability of 2e-12.
const SKETCH_EXCESS: f64 = 3.0;

/// All that was measured: by step and series, how far each perturbed run was from the golden one.
struct Measured {
    names: Names,
    golden: Steps,
    apart: BTreeMap<u64, BTreeMap<usize, Vec<Apart>>>,
    perturbations: Vec<Perturbation>,
    manifest: Manifest,
    terms: u64,
    first_step: u64,
}

/// Makes the envelope of a golden run from perturbed repetitions of it.
pub fn make(golden: &Path, perturbed: &[PathBuf]) -> Result<Envelope, ToleranceError> {
    if perturbed.len() < RUNS_MIN {
        return Err(ToleranceError::TooFew(perturbed.len()));
    }
    let run = Run::open(golden)?;
    check_golden(&run)?;
    let measured = measure(&run, perturbed)?;
    check_theorem(&measured, perturbed)?;
    let floors = measured.floors();
    let factors = measured.factors(&floors);
    let steps = measured.spreads(&floors);
    let Measured { names, perturbations, manifest, terms, .. } = measured;
    let Perturbation { of, unit, .. } = perturbations[0];
    let header = Header {
        record_version: lockstep_record::RECORD_VERSION,
        golden: manifest,
        golden_digests: file_digest(&run.dir.digests())?,
        perturbed: of,
        unit,
        seeds: perturbations.iter().map(|perturbation| perturbation.seed).collect(),
        terms,
        sum_factor: sum_factor(terms),
        false_alarms: FALSE_ALARMS,
        factors,
        series: names.series,
    };
    Ok(Envelope::new(header, steps))
}

fn check_golden(run: &Run) -> Result<(), ToleranceError> {
    let refuse = |problem: &str| {
        Err(ToleranceError::Golden { path: run.dir.path().to_owned(), problem: problem.to_owned() })
    };
    if run.manifest.segments.iter().any(|segment| segment.perturbation.is_some()) {
        return refuse("it is itself a perturbed run");
    }
    if run.manifest.segments.first().is_none_or(|segment| segment.from_step != 0) {
        return refuse("it does not begin at step 0, so a perturbed run cannot repeat it");
    }
    Ok(())
}

/// Micro-batches of a step, from the metrics: a foreign trainer's configuration may not say.
fn terms(golden: &Steps, names: &Names) -> u64 {
    let is_share = |series: &usize| names.series[*series].name == "micro_batch_losses";
    let count = |step: &BTreeMap<usize, _>| step.keys().filter(|series| is_share(series)).count();
    golden.values().map(count).max().unwrap_or(1).max(1) as u64
}

fn measure(run: &Run, perturbed: &[PathBuf]) -> Result<Measured, ToleranceError> {
    let mut names = Names::default();
    let golden = observe(&run.dir, &mut names)?;
    let mut apart: BTreeMap<u64, BTreeMap<usize, Vec<Apart>>> = BTreeMap::new();
    let mut perturbations: Vec<Perturbation> = Vec::new();
    for path in perturbed {
        let refuse = |problem: String| ToleranceError::Perturbed { path: path.clone(), problem };
        let other = Run::open(path)?;
        perturbations.push(check_perturbed(run, &other, &perturbations).map_err(refuse)?);
        let steps = observe(&other.dir, &mut names)?;
        for (step, golden) in &golden {
            for (series, one) in golden {
                let Some(other) = steps.get(step).and_then(|step| step.get(series)) else {
                    let Series { name, .. } = &names.series[*series];
                    return Err(refuse(format!("it lacks {name} of step {step}, which the golden run has")));
                };
                apart.entry(*step).or_default().entry(*series).or_default().push(one.apart(other));
            }
        }
    }
    let terms = terms(&golden, &names);
    let manifest = Manifest { segments: Vec::new(), ..run.manifest.clone() };
    let first_step = golden.keys().copied().find(|&step| step > 0).unwrap_or(1);
    Ok(Measured { names, golden, apart, perturbations, manifest, terms, first_step })
}

/// A perturbed run must be the golden run in all but the perturbation, and unlike the `others`.
fn check_perturbed(golden: &Run, run: &Run, others: &[Perturbation]) -> Result<Perturbation, String> {
    let (checks, _) = compare_manifests(&golden.manifest, &run.manifest);
    if let Some(difference) = checks.iter().find_map(|check| check.first.as_ref()) {
        return Err(format!("it is no repetition of the golden run: {difference}"));
    }
    let mut kinds = run.manifest.segments.iter().map(|segment| segment.perturbation);
    let Some(Some(perturbation)) = kinds.next() else {
        return Err("it was not perturbed: train it with --perturb".into());
    };
    if kinds.any(|other| other != Some(perturbation)) {
        return Err("its segments were perturbed in different ways".into());
    }
    if others.iter().any(|other| other.seed == perturbation.seed) {
        return Err(format!("another one has the seed {}, too: it says nothing new", perturbation.seed));
    }
    if others.iter().any(|other| (other.of, other.unit) != (perturbation.of, perturbation.unit)) {
        return Err(format!("the others were perturbed in another way than {perturbation}"));
    }
    Ok(perturbation)
}

/// At the first step the theorem bounds how far moved gradients can move their sum. A run that is farther away was not
/// moved by one unit, and bounds made of it would be worth nothing. Needs the golden run's local gradients.
fn check_theorem(measured: &Measured, perturbed: &[PathBuf]) -> Result<(), ToleranceError> {
    let Perturbation { of, unit, .. } = measured.perturbations[0];
    let step = measured.first_step;
    let (Perturbed::Gradients, Some(golden), Some(apart)) =
        (of, measured.golden.get(&step), measured.apart.get(&step))
    else {
        return Ok(());
    };
    let series = &measured.names.series;
    let mut sizes: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
    for (&index, observation) in
        golden.iter().filter(|(index, _)| series[**index].phase == Some(Phase::LocalGradient))
    {
        let (count, sum) = sizes.entry(series[index].name.as_str()).or_default();
        (*count, *sum) = (*count + 1, *sum + observation.value);
    }
    for (&index, apart) in
        apart.iter().filter(|(index, _)| series[**index].phase == Some(Phase::ReducedGradient))
    {
        let name = &series[index].name;
        let Some(&(_, sum)) = sizes.get(name.as_str()).filter(|(count, _)| *count == measured.terms) else {
            continue;
        };
        let bound = SKETCH_EXCESS * perturbed_at_most(measured.terms, unit.fraction_bits()) * sum;
        if let Some(run) = apart.iter().position(|apart| apart.distance > bound) {
            let distance = apart[run].distance;
            return Err(ToleranceError::Perturbed {
                path: perturbed[run].clone(),
                problem: format!(
                    "at step {step} its reduced gradient of {name} is {distance:.2e} from the golden run's; one unit in the last \
                     place of each micro-batch's moves it by {bound:.2e} at most. It is of another program, or moved by more"
                ),
            });
        }
    }
    Ok(())
}

/// The least that a series is granted: rounding a result once. Nothing for what comes before any addition.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    distance: f64,
    value: f64,
}

impl Measured {
    fn floors(&self) -> BTreeMap<u64, BTreeMap<usize, Floor>> {
        let elements: BTreeMap<&str, f64> = self
            .manifest
            .model
            .tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.shape.iter().map(|&size| size as f64).product()))
            .collect();
        let all: f64 = elements.values().sum();
        let floor = |step: u64, index: usize| {
            let series = &self.names.series[index];
            if self.comes_first(step, series) {
                return Floor::default();
            }
            let ulp = 2.0 * UNIT_ROUNDOFF * self.golden[&step][&index].value.abs();
            let Some(phase) = series.phase else {
                return Floor { distance: 0.0, value: ulp / roundings(&series.name, all) };
            };
            let name = match phase {
                Phase::Optimizer => {
                    series.name.split_once('/').map_or(series.name.as_str(), |(_, name)| name)
                }
                _ => series.name.as_str(),
            };
            // One element of average size by one unit: that much of the distance, and less of the norm.
            let count = elements.get(name).copied().unwrap_or(1.0).max(1.0);
            Floor { distance: ulp / count.sqrt(), value: ulp / count }
        };
        let of_step = |(&step, apart): (&u64, &BTreeMap<usize, Vec<Apart>>)| {
            (step, apart.keys().map(|&index| (index, floor(step, index))).collect())
        };
        self.apart.iter().map(of_step).collect()
    }

    /// Whether nothing has been added in another order yet: then a candidate must have the same bits.
    fn comes_first(&self, step: u64, series: &Series) -> bool {
        let forward = series.phase.is_none()
            && (matches!(series.name.as_str(), "loss" | "micro_batch_losses")
                || series.name.starts_with("loss_terms."));
        let gradients = self.perturbations[0].of == Perturbed::Gradients;
        let untouched = step == self.first_step && (forward || series.phase == Some(Phase::LocalGradient));
        gradients && (untouched || step < self.first_step)
    }

    /// The distances of one series at one step that can be taken, with their floor.
    fn distances(
        &self,
        measure: Measure,
        (step, index): (u64, usize),
        floor: Floor,
    ) -> Option<(Vec<f64>, f64)> {
        let apart = &self.apart[&step][&index];
        let (distances, floor): (Vec<f64>, f64) = match measure {
            Measure::Distance => (apart.iter().map(|apart| apart.distance).collect(), floor.distance),
            Measure::Value => (apart.iter().map(|apart| apart.value).collect(), floor.value),
        };
        let finite = distances.iter().all(|distance| distance.is_finite()) && floor.is_finite();
        // Of a golden value of zero no floor follows: what was measured has to serve.
        let floor = if floor == 0.0 { spread(&distances, 0.0) } else { floor };
        finite.then_some((distances, floor))
    }

    fn factors(&self, floors: &BTreeMap<u64, BTreeMap<usize, Floor>>) -> Vec<Factor> {
        let mut largest: BTreeMap<(Measure, Option<Phase>), Vec<f64>> = BTreeMap::new();
        for (&step, floors) in floors {
            for (&index, &floor) in floors {
                for measure in [Measure::Distance, Measure::Value] {
                    let Some((distances, floor)) = self.distances(measure, (step, index), floor) else {
                        continue;
                    };
                    let key = (measure, self.names.series[index].phase);
                    let largest = largest.entry(key).or_insert_with(|| vec![0.0; distances.len()]);
                    for (largest, ratio) in largest.iter_mut().zip(ratios(&distances, floor)) {
                        *largest = largest.max(ratio);
                    }
                }
            }
        }
        let share = FALSE_ALARMS / largest.len().max(1) as f64;
        let factor = |((measure, phase), largest): ((Measure, Option<Phase>), Vec<f64>)| Factor {
            measure,
            phase,
            factor: prediction_limit(&largest, share),
            largest,
        };
        largest.into_iter().map(factor).collect()
    }

    fn spreads(&self, floors: &BTreeMap<u64, BTreeMap<usize, Floor>>) -> Vec<Spreads> {
        let of_step = |(&step, floors): (&u64, &BTreeMap<usize, Floor>)| {
            let of = |measure: Measure| -> Vec<Option<Real>> {
                (0..self.names.series.len())
                    .map(|index| {
                        let floor = *floors.get(&index)?;
                        let (distances, floor) = self.distances(measure, (step, index), floor)?;
                        Some(Real(spread(&distances, floor)))
                    })
                    .collect()
            };
            Spreads { step, distance: of(Measure::Distance), value: of(Measure::Value) }
        };
        floors.iter().map(of_step).collect()
    }
}

/// How many roundings of full size a column of the metrics is the average of: losses are sums of micro-batches' in single
/// precision, norms are made in double precision of as many elements as the model has.
fn roundings(column: &str, elements: f64) -> f64 {
    match column {
        "gradient_norm" | "parameter_norm" => elements.max(1.0),
        _ => 1.0,
    }
}
