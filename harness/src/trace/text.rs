//! The table on the terminal.

use std::fmt::Write;

use super::figures::{Figures, TraceReport};
use super::window::PHASES;

/// Ranks that get a line; `--json` has all of them.
const RANKS_MAX: usize = 32;

/// Where the time went, rank by rank and over all.
pub fn trace_text(report: &TraceReport) -> String {
    let width = report.ranks.iter().map(|rank| rank.label.chars().count()).max().unwrap_or(0).max(9);
    let mut text = format!("Milliseconds a step (mean over steps {})\n\n{:width$}", report.selected, "");
    let phases = PHASES.map(|phase| phase.name());
    for column in
        [["step"].as_slice(), &phases, &["other", "communication", "exposed", "hidden", "late"]].concat()
    {
        let _ = write!(text, "  {column:>8}");
    }
    for rank in report.ranks.iter().take(RANKS_MAX) {
        row(&mut text, &one_line(&rank.label), width, &rank.mean);
    }
    if report.ranks.len() > RANKS_MAX {
        let _ = write!(text, "\n… {} more ranks: --json has them", report.ranks.len() - RANKS_MAX);
    }
    row(&mut text, "all ranks", width, &report.overall);
    text.push_str("\n\n");
    text.push_str(&sentence(&report.overall));
    for note in &report.notes {
        let _ = write!(text, "\nNote: {}", one_line(note));
    }
    let _ =
        write!(text, "\n\nAll ranks on one clock, for https://ui.perfetto.dev: {}", report.merged.display());
    text
}

fn row(text: &mut String, label: &str, width: usize, figures: &Figures) {
    let _ = write!(text, "\n{label:width$}  {:8.2}", figures.step_us / 1e3);
    for phase in PHASES {
        let _ = write!(text, "  {:8.2}", figures.phases_us.get(phase.name()).unwrap_or(&0.0) / 1e3);
    }
    let hidden = figures.hidden.map_or("—".into(), |hidden| format!("{:.1} %", hidden * 100.0));
    let _ = write!(
        text,
        "  {:8.2}  {:13.2}  {:8.2}  {hidden:>8}  {:8.2}",
        figures.other_us / 1e3,
        figures.communication_us / 1e3,
        figures.exposed_us / 1e3,
        figures.late_us / 1e3
    );
}

fn sentence(figures: &Figures) -> String {
    let Some(hidden) = figures.hidden else {
        return "There was no communication.".into();
    };
    let mut text = format!(
        "{:.1} % of the communication was hidden behind computing; {:.2} of {:.2} ms a step were exposed.",
        hidden * 100.0,
        figures.exposed_us / 1e3,
        figures.communication_us / 1e3
    );
    if let Some(bucket) = figures.most_exposed() {
        let share = bucket.exposed_us / figures.exposed_us * 100.0;
        let _ = write!(
            text,
            "\nMost exposed: bucket {}, {:.2} ms a step ({share:.0} % of what was exposed).",
            bucket.bucket,
            bucket.exposed_us / 1e3
        );
    }
    if figures.late_us > 0.0 {
        let _ = write!(
            text,
            "\nWaiting for ranks that came late took {:.2} ms a step more: no communication, and faster links do not help.",
            figures.late_us / 1e3
        );
    }
    text
}

/// A trace's texts cannot drive the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
