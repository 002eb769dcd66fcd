//! The catalogue of planted bugs: `harness/plans/zoo.yaml`, read and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bisect::Phase;
use crate::plan_file::{
    PlanError, TIMEOUT_DEFAULT_S, check_name, check_ranks, find_config, folder_of, matches, read_yaml,
    seconds,
};
use crate::verify::Stage;

/// As it is written in YAML.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ZooFile {
    title: String,
    timeout_s: Option<f64>,
    trainings: BTreeMap<String, TrainingFile>,
    launches: BTreeMap<String, Vec<Stage>>,
    bugs: Vec<BugFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainingFile {
    config: PathBuf,
    #[serde(default)]
    set: Vec<OneOrMany>,
    golden: String,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BugFile {
    name: String,
    group: String,
    models: String,
    at: String,
    training: Option<String>,
    launch: String,
    #[serde(default)]
    set: Vec<String>,
    answer: AnswerFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerFile {
    step: u64,
    phase: Phase,
    tensor: Option<OneOrMany>,
    exit: Option<i32>,
    says: Option<String>,
}

/// A list within a list stands for its members, so that trainings can share settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A catalogue that has been checked.
#[derive(Clone, Debug)]
pub struct Zoo {
    pub title: String,
    pub timeout: Duration,
    pub trainings: BTreeMap<String, Training>,
    pub bugs: Vec<Bug>,
}

/// What is trained, and how it is launched when no bug is planted.
#[derive(Clone, Debug)]
pub struct Training {
    pub config: PathBuf,
    pub set: Vec<String>,
    pub golden: Vec<Stage>,
    /// Variables of every launch; `{trainer_dir}` stands for the trainer's folder.
    pub environment: BTreeMap<String, String>,
}

/// One planted bug.
#[derive(Clone, Debug)]
pub struct Bug {
    /// As `lockstep train --mutate` takes it.
    pub name: String,
    pub group: String,
    /// The report that it stands for.
    pub models: String,
    /// The file in which it is planted.
    pub at: String,
    pub training: String,
    /// Name of its launch.
    pub launch: String,
    pub stages: Vec<Stage>,
    pub expected: Expected,
}

/// What the harness must answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The first step that differs, or that is not made.
    pub step: u64,
    pub phase: Phase,
    /// Names or patterns, one of which must match; empty where any will do.
    pub tensors: Vec<String>,
    /// Of a run that must fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// What such a run must say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
}

impl Zoo {
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let fail = |problem: String| PlanError::File { path: path.to_owned(), problem };
        let file: ZooFile = read_yaml(path).map_err(fail)?;
        let folder = folder_of(path).map_err(fail)?;
        Self::of(file, &folder).map_err(fail)
    }

    fn of(file: ZooFile, folder: &Path) -> Result<Self, String> {
        let ZooFile { title, timeout_s, trainings, launches, bugs } = file;
        let timeout = seconds(timeout_s.unwrap_or(TIMEOUT_DEFAULT_S))?;
        for (name, stages) in &launches {
            check_launch(stages).map_err(|problem| format!("launch `{name}`: {problem}"))?;
        }
        let launch = |name: &str| launches.get(name).cloned().ok_or(format!("there is no launch `{name}`"));
        let mut zoo = Self { title, timeout, trainings: BTreeMap::new(), bugs: Vec::new() };
        for (name, TrainingFile { config, set, golden, environment }) in trainings {
            let of = |problem: String| format!("training `{name}`: {problem}");
            check_name(&name).map_err(of)?;
            environment.keys().try_for_each(|variable| check_variable(variable)).map_err(of)?;
            let config = find_config(folder, &config).map_err(of)?;
            let set = set.into_iter().flat_map(OneOrMany::into_list).collect();
            let golden = launch(&golden).map_err(of)?;
            zoo.trainings.insert(name.clone(), Training { config, set, golden, environment });
        }
        for bug in bugs {
            let name = bug.name.clone();
            let bug = zoo.bug(bug, &launch).map_err(|problem| format!("bug `{name}`: {problem}"))?;
            zoo.bugs.push(bug);
        }
        match zoo.bugs.is_empty() {
            true => Err("has no bugs, so there is nothing to run".into()),
            false => Ok(zoo),
        }
    }

    fn bug(&self, file: BugFile, launch: &dyn Fn(&str) -> Result<Vec<Stage>, String>) -> Result<Bug, String> {
        check_name(&file.name)?;
        if self.bugs.iter().any(|bug| bug.name == file.name) {
            return Err("it is there twice".into());
        }
        let training = file.training.unwrap_or_else(|| "gpt".into());
        if !self.trainings.contains_key(&training) {
            return Err(format!("there is no training `{training}`"));
        }
        let mut stages = launch(&file.launch)?;
        stages.iter_mut().for_each(|stage| stage.set.extend(file.set.iter().cloned()));
        let AnswerFile { step, phase, tensor, exit, says } = file.answer;
        let named = tensor.map_or_else(Vec::new, OneOrMany::into_list);
        let tensors = if named == ["any"] { Vec::new() } else { named };
        if phase != Phase::Outcome && (exit.is_some() || says.is_some()) {
            return Err("`exit` and `says` are for bugs whose phase is outcome".into());
        }
        let expected = Expected { step, phase, tensors, exit, says };
        let BugFile { name, group, models, at, launch, .. } = file;
        Ok(Bug { name, group, models, at, training, launch, stages, expected })
    }

    /// Keeps the bugs whose `group/name` matches one of the patterns; without any, all. A pattern that matches none is an
    /// error.
    pub fn select(&mut self, patterns: &[String]) -> Result<(), String> {
        let fits = |pattern: &String, bug: &Bug| matches(pattern, &format!("{}/{}", bug.group, bug.name));
        let useless = |pattern: &&String| !self.bugs.iter().any(|bug| fits(pattern, bug));
        if let Some(pattern) = patterns.iter().find(useless) {
            return Err(pattern.clone());
        }
        self.bugs.retain(|bug| patterns.is_empty() || patterns.iter().any(|pattern| fits(pattern, bug)));
        Ok(())
    }
}

/// Anything else would be taken for a program, or for an option, by what sets it.
fn check_variable(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    match name.starts_with(|first: char| first.is_ascii_uppercase()) && name.chars().all(fine) {
        true => Ok(()),
        false => Err(format!("environment: `{name}` is no name of a variable")),
    }
}

fn check_launch(stages: &[Stage]) -> Result<(), String> {
    let Some((_, earlier)) = stages.split_last() else { return Err("has no stage".into()) };
    stages.iter().try_for_each(|stage| check_ranks(stage.ranks).map(drop))?;
    match earlier.iter().all(|stage| stage.stop_after.is_some()) {
        true => Ok(()),
        false => {
            Err("all stages but the last need `stop_after`, or the next one has nothing to resume".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One bug; `with` replaces a piece of it.
    fn zoo(with: (&str, &str)) -> Result<Zoo, String> {
        let text = "
title: t
trainings:
  gpt: { config: c.yaml, set: [[a=1, b=2], c=3], golden: one }
launches:
  one: [{ ranks: 1, strategy: single }]
  two: [{ ranks: 2, strategy: ddp, stop_after: 3 }, { ranks: 3, strategy: zero1 }]
bugs:
  - { name: b, group: g, models: m, at: f.rs, launch: two, set: [d=4], answer: { step: 3, phase: norm, tensor: any } }
";
        assert!(text.contains(with.0), "{}", with.0);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("c.yaml"), "{}").unwrap();
        let file = crate::plan_file::parse(&text.replace(with.0, with.1))?;
        Zoo::of(file, folder.path())
    }

    #[test]
    fn settings_are_flattened_and_added_to_every_stage() {
        let zoo = zoo(("", "")).unwrap();
        assert_eq!(zoo.trainings["gpt"].set, ["a=1", "b=2", "c=3"]);
        assert!(zoo.bugs[0].stages.iter().all(|stage| stage.set == ["d=4"]));
        let expected = Expected { step: 3, phase: Phase::Norm, tensors: Vec::new(), exit: None, says: None };
        assert_eq!(zoo.bugs[0].expected, expected);
    }

    #[test]
    fn patterns_select_and_one_that_selects_nothing_is_refused() {
        let selected = |patterns: &[&str]| {
            let mut zoo = zoo(("", "")).unwrap();
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            zoo.select(&patterns).map(|()| zoo.bugs.len())
        };
        assert_eq!([selected(&[]), selected(&["g/"]), selected(&["g*b", "/b"])], [Ok(1), Ok(1), Ok(1)]);
        assert_eq!(selected(&["g/b", "h/"]), Err("h/".into()));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        for (old, new, problem) in [
            ("golden: one", "golden: none", "training `gpt`: there is no launch `none`"),
            ("c.yaml", "d.yaml", "no such file"),
            ("launch: two", "launch: three", "bug `b`: there is no launch `three`"),
            ("launch: two", "launch: two, training: resnet", "bug `b`: there is no training `resnet`"),
            (", stop_after: 3", "", "launch `two`: all stages but the last need `stop_after`"),
            ("tensor: any", "exit: 1", "bug `b`: `exit` and `says` are for bugs whose phase is outcome"),
            ("phase: norm", "phase: forwards", "unknown variant `forwards`"),
            ("models: m,", "", "missing field `models`"),
            ("ranks: 2", "ranks: 0", "0 ranks"),
            ("name: b", "name: ../b", "is not a name"),
            ("golden: one", "golden: one, environment: { -u: x }", "`-u` is no name of a variable"),
        ] {
            let error = zoo((old, new)).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
