//! `junit.xml`, for continuous integration.

use std::time::Duration;

use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::cell::{Cell, Outcome, Report};

/// A test suite a group, a test case a cell. A skipped cell is shown as skipped.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let mut document = quick_junit::Report::new(report.title.as_str());
    document.set_time(seconds(report.seconds));
    let mut groups: Vec<&str> = report.cells.iter().map(|cell| cell.group.as_str()).collect();
    groups.dedup();
    for group in groups {
        let mut suite = TestSuite::new(group);
        suite.add_test_cases(report.cells.iter().filter(|cell| cell.group == group).map(test_case));
        document.add_test_suite(suite);
    }
    document.to_string()
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

fn test_case(cell: &Cell) -> TestCase {
    let mut status = match &cell.outcome {
        Outcome::Golden | Outcome::Passed => TestCaseStatus::success(),
        Outcome::Different => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Outcome::CouldNotRun { .. } => TestCaseStatus::non_success(NonSuccessKind::Error),
        Outcome::Skipped { .. } => TestCaseStatus::skipped(),
    };
    if let Some(problem) = cell.problem() {
        status.set_message(problem);
    }
    let mut case = TestCase::new(cell.name.as_str(), status);
    case.set_classname(format!("{} {} {}", cell.group, cell.strategy, cell.ranks));
    case.set_time(seconds(cell.seconds));
    case
}
