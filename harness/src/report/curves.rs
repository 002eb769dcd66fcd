//! What the page draws of a run: a few hundred points of each quantity, however long the run was.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_record::{LossTerm, Manifest, Real, RunDir, StepLine, read_lines};
use serde::{Deserialize, Serialize};

use crate::compare::{Join, in_order, read_manifest};

/// Points of a curve; longer runs are thinned out.
const POINTS_MAX: usize = 400;
/// Distances beyond it are drawn there: from or to an infinity, or across zero.
const ULPS_MAX: f64 = 1e10;
/// Larger numbers are drawn as if they were not finite: not at all.
const VALUE_MAX: f64 = 1e30;

/// Losses that a total is the sum of and that are drawn apart: a file may name any number.
const TERMS_MAX: usize = 8;

/// Step and value.
pub type Point = (f64, f64);

/// What a loss is the mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    Tokens,
    Images,
    /// Those of several losses, which it is the sum of.
    Several,
    /// Another trainer's, or a file's that nobody knows.
    #[default]
    Unknown,
}

impl Targets {
    /// By `data.kind`, where the manifest's configuration has one.
    fn of(manifest: &Manifest) -> Self {
        match manifest.config.pointer("/data/kind").and_then(|kind| kind.as_str()) {
            Some("text") => Self::Tokens,
            Some("images") => Self::Images,
            Some("arm") => Self::Several,
            _ => Self::Unknown,
        }
    }
}

/// What a chart is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Quantity {
    Loss(Targets),
    /// One of the losses that the loss is the weighted sum of, by name.
    LossTerm(String),
    GradientNorm,
    ParameterNorm,
    /// From the golden run, in ulps of fp32.
    Divergence,
}

impl Quantity {
    /// What there is to draw of some runs, in the order of the page: the terms of a loss come beside it.
    pub fn of<'a>(runs: impl IntoIterator<Item = &'a Curves>) -> Vec<Self> {
        let runs: Vec<&Curves> = runs.into_iter().collect();
        let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.loss_terms.keys()).collect();
        let loss = Self::Loss(targets_of(&runs));
        let terms = names.into_iter().take(TERMS_MAX).cloned().map(Self::LossTerm);
        let rest = [Self::GradientNorm, Self::ParameterNorm, Self::Divergence];
        std::iter::once(loss).chain(terms).chain(rest).collect()
    }

    /// Heading of its chart.
    pub fn title(&self) -> String {
        match self {
            Self::Loss(_) => "Loss".into(),
            Self::LossTerm(name) => format!("Loss: {name}"),
            Self::GradientNorm => "Gradient norm".into(),
            Self::ParameterNorm => "Parameter norm".into(),
            Self::Divergence => "Divergence from the golden run".into(),
        }
    }

    /// What its numbers are.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Loss(Targets::Tokens) => "nats per token",
            Self::Loss(Targets::Images) => "nats per image",
            Self::Loss(Targets::Several) => "weighted sum of several losses",
            Self::Loss(Targets::Unknown) => "mean over its targets",
            // As docs/models.md names the vla's.
            Self::LossTerm(name) if name == "ar" => "nats per token, before its weight",
            Self::LossTerm(name) if name == "fm" => "mean squared error, before its weight",
            Self::LossTerm(_) => "mean over its targets, before its weight",
            Self::GradientNorm => "before clipping",
            Self::ParameterNorm => "after the update",
            Self::Divergence => "ulps of fp32",
        }
    }
}

/// What the losses of one chart are means over: runs that disagree have no unit in common.
fn targets_of(runs: &[&Curves]) -> Targets {
    if runs.iter().any(|run| !run.loss_terms.is_empty()) {
        return Targets::Several;
    }
    let mut drawn = runs.iter().filter(|run| !run.loss.is_empty()).map(|run| run.targets);
    let first = drawn.next().unwrap_or_default();
    if drawn.all(|targets| targets == first) { first } else { Targets::Unknown }
}

/// The curves of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    pub loss: Vec<Point>,
    #[serde(default)]
    pub targets: Targets,
    /// Of a model with more than one loss.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loss_terms: BTreeMap<String, Vec<Point>>,
    pub gradient_norm: Vec<Point>,
    pub parameter_norm: Vec<Point>,
    /// The largest distance of the losses and the norms; empty for a golden run.
    pub divergence: Vec<Point>,
}

impl Curves {
    pub fn of(&self, quantity: &Quantity) -> &[Point] {
        match quantity {
            Quantity::Loss(_) => &self.loss,
            Quantity::LossTerm(name) => self.loss_terms.get(name).map_or(&[], Vec::as_slice),
            Quantity::GradientNorm => &self.gradient_norm,
            Quantity::ParameterNorm => &self.parameter_norm,
            Quantity::Divergence => &self.divergence,
        }
    }
}

/// What a run has recorded so far, beside the golden run if there is one. What cannot be read is left out: judging it
/// is `compare`'s work.
pub fn read_curves(run: &RunDir, golden: Option<&RunDir>) -> Curves {
    let mut curves = [Thinned::first(), Thinned::first(), Thinned::first()];
    let mut terms = BTreeMap::new();
    for line in steps(run) {
        let values = [line.loss, line.gradient_norm, line.parameter_norm];
        for (curve, value) in curves.iter_mut().zip(values) {
            curve.push(line.step, value.0);
        }
        push_terms(&mut terms, line.step, &line.loss_terms);
    }
    let [loss, gradient_norm, parameter_norm] = curves.map(Thinned::finish);
    let loss_terms = terms.into_iter().map(|(name, curve)| (name, curve.finish())).collect();
    let divergence = golden.map(|golden| divergence(golden, run)).unwrap_or_default();
    let targets = read_manifest(&run.manifest()).map_or(Targets::Unknown, |manifest| Targets::of(&manifest));
    Curves { loss, targets, loss_terms, gradient_norm, parameter_norm, divergence }
}

/// Names beyond the first few are left out.
fn push_terms(curves: &mut BTreeMap<String, Thinned>, step: u64, terms: &BTreeMap<String, LossTerm>) {
    for (name, term) in terms {
        if !curves.contains_key(name) && curves.len() < TERMS_MAX {
            curves.insert(name.clone(), Thinned::first());
        }
        if let Some(curve) = curves.get_mut(name) {
            curve.push(step, term.loss.0);
        }
    }
}

/// The whole lines of `metrics.jsonl` up to the first that makes no sense.
fn steps(run: &RunDir) -> impl Iterator<Item = StepLine> + use<> {
    let lines = read_lines::<StepLine>(&run.metrics()).ok();
    in_order(run.metrics(), lines.into_iter().flatten()).map_while(Result::ok)
}

fn divergence(golden: &RunDir, run: &RunDir) -> Vec<Point> {
    let mut curve = Thinned::largest();
    for pair in Join::new(steps(golden).map(Ok), steps(run).map(Ok)) {
        let Ok(pair) = pair else { break };
        if let (Some(golden), Some(line)) = (&pair.golden, &pair.candidate) {
            curve.push(pair.step, step_divergence(golden, line));
        }
    }
    curve.finish()
}

/// The largest distance of a step's losses and norms.
fn step_divergence(golden: &StepLine, line: &StepLine) -> f64 {
    let losses = golden.micro_batch_losses.iter().zip(&line.micro_batch_losses);
    let norms = [
        (&golden.loss, &line.loss),
        (&golden.gradient_norm, &line.gradient_norm),
        (&golden.parameter_norm, &line.parameter_norm),
    ];
    losses.chain(norms).map(|(golden, value)| distance(*golden, *value)).fold(0.0, f64::max)
}

/// How far apart two numbers are, as a multiple of the spacing of fp32 numbers around the first: norms are added in
/// double precision, and may part by much less than one.
fn distance(golden: Real, value: Real) -> f64 {
    if golden == value {
        return 0.0;
    }
    let magnitude = (golden.0.abs() as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
    let spacing = f64::from(magnitude) - f64::from(magnitude.next_down());
    let distance = (golden.0 - value.0).abs() / spacing;
    if distance.is_nan() { ULPS_MAX } else { distance.min(ULPS_MAX) }
}

/// At most [`POINTS_MAX`] points of however many: when there are too many, neighbours become one.
struct Thinned {
    points: Vec<Point>,
    /// Values that one point stands for.
    stride: u64,
    seen: u64,
    last: Option<Point>,
    merge: fn(Point, Point) -> Point,
}

impl Thinned {
    fn new(merge: fn(Point, Point) -> Point) -> Self {
        Self { points: Vec::new(), stride: 1, seen: 0, last: None, merge }
    }

    /// Of neighbours keeps the first.
    fn first() -> Self {
        Self::new(|first, _| first)
    }

    /// Of neighbours keeps the largest, so that no peak is lost.
    fn largest() -> Self {
        Self::new(|a, b| if b.1 > a.1 { b } else { a })
    }

    /// What is not finite has no place in a picture.
    fn push(&mut self, step: u64, value: f64) {
        if value.is_nan() || value.abs() > VALUE_MAX {
            return;
        }
        let point = (step as f64, value);
        if self.seen.is_multiple_of(self.stride) {
            if self.points.len() == POINTS_MAX {
                self.points =
                    self.points.chunks(2).map(|two| (self.merge)(two[0], two[two.len() - 1])).collect();
                self.stride = self.stride.saturating_mul(2);
            }
            self.points.push(point);
        } else if let Some(open) = self.points.last_mut() {
            *open = (self.merge)(*open, point);
        }
        self.last = Some(point);
        self.seen += 1;
    }

    /// The last value is always there.
    fn finish(mut self) -> Vec<Point> {
        if let Some(last) = self.last
            && self.points.last().is_some_and(|point| point.0 < last.0)
        {
            self.points.push(last);
        }
        self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn thinned(mut curve: Thinned, values: &[f64]) -> Vec<Point> {
        values.iter().zip(1..).for_each(|(&value, step)| curve.push(step, value));
        curve.finish()
    }

    proptest! {
        #[test]
        fn long_runs_are_thinned_and_keep_both_ends_and_the_peak(length in 1usize..5000, peak: prop::sample::Index) {
            let mut values = vec![1.0; length];
            values[peak.index(length)] = 7.0;
            for curve in [Thinned::first(), Thinned::largest()] {
                let points = thinned(curve, &values);
                prop_assert!(points.len() <= POINTS_MAX + 1);
                prop_assert!(points.windows(2).all(|two| two[0].0 < two[1].0));
                prop_assert_eq!(points[points.len() - 1].0, length as f64);
            }
            let peaks = thinned(Thinned::largest(), &values);
            prop_assert!(peaks.contains(&(peak.index(length) as f64 + 1.0, 7.0)));
            prop_assert_eq!(thinned(Thinned::first(), &values)[0].0, 1.0);
        }

        #[test]
        fn a_distance_is_never_odd(golden: f64, value: f64) {
            let distance = distance(Real(golden), Real(value));
            prop_assert!((0.0..=ULPS_MAX).contains(&distance));
            prop_assert_eq!(distance == 0.0, golden == value);
        }
    }

    #[test]
    fn the_terms_of_a_loss_come_beside_it_and_are_not_without_number() {
        let mut curves = BTreeMap::new();
        for step in 1..=3 {
            let term = |index: u64| {
                let loss = Real((step * index) as f64);
                (format!("{index:03}"), LossTerm { loss, targets: 1 })
            };
            push_terms(&mut curves, step, &(step..100).map(term).collect());
        }
        assert_eq!(curves.len(), TERMS_MAX);
        let loss_terms: BTreeMap<_, _> =
            curves.into_iter().map(|(name, curve)| (name, curve.finish())).collect();
        // Of a term that a step lacks there is no point.
        assert_eq!(loss_terms["001"], [(1.0, 1.0)]);
        assert_eq!(loss_terms["003"], [(1.0, 3.0), (2.0, 6.0), (3.0, 9.0)]);
        let (one, other) = (Curves { loss_terms, ..Curves::default() }, Curves::default());
        let titles: Vec<String> = Quantity::of([&one, &other]).iter().map(Quantity::title).collect();
        assert_eq!(titles[..3], ["Loss", "Loss: 001", "Loss: 002"]);
        assert_eq!(titles.len(), TERMS_MAX + 4);
        assert_eq!(Quantity::of([&other]).len(), 4);
    }

    #[test]
    fn a_unit_is_that_of_all_runs_of_a_chart() {
        let run = |targets| Curves { loss: vec![(1.0, 2.0)], targets, ..Curves::default() };
        let unit = |runs: &[Curves]| Quantity::of(runs)[0].unit();
        assert_eq!(unit(&[run(Targets::Tokens), run(Targets::Tokens)]), "nats per token");
        assert_eq!(unit(&[run(Targets::Images)]), "nats per image");
        // What could not be run has no say.
        assert_eq!(unit(&[run(Targets::Tokens), Curves::default()]), "nats per token");
        assert_eq!(unit(&[run(Targets::Tokens), run(Targets::Images)]), "mean over its targets");
        let loss_terms = [("ar".into(), Vec::new()), ("fm".into(), Vec::new()), ("x".into(), Vec::new())];
        let units: Vec<_> =
            Quantity::of([&Curves { loss_terms: loss_terms.into(), ..run(Targets::Unknown) }])
                .iter()
                .map(Quantity::unit)
                .collect();
        assert_eq!(units[0], "weighted sum of several losses");
        assert_eq!(units[1], "nats per token, before its weight");
        assert_eq!(units[2], "mean squared error, before its weight");
        assert_eq!(units[3], "mean over its targets, before its weight");
    }

    #[test]
    fn distances_are_in_ulps_of_fp32() {
        let one_up = f64::from(1.5f32.next_up());
        assert_eq!(distance(Real(1.5), Real(one_up)), 1.0);
        assert_eq!(distance(Real(1.5), Real((1.5 + one_up) / 2.0)), 0.5);
        assert_eq!(distance(Real(f64::NAN), Real(f64::NAN)), 0.0);
        assert_eq!(distance(Real(1.0), Real(f64::INFINITY)), ULPS_MAX);
        assert_eq!(distance(Real(f64::INFINITY), Real(1.0)), ULPS_MAX);
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        assert_eq!(thinned(Thinned::first(), &[f64::NAN, 1.0, f64::INFINITY, 1e300]), [(2.0, 1.0)]);
        assert_eq!(thinned(Thinned::first(), &[f64::NAN]), []);
    }
}
