//! A finding for the terminal and for programs.

use std::fmt::Write;

use super::finding::Evidence;
use super::search::{Bisection, Options};

/// The sentence, and what it rests on.
pub fn bisection_text(bisection: &Bisection, options: &Options) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "golden     {}", options.golden.display());
    let _ = writeln!(text, "candidate  {}", options.candidate.display());
    match &bisection.finding {
        None => text.push_str("\nNo difference: all that both runs recorded agrees."),
        Some(finding) => {
            let evidence = match finding.evidence {
                Evidence::Records => "records",
                Evidence::Capture => "records, and full tensors of the step",
            };
            let _ = writeln!(text, "evidence   {evidence}");
            let _ = write!(text, "\n{finding}");
        }
    }
    if !bisection.notes.is_empty() {
        text.push('\n');
    }
    for note in &bisection.notes {
        let _ = write!(text, "\nnote: {note}");
    }
    if let Some(folder) = &bisection.work_dir {
        let _ = write!(text, "\nnote: the replays are in {}", folder.display());
    }
    text
}

/// `{"different", "finding", "notes"}`.
pub fn bisection_json(bisection: &Bisection) -> String {
    let tree = serde_json::json!({
        "different": bisection.finding.is_some(),
        "finding": bisection.finding,
        "notes": bisection.notes,
        "work_dir": bisection.work_dir,
    });
    format!("{tree:#}\n")
}
