//! A report for people.

use std::fmt::Write;

use super::finding::{Report, Severity, Status};

/// Findings of one check that are printed; `--json` has more.
const SHOWN: usize = 3;

/// The findings with their remedies, and what was looked at.
pub fn report_text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for status in report.checks.iter().filter(|status| status.findings > 0) {
        for finding in report.of(status.name).take(SHOWN) {
            let _ = writeln!(text, "{finding}");
        }
        let more = status.findings.saturating_sub(SHOWN as u64);
        if more > 0 {
            let _ = writeln!(text, "  and {more} more");
        }
        if let Some(finding) = report.of(status.name).next() {
            let _ = writeln!(text, "  remedy: {}\n", finding.remedy);
        }
    }
    let names = |wanted: &dyn Fn(&Status) -> bool| -> Vec<&str> {
        report.checks.iter().filter(|status| wanted(status)).map(|status| status.name).collect()
    };
    let clean = names(&|status| status.facts > 0 && status.findings == 0);
    let idle = names(&|status| status.facts == 0 && status.findings == 0);
    let _ = writeln!(text, "found nothing   {}", list(&clean));
    if !idle.is_empty() {
        let _ = writeln!(text, "nothing to see  {}", list(&idle));
    }
    let errors = report.count(Severity::Error);
    let warnings = report.count(Severity::Warning) - errors;
    let facts: u64 = report.checks.iter().map(|status| status.facts).sum();
    let _ = write!(text, "{}: {} in {facts} facts", report.run.display(), verdict(errors, warnings));
    text
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

fn verdict(errors: u64, warnings: u64) -> String {
    let count = |number: u64, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    match (errors, warnings) {
        (0, 0) => "no finding".into(),
        (0, _) => count(warnings, "warning"),
        (_, 0) => count(errors, "error"),
        _ => format!("{} and {}", count(errors, "error"), count(warnings, "warning")),
    }
}
