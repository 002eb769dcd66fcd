//! The clean campaign: runs without a bug, drawn over all that must not change one bit. Whatever the harness finds in them
//! is a false alarm.

mod draw;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lockstep_record::{RunDir, exit};
use serde::Serialize;

use super::catalogue::Training;
use super::runs::in_parallel;
use super::{Clean, Visit};
use crate::bisect::bisect_records;
use crate::compare::{Mode, compare};
use crate::report::one_line;
use crate::verify::Stage;
use draw::{RUNS_PER_TRAINING, launches, training};

/// What became of one run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "why")]
pub enum Verdict {
    Equal,
    /// What was found where nothing is to be found.
    FalseAlarm(String),
    /// Nothing is known.
    CouldNotRun(String),
}

/// One run of the campaign.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub run: usize,
    /// What was trained.
    pub training: Vec<String>,
    /// For example `2 ddp until 3, 4 zero1`.
    pub launches: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub seconds: f64,
}

/// Everything about one campaign.
#[derive(Clone, Debug, Serialize)]
pub struct CleanReport {
    pub seed: u64,
    pub planted: Option<String>,
    pub runs: usize,
    pub false_alarms: usize,
    pub could_not_run: usize,
    pub seconds: f64,
    pub rows: Vec<Row>,
}

/// Runs the campaign: golden runs on one process, and runs that must equal them.
pub(super) fn campaign(visit: &Visit, clean: &Clean, plan: &Path, progress: &mut dyn Write) -> CleanReport {
    let start = Instant::now();
    let configs = plan.parent().unwrap_or(Path::new(".")).join("../../configs");
    let alone = Stage { ranks: 1, strategy: "single".into(), set: Vec::new(), stop_after: None };
    let golden = |index: usize| {
        let training = drawn(clean.seed, index * RUNS_PER_TRAINING, &configs);
        let folder = visit.folder.join(format!("golden-{index:03}"));
        visit.runner.clean(&training, std::slice::from_ref(&alone), &folder).map(|ran| ran.run)
    };
    let goldens = in_parallel(clean.runs.div_ceil(RUNS_PER_TRAINING), visit.jobs, golden, |_, _| {});
    let work = |run: usize| {
        let began = Instant::now();
        let stages = launches(clean.seed, run).stages;
        let training = drawn(clean.seed, run, &configs);
        let verdict = judge(visit, clean, run, &training, &stages, &goldens[run / RUNS_PER_TRAINING]);
        let launches = stages.iter().map(text_of).collect::<Vec<_>>().join(", ");
        Row { run, training: training.set, launches, verdict, seconds: began.elapsed().as_secs_f64() }
    };
    let mut finished = 0;
    let told = |_: usize, row: &Row| {
        finished += 1;
        // Nobody may be listening.
        let _ = writeln!(
            progress,
            "{finished}/{} run {}, {}: {}",
            clean.runs,
            row.run,
            row.launches,
            row.outcome()
        );
    };
    let rows = in_parallel(clean.runs, visit.jobs, work, told);
    CleanReport {
        seed: clean.seed,
        planted: clean.plant.clone(),
        runs: rows.len(),
        false_alarms: rows.iter().filter(|row| matches!(row.verdict, Verdict::FalseAlarm(_))).count(),
        could_not_run: rows.iter().filter(|row| matches!(row.verdict, Verdict::CouldNotRun(_))).count(),
        seconds: start.elapsed().as_secs_f64(),
        rows,
    }
}

fn drawn(seed: u64, run: usize, configs: &Path) -> Training {
    let trained = training(seed, run);
    let config = configs.join(trained.kind.config());
    let every = ["checkpoint.every=0", "evaluate.every=2", "record.local_gradients=true"].map(String::from);
    let set = trained.set.into_iter().chain(every).collect();
    Training { config, set, golden: Vec::new(), environment: BTreeMap::new() }
}

fn text_of(stage: &Stage) -> String {
    let until = stage.stop_after.map_or_else(String::new, |step| format!(" until {step}"));
    format!("{} {}{until}", stage.ranks, stage.strategy)
}

fn judge(
    visit: &Visit,
    clean: &Clean,
    run: usize,
    training: &Training,
    stages: &[Stage],
    golden: &Result<RunDir, String>,
) -> Verdict {
    let folder = visit.folder.join(format!("run-{run:04}"));
    let golden = match golden {
        Ok(golden) => golden.path(),
        Err(problem) => return Verdict::CouldNotRun(format!("its golden run: {problem}")),
    };
    let ran = match &clean.plant {
        Some(bug) => visit.runner.run(training, stages, Some(bug), &folder),
        None => visit.runner.clean(training, stages, &folder),
    };
    let verdict = ran.and_then(|ran| alarm(golden, ran.run.path()));
    match verdict {
        Ok(None) => {
            // Only room is at stake.
            let _ = std::fs::remove_dir_all(&folder);
            Verdict::Equal
        }
        Ok(Some(alarm)) => Verdict::FalseAlarm(alarm),
        Err(problem) => Verdict::CouldNotRun(problem),
    }
}

/// What either way of looking finds: the comparison of everything, and the search for the first difference.
fn alarm(golden: &Path, candidate: &Path) -> Result<Option<String>, String> {
    if let Some(finding) = bisect_records(golden, candidate).map_err(|error| format!("{error:#}"))? {
        return Ok(Some(one_line(&finding.sentence)));
    }
    let comparison = compare(golden, candidate, Mode::Exact).map_err(|error| error.to_string())?;
    match (comparison.passed(), comparison.first_difference()) {
        (true, _) => Ok(None),
        (false, difference) => Ok(Some(difference.map(ToString::to_string).unwrap_or_default())),
    }
}

impl Row {
    fn outcome(&self) -> String {
        match &self.verdict {
            Verdict::Equal => "equal".into(),
            Verdict::FalseAlarm(why) => format!("FALSE ALARM: {why}"),
            Verdict::CouldNotRun(why) => format!("COULD NOT RUN: {}", one_line(why)),
        }
    }
}

impl CleanReport {
    pub fn exit_code(&self) -> i32 {
        match () {
            () if self.false_alarms > 0 => exit::DIFFERENT,
            () if self.could_not_run > 0 || self.runs == 0 => exit::CASE_FAILED,
            () => exit::OK,
        }
    }

    /// The runs by ranks and strategy of their first launch, what was no success, and the sum.
    pub fn text(&self) -> String {
        let mut text = format!("{:12} {:>6} {:>8} {:>13}\n", "launch", "runs", "resumed", "false alarms");
        for (name, runs, resumed, alarms) in self.kinds() {
            let _ = writeln!(text, "{name:12} {runs:>6} {resumed:>8} {alarms:>13}");
        }
        text + "\n" + &self.conclusion()
    }

    pub fn markdown(&self) -> String {
        let mut text = "| launch | runs | resumed | false alarms |\n|---|---:|---:|---:|\n".to_owned();
        for (name, runs, resumed, alarms) in self.kinds() {
            let _ = writeln!(text, "| {name} | {runs} | {resumed} | {alarms} |");
        }
        text + "\n" + &self.conclusion()
    }

    fn kinds(&self) -> Vec<(String, usize, usize, usize)> {
        let mut kinds: Vec<(String, usize, usize, usize)> = Vec::new();
        for row in &self.rows {
            let name: String = row.launches.split([',']).next().unwrap_or_default().into();
            let name = name.split(" until").next().unwrap_or_default().to_owned();
            let index = kinds.iter().position(|kind| kind.0 == name).unwrap_or_else(|| {
                kinds.push((name, 0, 0, 0));
                kinds.len() - 1
            });
            let (_, runs, resumed, alarms) = &mut kinds[index];
            *runs += 1;
            *resumed += usize::from(row.launches.contains(','));
            *alarms += usize::from(matches!(row.verdict, Verdict::FalseAlarm(_)));
        }
        kinds.sort();
        kinds
    }

    fn conclusion(&self) -> String {
        let mut text = String::new();
        for row in self.rows.iter().filter(|row| !matches!(row.verdict, Verdict::Equal)) {
            let _ = writeln!(text, "run {} ({}): {}", row.run, row.launches, row.outcome());
        }
        let Self { runs, false_alarms, could_not_run, seconds, seed, .. } = self;
        let trainings = runs.div_ceil(RUNS_PER_TRAINING);
        let _ = writeln!(
            text,
            "{runs} clean runs of {trainings} trainings (seed {seed}): {false_alarms} false alarms, {could_not_run} could not \
             run. {seconds:.0} s, {:.2} s a run.",
            seconds / (*runs).max(1) as f64
        );
        text + &self.settings()
    }

    /// How many runs had which model, and another precision than the usual one.
    fn settings(&self) -> String {
        let runs =
            |set: &str| self.rows.iter().filter(|row| row.training.iter().any(|one| one == set)).count();
        let settings =
            ["model.kind=gpt", "model.kind=resnet", "model.kind=vla", "precision=bf16", "reduce_dtype=bf16"];
        let counts = settings.map(|set| format!("{} with {set}", runs(set)));
        format!("Of them {}.\n", counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: Vec<Verdict>) -> CleanReport {
        let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| wanted(verdict)).count();
        CleanReport {
            seed: 1,
            planted: None,
            runs: verdicts.len(),
            false_alarms: count(|verdict| matches!(verdict, Verdict::FalseAlarm(_))),
            could_not_run: count(|verdict| matches!(verdict, Verdict::CouldNotRun(_))),
            seconds: 2.0,
            rows: verdicts
                .into_iter()
                .enumerate()
                .map(|(run, verdict)| Row {
                    run,
                    training: vec!["model.kind=vla".into()],
                    launches: if run % 2 == 0 { "2 ddp until 3, 4 zero1".into() } else { "2 ddp".into() },
                    verdict,
                    seconds: 1.0,
                })
                .collect(),
        }
    }

    #[test]
    fn an_alarm_outweighs_a_run_that_failed_and_nothing_run_is_no_success() {
        let alarm = || Verdict::FalseAlarm("step 1".into());
        let failed = || Verdict::CouldNotRun("why".into());
        assert_eq!(report(vec![Verdict::Equal]).exit_code(), exit::OK);
        assert_eq!(report(vec![failed(), alarm()]).exit_code(), exit::DIFFERENT);
        assert_eq!(report(vec![Verdict::Equal, failed()]).exit_code(), exit::CASE_FAILED);
        assert_eq!(report(Vec::new()).exit_code(), exit::CASE_FAILED);
    }

    #[test]
    fn runs_are_counted_by_their_first_launch() {
        let text = report(vec![Verdict::Equal, Verdict::FalseAlarm("step 1".into())]).text();
        assert!(text.contains("2 ddp             2        1             1"), "{text}");
        assert!(text.contains("run 1 (2 ddp): FALSE ALARM: step 1"), "{text}");
        assert!(
            text.contains("0 with model.kind=resnet, 2 with model.kind=vla, 0 with precision=bf16"),
            "{text}"
        );
    }
}
