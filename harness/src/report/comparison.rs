//! One comparison, as text for a terminal and as JSON.

use std::fmt::Write;
use std::path::Path;

use super::text::visible;
use crate::compare::{Check, Comparison, Mode, Verdict};

/// The comparison as JSON: the fields of [`Comparison`], and the verdict that follows from them.
pub fn comparison_json(comparison: &Comparison) -> String {
    let mut tree = serde_json::to_value(comparison).unwrap_or_default();
    if let Some(map) = tree.as_object_mut() {
        map.insert("passed".into(), comparison.passed().into());
        let first = serde_json::to_value(comparison.first_difference()).unwrap_or_default();
        map.insert("first_difference".into(), first);
    }
    format!("{tree:#}")
}

/// The comparison as a table, with the first difference and the verdict below it.
pub fn comparison_text(comparison: &Comparison) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let show = |path: &Path| visible(&path.display().to_string());
    let _ = writeln!(text, "golden     {}", show(&comparison.golden));
    let _ = writeln!(text, "candidate  {}", show(&comparison.candidate));
    let _ = writeln!(text, "mode       {}\n", comparison.mode);
    let _ = writeln!(
        text,
        "{:32} {:17} {:>12} {:>12} {:>10}",
        "check", "verdict", "compared", "max ulps", "max |Δ|"
    );
    for check in &comparison.checks {
        let _ = writeln!(text, "{}", row(check).trim_end());
    }
    for note in &comparison.notes {
        let _ = writeln!(text, "\nnote: {}", visible(note));
    }
    let _ = write!(text, "\n{}", conclusion(comparison));
    text
}

fn row(check: &Check) -> String {
    let verdict = check.verdict.to_string();
    let mut note = check.note.as_ref().map_or(String::new(), |note| format!("  {}", visible(note)));
    if check.worst.of_tolerance > 0.0 {
        note.insert_str(0, &format!("  {}", share_text(check.worst.of_tolerance)));
    }
    if check.verdict == Verdict::NotCompared {
        return format!("{:32} {verdict:17}{note}", check.name);
    }
    let (ulps, absolute) = match check.worst.absolute {
        // Distances of tensors have no ulps.
        absolute if check.worst.ulps == 0 && absolute > 0.0 => ("—".to_owned(), format!("{absolute:.2e}")),
        0.0 if check.worst.ulps == 0 => ("0".to_owned(), "0".to_owned()),
        absolute => (ulps_text(check.worst.ulps), format!("{absolute:.2e}")),
    };
    format!("{:32} {verdict:17} {:>12} {ulps:>12} {absolute:>10}{note}", check.name, check.compared)
}

/// The largest distance of any parameter in the newest common checkpoint; of the losses without one. In ulps where bits are
/// demanded; within a tolerance as a difference, since values around zero are many ulps apart; within an envelope as the
/// share of what it allows.
pub fn distance(comparison: &Comparison) -> Option<String> {
    let compared = |name: &str| comparison.check(name).filter(|check| check.verdict != Verdict::NotCompared);
    let worst = compared("checkpoint parameters").or(compared("micro-batch losses"))?.worst;
    Some(match comparison.mode {
        Mode::Tolerance(_) if worst.ulps > 0 => format!("Δ {:.1e}", worst.absolute),
        Mode::Auto if worst.of_tolerance >= 100.0 => ">9999%".into(),
        Mode::Auto if worst.of_tolerance > 0.0 => format!("{:.0}%", 100.0 * worst.of_tolerance),
        _ => ulps_text(worst.ulps),
    })
}

/// A distance in ulps; huge ones (across zero, from or to a NaN) are only that.
fn ulps_text(ulps: u64) -> String {
    if ulps < 10_000_000_000 { ulps.to_string() } else { ">1e10".into() }
}

/// How much of what the tolerance allows was used.
fn share_text(share: f64) -> String {
    match share {
        share if share <= 1.0 => format!("{:.1}% of the tolerance", 100.0 * share),
        share if share < 1e4 => format!("{share:.1} times the tolerance"),
        _ => "over 10,000 times the tolerance".into(),
    }
}

fn conclusion(comparison: &Comparison) -> String {
    if let Some(first) = comparison.first_difference() {
        return format!("The runs differ. First difference:\n  {}", visible(&first.to_string()));
    }
    let steps = comparison.steps;
    let plural = if steps == 1 { "" } else { "s" };
    match comparison.mode {
        Mode::Exact => {
            format!("The runs are bit-identical in all that was compared, over {steps} step{plural}.")
        }
        mode => format!("The runs agree within {mode}, over {steps} step{plural}."),
    }
}
