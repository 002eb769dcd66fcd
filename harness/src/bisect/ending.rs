//! Runs that end differently: one has steps that the other lacks, or never said that it was done.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use lockstep_record::{Outcome, RunDir};

use super::finding::{Finding, Phase};
use super::records::outcome_text;
use crate::compare::Run;

/// How much of the end of a log is read, in bytes.
const TAIL_BYTES: u64 = 64 << 10;
/// Ranks whose logs are read.
const RANKS_MAX: usize = 256;
/// Characters of a message that are shown.
const MESSAGE_MAX: usize = 400;

/// A run directory without a manifest: the program ended before its first step.
pub fn never_began(run: &RunDir) -> Finding {
    let mut finding = Finding::new(None, Phase::Outcome);
    finding.candidate.text = "the candidate ended before its first step: it left no manifest.json".into();
    finding.hints.extend(last_words(run));
    finding.conclude()
}

/// One run has this step and the other lacks it.
pub fn at(golden: &Run, candidate: &Run, step: u64, golden_has: bool, agreed_until: Option<u64>) -> Finding {
    let mut finding = Finding::new(Some(step), Phase::Outcome);
    finding.agreed_until = agreed_until;
    let (short, who, other) = match golden_has {
        true => (candidate, "the candidate", "the golden run"),
        false => (golden, "the golden run", "the candidate"),
    };
    let ended = outcome_text(outcome(short));
    finding.golden.text = if golden_has { "recorded" } else { "absent" }.into();
    let last = step.saturating_sub(1);
    finding.candidate.text = format!(
        "{who} has no such step, and {other} has: it ends after step {last} and {ended}; what both recorded before agrees"
    );
    if golden_has {
        finding.hints.extend(last_words(&candidate.dir));
    }
    finding
}

/// Runs with the same steps, of which one never said that it ended.
pub fn compare(golden: &Run, candidate: &Run) -> Option<Finding> {
    let (left, right) = (outcome(golden)?, outcome(candidate));
    if right.is_some() {
        return None;
    }
    let mut finding = Finding::new(None, Phase::Outcome);
    finding.golden.text = outcome_text(Some(left)).into();
    finding.candidate.text = format!(
        "all steps agree, but the candidate {}; the golden run {}",
        outcome_text(None),
        outcome_text(Some(left))
    );
    finding.hints.extend(last_words(&candidate.dir));
    Some(finding)
}

fn outcome(run: &Run) -> Option<Outcome> {
    Some(run.manifest.segments.last()?.ended.as_ref()?.outcome)
}

/// What a run that broke said last, and where more is to be found.
fn last_words(run: &RunDir) -> Vec<String> {
    let error = |rank: usize| {
        last_error(&run.rank_log(rank)).map(|message| format!("rank {rank} said last: {message}"))
    };
    let mut words: Vec<String> = (0..RANKS_MAX).find_map(error).into_iter().collect();
    if run.flight().is_dir() {
        words.push(format!("lockstep-harness flight {} says where its ranks parted", run.path().display()));
    }
    words
}

/// The last error of a rank's log.
fn last_error(log: &Path) -> Option<String> {
    if !std::fs::metadata(log).ok()?.is_file() {
        return None;
    }
    let mut file = File::open(log).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let message = lines
        .filter(|line| line["level"] == "ERROR")
        .find_map(|line| line["fields"]["message"].as_str().map(str::to_owned))?;
    Some(message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MESSAGE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_first_rank_that_has_one_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        std::fs::create_dir_all(run.logs()).unwrap();
        std::fs::write(run.rank_log(0), "{\"level\":\"INFO\",\"fields\":{\"message\":\"fine\"}}\n").unwrap();
        let error = |text: &str| format!("{{\"level\":\"ERROR\",\"fields\":{{\"message\":\"{text}\"}}}}\n");
        std::fs::write(run.rank_log(1), error("first") + "nonsense\n" + &error("last\\n of all") + "{\"lev")
            .unwrap();
        let finding = never_began(&run);
        assert!(finding.sentence.ends_with("; rank 1 said last: last of all"), "{}", finding.sentence);
        assert_eq!(finding.phase, Phase::Outcome);
    }
}
