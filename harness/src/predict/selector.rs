//! Which measurements are meant: `link=1gbit,ranks=4`.

use super::measurement::{Measurement, Reduction, Strategy};

/// Conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Workload(String),
    Link(String),
    Ranks(u32),
    Strategy(Strategy),
    Reduction(Reduction),
    Overlap(bool),
    MicroBatches(u32),
    Buckets(u32),
}

impl std::str::FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl std::str::FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("`{text}` must be KEY=VALUE, such as ranks=4"))?;
        let number = || value.parse::<u32>().map_err(|_| format!("{key}: `{value}` is not a whole number"));
        let flag = || value.parse::<bool>().map_err(|_| format!("{key}: `{value}` is not true or false"));
        Ok(match key {
            "workload" => Self::Workload(value.into()),
            "link" => Self::Link(value.into()),
            "ranks" => Self::Ranks(number()?),
            "strategy" => Self::Strategy(value.parse()?),
            "reduction" => Self::Reduction(value.parse()?),
            "overlap" => Self::Overlap(flag()?),
            "micro_batches" => Self::MicroBatches(number()?),
            "buckets" => Self::Buckets(number()?),
            _ => {
                return Err(format!(
                    "`{key}` is none of workload, link, ranks, strategy, reduction, overlap, micro_batches, buckets"
                ));
            }
        })
    }
}

impl Selector {
    pub fn matches(&self, measurement: &Measurement) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Workload(name) => measurement.workload == *name,
            Condition::Link(name) => measurement.link == *name,
            Condition::Ranks(ranks) => measurement.ranks == *ranks,
            Condition::Strategy(strategy) => measurement.strategy == *strategy,
            Condition::Reduction(reduction) => measurement.reduction == *reduction,
            Condition::Overlap(overlap) => measurement.overlap == *overlap,
            Condition::MicroBatches(number) => measurement.micro_batches == *number,
            Condition::Buckets(number) => measurement.buckets == *number,
        })
    }
}
