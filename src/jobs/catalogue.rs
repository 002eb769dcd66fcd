//! The jobs that there are: `jobs/jobs.yaml`, embedded, and what a site changes of it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::JobError;

const CATALOGUE: &str = include_str!("../../jobs/jobs.yaml");

/// What a job does: the template that has its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    Train,
    Verify,
    Scaling,
    Sensitivity,
    ProfileNsys,
    ProfileNcu,
}

/// A job of the catalogue.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub about: String,
    pub work: Work,
    #[serde(flatten)]
    pub values: Values,
}

/// The values of a job; a site may set each.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Values {
    pub ranks: Option<u32>,
    pub nodes: Option<u32>,
    pub time: Option<String>,
    pub requeues: Option<u32>,
    pub arguments: Option<Vec<String>>,
    pub directives: Option<Vec<String>>,
    pub plan: Option<String>,
    pub only: Option<String>,
    pub sizes: Option<Vec<u32>>,
    pub micro_batches_a_rank: Option<u32>,
    pub bucket_mb: Option<Vec<f64>>,
    pub precisions: Option<Vec<String>>,
    pub launch_skip: Option<u32>,
    pub launch_count: Option<u32>,
}

impl Values {
    /// These values, and `other`'s where these say nothing.
    fn or(self, other: Self) -> Self {
        Self {
            ranks: self.ranks.or(other.ranks),
            nodes: self.nodes.or(other.nodes),
            time: self.time.or(other.time),
            requeues: self.requeues.or(other.requeues),
            arguments: self.arguments.or(other.arguments),
            directives: self.directives.or(other.directives),
            plan: self.plan.or(other.plan),
            only: self.only.or(other.only),
            sizes: self.sizes.or(other.sizes),
            micro_batches_a_rank: self.micro_batches_a_rank.or(other.micro_batches_a_rank),
            bucket_mb: self.bucket_mb.or(other.bucket_mb),
            precisions: self.precisions.or(other.precisions),
            launch_skip: self.launch_skip.or(other.launch_skip),
            launch_count: self.launch_count.or(other.launch_count),
        }
    }
}

/// All jobs by name.
pub fn catalogue() -> Result<BTreeMap<String, Entry>, JobError> {
    serde_yaml::from_str(CATALOGUE).map_err(|error| JobError::new(format!("jobs/jobs.yaml: {error}")))
}

/// The job of this name, with the site's values on top.
pub fn find(name: &str, site: &BTreeMap<String, Values>) -> Result<Entry, JobError> {
    let mut jobs = catalogue()?;
    let known: Vec<String> =
        jobs.iter().map(|(name, entry)| format!("\n  {name:<16}{}", entry.about)).collect();
    let unknown = |what: &str, name: &str| {
        JobError::new(format!("{what}: there is no job `{name}`; there are{}", known.concat()))
    };
    if let Some(stray) = site.keys().find(|name| !jobs.contains_key(*name)) {
        return Err(unknown("jobs", stray));
    }
    if !jobs.contains_key(name) {
        return Err(unknown("--job", name));
    }
    let mut entry = jobs.remove(name).ok_or_else(|| JobError::new("no such job"))?;
    entry.values = site.get(name).cloned().unwrap_or_default().or(entry.values);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_changes_single_values() {
        let smoke: Values = serde_yaml::from_str("time: '00:02:00'").unwrap();
        let entry = find("smoke", &BTreeMap::from([("smoke".to_owned(), smoke)])).unwrap();
        assert_eq!((entry.values.time.as_deref(), entry.values.ranks), (Some("00:02:00"), Some(1)));
    }

    #[test]
    fn an_unknown_job_is_answered_with_the_known_ones() {
        let error = find("zero2", &BTreeMap::new()).unwrap_err();
        assert!(error.0.contains("`zero2`") && error.0.contains("zero1"), "{error}");
        let site = BTreeMap::from([("smok".to_owned(), Values::default())]);
        assert!(find("smoke", &site).unwrap_err().0.contains("`smok`"));
    }
}
