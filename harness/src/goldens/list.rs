//! Which golden runs there are, and whether each is what was stored.

use std::fmt::Write;
use std::path::Path;

use lockstep_record::{RecordError, RunDir};
use serde::Serialize;

use super::date::day;
use super::header::Header;
use crate::compare::CompareError;

/// A folder that has, or should have, a golden run.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Of the folder.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// Why it cannot be compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The golden runs in a folder, by name, each checked by digest.
pub fn list(folder: &Path) -> Result<Vec<Entry>, CompareError> {
    let io = |source| RecordError::Io { path: folder.to_owned(), source };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let run = RunDir::new(&path);
        if name.starts_with('.') || !run.golden_header().exists() {
            continue;
        }
        entries.push(match Header::read(&run) {
            Ok(header) => {
                let checked = header.as_ref().map_or(Ok(()), |header| header.check_files(&run));
                Entry { name, header, problem: checked.err().map(|error| error.to_string()) }
            }
            Err(error) => Entry { name, header: None, problem: Some(error.to_string()) },
        });
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

/// Digits of a digest that tell versions apart.
const SHORT: usize = 12;

/// One golden run a line, with what is wrong below.
pub fn list_text(entries: &[Entry]) -> String {
    let mut text = format!(
        "{:20} {:>8} {:10} {:>6} {:14} {:14} {:>7}  family\n",
        "name", "revision", "blessed", "steps", "commit", "config", "threads"
    );
    // Writing to a String cannot fail.
    for entry in entries {
        let short = |text: &str| text.chars().take(SHORT).collect::<String>();
        let _ = match &entry.header {
            Some(header) => {
                let threads: Vec<String> =
                    header.family.threads_per_rank.iter().map(u32::to_string).collect();
                writeln!(
                    text,
                    "{:20} {:>8} {:10} {:>6} {:14} {:14} {:>7}  {}",
                    entry.name,
                    header.revision,
                    day(header.blessed_unix_s),
                    header.steps,
                    short(&header.program.git_commit),
                    short(&header.config_digest),
                    threads.join(","),
                    header.family.brief()
                )
            }
            None => writeln!(text, "{:20} {:>8}", entry.name, "?"),
        };
        if let Some(problem) = &entry.problem {
            let _ = writeln!(text, "  damaged: {problem}");
        }
    }
    text.trim_end().to_owned()
}
