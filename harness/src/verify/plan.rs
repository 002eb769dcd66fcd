//! The plan: which runs, how each is launched, and what is expected of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_record::RunDir;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected};
use serde::{Deserialize, Deserializer};

use crate::compare::{Mode, Tolerance};
use crate::plan_file::{
    PlanError, TIMEOUT_DEFAULT_S, check_name, check_ranks, find_config, folder_of, matches, read_yaml,
    seconds,
};
use crate::tolerance::{RUNS_DEFAULT, RUNS_MAX, RUNS_MIN};

/// Plans may extend one another this deep.
const EXTENDS_MAX: usize = 8;
/// As it is written in YAML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    title: Option<String>,
    /// A plan whose groups come first; a group of the same name here adds cases to it.
    extends: Option<PathBuf>,
    timeout_s: Option<f64>,
    launcher: Option<Vec<String>>,
    #[serde(default)]
    groups: Vec<GroupFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    name: String,
    config: Option<PathBuf>,
    #[serde(default)]
    set: Vec<String>,
    golden: Option<GoldenFile>,
    /// For cases with `tolerance: auto`.
    perturbed_runs: Option<u32>,
    #[serde(default)]
    cases: Vec<CaseFile>,
}

/// A run to make, or the path of one that is stored.
#[derive(Debug)]
enum GoldenFile {
    Stored(PathBuf),
    Case(Box<CaseFile>),
}

impl<'de> Deserialize<'de> for GoldenFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = GoldenFile;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a case, or the path of a stored golden run")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<GoldenFile, E> {
                Ok(GoldenFile::Stored(path.into()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<GoldenFile, A::Error> {
                let case = CaseFile::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(GoldenFile::Case(Box::new(case)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    name: Option<String>,
    against: Option<String>,
    #[serde(default)]
    set: Vec<String>,
    #[serde(default)]
    stages: Vec<Stage>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    requires: Vec<String>,
    ranks: Option<u32>,
    strategy: Option<String>,
    timeout_s: Option<f64>,
    tolerance: Option<ToleranceFile>,
}

/// `auto`, or numbers.
#[derive(Clone, Copy, Debug)]
enum ToleranceFile {
    Auto,
    Numbers(Numbers),
}

impl<'de> Deserialize<'de> for ToleranceFile {
    /// By hand, since an untagged enum does not say what is wrong.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ToleranceFile;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("`auto`, or `rtol`, `atol` and `parameter_norm_atol`")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<ToleranceFile, E> {
                match word {
                    "auto" => Ok(ToleranceFile::Auto),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<ToleranceFile, M::Error> {
                Numbers::deserialize(MapAccessDeserializer::new(map)).map(ToleranceFile::Numbers)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    #[serde(default)]
    rtol: f64,
    #[serde(default)]
    atol: f64,
    parameter_norm_atol: Option<f64>,
}

/// A plan that has been checked.
#[derive(Clone, Debug)]
pub struct Plan {
    pub title: String,
    /// Folder of the plan's file.
    pub folder: PathBuf,
    /// Command that starts N ranks, `{ranks}` for N.
    pub launcher: Option<Vec<String>>,
    pub groups: Vec<Group>,
}

/// One golden run and the candidates that must equal it.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub config: PathBuf,
    pub set: Vec<String>,
    pub golden: Case,
    /// How often the golden run is repeated with perturbations, where a case needs its envelope.
    pub perturbed_runs: u32,
    pub cases: Vec<Case>,
}

/// One run: launches of our trainer one after another, or one command of a foreign one.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// The case that it is compared with: `golden`, or an earlier one. None for the golden run itself.
    pub against: Option<String>,
    pub work: Work,
    pub timeout: Duration,
    pub mode: Mode,
}

#[derive(Clone, Debug)]
pub enum Work {
    /// Nothing: it is a golden run that was stored.
    Stored(PathBuf),
    /// All but the first resume where the one before it stopped.
    Stages(Vec<Stage>),
    Foreign {
        /// With `{golden}`, `{run_dir}`, `{python}`, `{plan_dir}` and `{trainer}` for their paths.
        command: Vec<String>,
        /// Succeeds where the command can run; elsewhere the case is skipped.
        requires: Vec<String>,
        ranks: u32,
        strategy: String,
    },
}

/// One launch of the trainer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    pub ranks: u32,
    pub strategy: String,
    #[serde(default)]
    pub set: Vec<String>,
    pub stop_after: Option<u64>,
}

impl Group {
    /// Whether a case is judged by the golden run's envelope.
    pub fn needs_envelope(&self) -> bool {
        self.cases.iter().any(|case| case.mode == Mode::Auto)
    }
}

impl Case {
    /// Processes or worlds that are started, one after another.
    pub fn launches(&self) -> usize {
        match &self.work {
            Work::Stored(_) => 0,
            Work::Stages(stages) => stages.len(),
            Work::Foreign { .. } => 1,
        }
    }

    /// Whether it is another trainer's run.
    pub fn is_foreign(&self) -> bool {
        matches!(self.work, Work::Foreign { .. })
    }

    /// For example `4 → 3`.
    pub fn ranks(&self) -> String {
        match &self.work {
            Work::Stored(_) => "—".into(),
            Work::Stages(stages) => arrows(stages.iter().map(|stage| stage.ranks.to_string())),
            Work::Foreign { ranks, .. } => ranks.to_string(),
        }
    }

    /// For example `ddp → zero1`, `ddp native` or `ddp bf16`.
    pub fn strategy(&self) -> String {
        let name = |stage: &Stage| {
            let approximate = stage.set.iter().filter_map(|set| approximation(set));
            [stage.strategy.as_str()].into_iter().chain(approximate).collect::<Vec<_>>().join(" ")
        };
        match &self.work {
            Work::Stored(_) => "stored".into(),
            Work::Stages(stages) => arrows(stages.iter().map(name)),
            Work::Foreign { strategy, .. } => strategy.clone(),
        }
    }
}

/// What a setting that makes the sum inexact is called in the table.
fn approximation(set: &str) -> Option<&str> {
    let value = |key: &str| set.strip_prefix(key)?.strip_prefix('=');
    let reduction = value("parallel.reduction").filter(|&reduction| reduction == "native");
    reduction.or_else(|| value("parallel.compression").filter(|&compression| compression != "none"))
}

/// Joins what changes; what stays the same is said once.
fn arrows(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<_> = parts.collect();
    parts.dedup();
    parts.join("→")
}

impl Plan {
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        load_at(path, EXTENDS_MAX)
    }

    /// Keeps the cases whose `group/name` matches, and the cases that they are compared with.
    pub fn select(&mut self, pattern: &str) {
        for group in &mut self.groups {
            let wanted = |case: &Case| matches(pattern, &format!("{}/{}", group.name, case.name));
            let mut keep: Vec<String> =
                group.cases.iter().filter(|case| wanted(case)).map(|case| case.name.clone()).collect();
            for case in group.cases.iter().rev() {
                if keep.contains(&case.name) {
                    keep.extend(case.against.clone());
                }
            }
            group.cases.retain(|case| keep.contains(&case.name));
        }
        self.groups.retain(|group| !group.cases.is_empty());
    }
}

fn load_at(path: &Path, depth: usize) -> Result<Plan, PlanError> {
    let fail = |problem: String| PlanError::File { path: path.to_owned(), problem };
    let file: PlanFile = read_yaml(path).map_err(&fail)?;
    let folder = folder_of(path).map_err(&fail)?;
    let mut plan = match &file.extends {
        None => Plan { title: String::new(), folder: folder.clone(), launcher: None, groups: Vec::new() },
        Some(_) if depth == 0 => {
            return Err(fail(format!("`extends` goes more than {EXTENDS_MAX} deep: is it a circle?")));
        }
        Some(base) => load_at(&folder.join(base), depth - 1)?,
    };
    plan.title = file.title.unwrap_or(plan.title);
    plan.launcher = file.launcher.or(plan.launcher);
    plan.folder = folder;
    let timeout = seconds(file.timeout_s.unwrap_or(TIMEOUT_DEFAULT_S)).map_err(&fail)?;
    for group in file.groups {
        let name = group.name.clone();
        add_group(&mut plan, group, timeout).map_err(|problem| fail(format!("group `{name}`: {problem}")))?;
    }
    if plan.groups.is_empty() {
        return Err(fail("has no groups, so there is nothing to run".into()));
    }
    Ok(plan)
}

fn add_group(plan: &mut Plan, file: GroupFile, timeout: Duration) -> Result<(), String> {
    check_name(&file.name)?;
    let index = match plan.groups.iter().position(|group| group.name == file.name) {
        Some(_)
            if file.golden.is_some()
                || file.config.is_some()
                || file.perturbed_runs.is_some()
                || !file.set.is_empty() =>
        {
            return Err("extends a group of the same name: it can only add cases".into());
        }
        Some(index) => index,
        None => {
            let config = find_config(&plan.folder, &file.config.ok_or("needs a `config`")?)?;
            let golden = file.golden.ok_or("needs a `golden` run")?;
            let golden = match golden {
                GoldenFile::Case(case) => make_case("golden", *case, timeout, &[])?,
                GoldenFile::Stored(path) => stored(&plan.folder, &path, timeout)?,
            };
            let perturbed_runs = perturbed_runs(file.perturbed_runs)?;
            let group =
                Group { name: file.name, config, set: file.set, golden, perturbed_runs, cases: Vec::new() };
            plan.groups.push(group);
            plan.groups.len() - 1
        }
    };
    let group = &mut plan.groups[index];
    for case in file.cases {
        let name = case.name.clone().ok_or("a case needs a `name`")?;
        check_name(&name)?;
        let mut earlier: Vec<&str> = group.cases.iter().map(|case| case.name.as_str()).collect();
        earlier.push("golden");
        if earlier.contains(&name.as_str()) {
            return Err(format!("two cases are called `{name}`"));
        }
        let case = make_case(&name, case, timeout, &earlier)
            .map_err(|problem| format!("case `{name}`: {problem}"))?;
        check_auto(group, &case).map_err(|problem| format!("case `{name}`: {problem}"))?;
        group.cases.push(case);
    }
    if group.cases.is_empty() {
        return Err("has no cases".into());
    }
    Ok(())
}

/// A golden run that is there already: `path` starts in the plan's folder.
fn stored(folder: &Path, path: &Path, timeout: Duration) -> Result<Case, String> {
    let path = folder.join(path);
    if !RunDir::new(&path).golden_header().is_file() {
        return Err(format!(
            "golden: {} is no stored golden run: store one with `lockstep-harness bless RUN --into {}`",
            path.display(),
            path.display()
        ));
    }
    Ok(Case { name: "golden".into(), against: None, work: Work::Stored(path), timeout, mode: Mode::Exact })
}

fn perturbed_runs(number: Option<u32>) -> Result<u32, String> {
    let number = number.unwrap_or(RUNS_DEFAULT);
    match (RUNS_MIN as u32..=RUNS_MAX).contains(&number) {
        true => Ok(number),
        false => Err(format!("perturbed_runs: {number} is not in {RUNS_MIN}..={RUNS_MAX}")),
    }
}

/// An envelope is the golden run's, and only our trainer can repeat it with perturbations.
fn check_auto(group: &Group, case: &Case) -> Result<(), String> {
    if case.mode != Mode::Auto {
        return Ok(());
    }
    if case.against.as_deref() != Some("golden") {
        return Err("`tolerance: auto` is for cases that are compared with the golden run".into());
    }
    match &group.golden.work {
        Work::Stages(stages) if stages.len() == 1 => Ok(()),
        Work::Stages(_) => Err("`tolerance: auto` needs a golden run in one stage".into()),
        Work::Stored(path) if RunDir::new(path).tolerance().is_dir() => Ok(()),
        Work::Stored(path) => Err(format!(
            "`tolerance: auto` needs an envelope, and {} was stored without one: make it with `lockstep-harness tolerance RUN` \
             before `lockstep-harness bless`",
            path.display()
        )),
        Work::Foreign { .. } => {
            Err("`tolerance: auto` needs a golden run of this trainer: a command cannot be perturbed".into())
        }
    }
}

/// `earlier` are the cases that this one may be compared with; none for the golden run.
fn make_case(name: &str, file: CaseFile, timeout: Duration, earlier: &[&str]) -> Result<Case, String> {
    let against = match file.against {
        _ if earlier.is_empty() => None,
        None => Some("golden".to_owned()),
        Some(other) if earlier.contains(&other.as_str()) => Some(other),
        Some(other) => return Err(format!("against: no earlier case is called `{other}`")),
    };
    let mode = match file.tolerance {
        None => Mode::Exact,
        Some(ToleranceFile::Auto) => Mode::Auto,
        Some(ToleranceFile::Numbers(Numbers { rtol, atol, parameter_norm_atol })) => {
            let bars = [rtol, atol, parameter_norm_atol.unwrap_or(0.0)];
            if bars.iter().any(|bar| !bar.is_finite() || *bar < 0.0) {
                return Err("tolerance: its numbers must be finite and not negative".into());
            }
            Mode::Tolerance(Tolerance { rtol, atol, parameter_norm_atol })
        }
    };
    let work = match (file.stages.is_empty(), file.command.is_empty()) {
        (false, true) => Work::Stages(make_stages(file.stages, &file.set)?),
        (true, false) => Work::Foreign {
            command: file.command,
            requires: file.requires,
            ranks: file.ranks.unwrap_or(1),
            strategy: file.strategy.unwrap_or_else(|| "foreign".into()),
        },
        _ => return Err("needs either `stages` or a `command`".into()),
    };
    let timeout = file.timeout_s.map_or(Ok(timeout), seconds)?;
    Ok(Case { name: name.to_owned(), against, work, timeout, mode })
}

fn make_stages(mut stages: Vec<Stage>, set: &[String]) -> Result<Vec<Stage>, String> {
    let last = stages.len() - 1;
    for (index, stage) in stages.iter_mut().enumerate() {
        check_ranks(stage.ranks).map_err(|problem| format!("stage {}: {problem}", index + 1))?;
        if index < last && stage.stop_after.is_none() {
            return Err(format!(
                "stage {}: needs `stop_after`, or the next one has nothing to resume",
                index + 1
            ));
        }
        stage.set.splice(0..0, set.iter().cloned());
    }
    Ok(stages)
}

#[cfg(test)]
mod tests;
