//! Where two runs part: events in the order in which they happen.

use std::cmp::Ordering;

use lockstep_record::{Phase, RankRange, Real};
use serde::Serialize;

use super::values::{Format, Mode, Scalar, Value, Worst};

/// What happens in a step, in that order. The first event that differs is the cause of the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Which samples each micro-batch has.
    Data,
    /// Losses.
    Forward,
    LocalGradient,
    ReducedGradient,
    /// The global gradient norm, and the clipping that follows from it.
    Norm,
    /// Learning rate and optimizer state.
    Optimizer,
    Parameters,
    Validation,
    Checkpoint,
    /// One run has no such step.
    End,
}

impl From<Phase> for Event {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Data => Self::Data,
            Phase::LocalGradient => Self::LocalGradient,
            Phase::ReducedGradient => Self::ReducedGradient,
            Phase::Norm => Self::Norm,
            Phase::Schedule | Phase::Optimizer => Self::Optimizer,
            Phase::Parameters => Self::Parameters,
        }
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::LocalGradient => "local gradient",
            Self::ReducedGradient => "reduced gradient",
            Self::Norm => "norm",
            Self::Optimizer => "optimizer",
            Self::Parameters => "parameters",
            Self::Validation => "validation",
            Self::Checkpoint => "checkpoint",
            Self::End => "end of run",
        })
    }
}

/// A place in a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// None for what holds for the whole run: its configuration. It sorts before all steps.
    pub step: Option<u64>,
    /// None with `step` None.
    pub event: Option<Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// A tensor, a column of the metrics, or a key of the configuration.
    pub what: String,
    /// Index into the flattened tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub element: Option<u64>,
    /// Ranks that hold the differing value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankRange>,
}

impl Place {
    pub fn run(what: impl Into<String>) -> Self {
        Self {
            step: None,
            event: None,
            micro_batch: None,
            what: what.into(),
            element: None,
            ranks: Vec::new(),
        }
    }

    pub fn at(step: u64, event: Event, what: impl Into<String>) -> Self {
        Self { step: Some(step), event: Some(event), ..Self::run(what) }
    }

    /// Order of events. Differences with the same key keep the order in which they were found.
    pub fn order(&self) -> (Option<u64>, Option<Event>) {
        (self.step, self.event)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.step, self.event) {
            (Some(step), Some(event)) => write!(formatter, "step {step}, {event}")?,
            _ => write!(formatter, "configuration")?,
        }
        if let Some(micro_batch) = self.micro_batch {
            write!(formatter, ", micro-batch {micro_batch}")?;
        }
        write!(formatter, ", {}", self.what)?;
        if let Some(element) = self.element {
            write!(formatter, "[{element}]")?;
        }
        if !self.ranks.is_empty() {
            write!(formatter, ", rank {}", rank_text(&self.ranks))?;
        }
        Ok(())
    }
}

/// `0-3,5`
pub fn rank_text(ranks: &[RankRange]) -> String {
    let range = |&(first, last): &RankRange| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranks.iter().map(range).collect::<Vec<_>>().join(",")
}

/// Two values that should be equal and are not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    pub place: Place,
    pub golden: Value,
    pub candidate: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ulps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Difference {
    pub fn new(place: Place, golden: Value, candidate: Value) -> Self {
        let ulps = match (&golden, &candidate) {
            (Value::Scalar(golden), Value::Scalar(candidate)) => golden.ulps(*candidate),
            _ => None,
        };
        Self { place, golden, candidate, ulps, note: None }
    }

    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: golden {}, candidate {}", self.place, self.golden, self.candidate)?;
        if let Some(ulps) = self.ulps {
            write!(formatter, ", {ulps} ulp{} apart", if ulps == 1 { "" } else { "s" })?;
        }
        self.note.as_ref().map_or(Ok(()), |note| write!(formatter, " ({note})"))
    }
}

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Equal,
    /// Not the same bits, but within the tolerance.
    Within,
    Different,
    /// There was nothing that both runs recorded, or that this mode can compare.
    NotCompared,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Equal => "equal",
            Self::Within => "within tolerance",
            Self::Different => "DIFFERENT",
            Self::NotCompared => "not compared",
        })
    }
}

/// One kind of fact about two runs, compared wherever both have it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// Pairs of values that were compared.
    pub compared: u64,
    pub differences: u64,
    pub worst: Worst,
    /// In the order of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Check {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            verdict: Verdict::NotCompared,
            compared: 0,
            differences: 0,
            worst: Worst::default(),
            first: None,
            note: None,
        }
    }

    /// Counts a pair that agreed to the bit.
    pub fn agree(&mut self) {
        self.agree_times(1);
    }

    /// Counts so many pairs that agreed to the bit.
    pub fn agree_times(&mut self, pairs: u64) {
        self.compared += pairs;
        if self.verdict == Verdict::NotCompared && pairs > 0 {
            self.verdict = Verdict::Equal;
        }
    }

    /// Counts a difference beside an earlier one of the same event.
    pub fn differ_too(&mut self) {
        self.compared += 1;
        self.differences += 1;
        self.verdict = Verdict::Different;
    }

    pub fn differ(&mut self, difference: Difference) {
        self.differ_too();
        if self.first.as_ref().is_none_or(|first| difference.place.order() < first.place.order()) {
            self.first = Some(difference);
        }
    }

    /// Adds what another check of the same kind found in later values.
    pub fn absorb(&mut self, later: Self) {
        self.compared += later.compared;
        self.differences += later.differences;
        self.worst.absorb(&later.worst);
        self.verdict = match (self.verdict, later.verdict) {
            (Verdict::NotCompared, verdict) | (verdict, Verdict::NotCompared) => verdict,
            (Verdict::Different, _) | (_, Verdict::Different) => Verdict::Different,
            (Verdict::Within, _) | (_, Verdict::Within) => Verdict::Within,
            (Verdict::Equal, Verdict::Equal) => Verdict::Equal,
        };
        if let Some(found) = later.first
            && self.first.as_ref().is_none_or(|first| found.place.order() < first.place.order())
        {
            self.first = Some(found);
        }
        self.note = self.note.take().or(later.note);
    }

    /// Compares two things that have no distance: they agree or they do not.
    pub fn same<T: PartialEq>(&mut self, golden: &T, candidate: &T, difference: impl FnOnce() -> Difference) {
        if golden == candidate { self.agree() } else { self.differ(difference()) }
    }

    /// Compares two values, and says whether they passed.
    pub fn scalars(&mut self, mode: Mode, golden: Scalar, candidate: Scalar, place: impl FnOnce() -> Place) {
        if golden == candidate {
            return self.agree();
        }
        match self.note_scalars(mode, golden, candidate) {
            true => self.agree_within(),
            false => {
                let difference = Difference::new(place(), Value::Scalar(golden), Value::Scalar(candidate));
                let distance = (golden.to_f64() - candidate.to_f64()).abs();
                self.differ(match mode.allowed(golden) {
                    Some(allowed) => difference.with_note(times(distance, allowed)),
                    None => difference,
                });
            }
        }
    }

    /// [`Check::scalars`] beside an earlier difference of the same event: tensors differ by the million, and only the
    /// first needs a place.
    pub fn scalars_too(&mut self, mode: Mode, golden: Scalar, candidate: Scalar) {
        match self.note_scalars(mode, golden, candidate) {
            true => self.agree_within(),
            false => self.differ_too(),
        }
    }

    /// Notes how far apart two values are; true if that is near enough.
    fn note_scalars(&mut self, mode: Mode, golden: Scalar, candidate: Scalar) -> bool {
        self.worst.note(golden, candidate);
        if let Some(allowed) = mode.allowed(golden) {
            self.worst.note_share((golden.to_f64() - candidate.to_f64()).abs(), allowed);
        }
        mode.accepts(golden, candidate)
    }

    /// Compares a distance between two tensors with its limit.
    pub fn within(&mut self, allowed: f64, distance: f64, place: impl FnOnce() -> Place) {
        if distance == 0.0 {
            return self.agree();
        }
        self.worst.absolute = self.worst.absolute.max(distance).min(f64::MAX);
        self.worst.note_share(distance, allowed);
        // A distance that is NaN is beyond every limit.
        if !matches!(distance.partial_cmp(&allowed), Some(Ordering::Less | Ordering::Equal)) {
            let (limit, found) = (format!("within {allowed:.2e}"), format!("{distance:.2e} away"));
            let difference = Difference::new(place(), Value::text(limit), Value::text(found));
            return self.differ(difference.with_note(format!("Euclidean, {}", times(distance, allowed))));
        }
        self.agree_within();
    }

    fn agree_within(&mut self) {
        self.compared += 1;
        if self.verdict != Verdict::Different {
            self.verdict = Verdict::Within;
        }
    }

    /// Compares two recorded numbers that were computed in `format`.
    pub fn reals(&mut self, mode: Mode, values: (Real, Real), format: Format, place: impl FnOnce() -> Place) {
        let both = |format| (Scalar::of_real(values.0, format), Scalar::of_real(values.1, format));
        let (mut golden, mut candidate) = both(format);
        if golden.format != candidate.format {
            (golden, candidate) = both(Format::F64);
        }
        self.scalars(mode, golden, candidate, place);
    }
}

/// How far beyond its limit a distance is.
fn times(distance: f64, allowed: f64) -> String {
    match distance / allowed {
        _ if allowed == 0.0 => "its bits should be the same".into(),
        times if times < 1e4 => format!("{times:.2} times the limit of {allowed:.2e}"),
        _ => format!("over 10,000 times the limit of {allowed:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_first_in_time_not_in_order_of_discovery() {
        let mut check = Check::new("x");
        let differ =
            |step, event| Difference::new(Place::at(step, event, "w"), Value::text(1), Value::text(2));
        check.differ(differ(3, Event::Parameters));
        check.differ(differ(3, Event::ReducedGradient));
        check.differ(differ(4, Event::Data));
        assert_eq!(check.first, Some(differ(3, Event::ReducedGradient)));
        assert!(Place::run("seed").order() < Place::at(0, Event::Data, "").order());
    }

    #[test]
    fn checks_of_parts_make_the_check_of_the_whole() {
        let differ =
            |step| Difference::new(Place::at(step, Event::Forward, "w"), Value::text(1), Value::text(2));
        let (mut whole, mut parts) = (Check::new("x"), [Check::new("x"), Check::new("x"), Check::new("x")]);
        for (part, step) in [(0, 4), (2, 3), (2, 5)] {
            parts[part].differ(differ(step));
            whole.differ(differ(step));
        }
        parts[1].agree();
        whole.agree();
        let mut joined = Check::new("x");
        parts.into_iter().for_each(|part| joined.absorb(part));
        assert_eq!(joined, whole);
    }

    #[test]
    fn a_check_that_saw_nothing_is_not_a_pass() {
        assert_eq!(Check::new("x").verdict, Verdict::NotCompared);
    }

    #[test]
    fn ranks_are_written_as_ranges() {
        assert_eq!(rank_text(&[(0, 3), (5, 5)]), "0-3,5");
    }
}
