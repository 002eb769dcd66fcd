//! `lockstep-harness bless`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use lockstep_record::exit;

use super::finish;
use crate::goldens::{Blessing, bless, list, list_text};

#[derive(Debug, Args)]
pub struct BlessArgs {
    /// Run directory to store.
    #[arg(required_unless_present = "list", requires = "into", conflicts_with = "list")]
    run: Option<PathBuf>,
    /// Folder of the golden run, such as goldens/demo: its last part is the golden run's name.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// What it is for, or why it replaces the one before.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Store it in place of the golden run of that name, as the next revision.
    #[arg(long)]
    replace: bool,
    /// Store a run that is not finished, or that lint finds fault with.
    #[arg(long)]
    unchecked: bool,
    /// Store every checkpoint; else the newest.
    #[arg(long)]
    all_checkpoints: bool,
    /// List the golden runs in a folder, and check each by digest.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "goldens")]
    list: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl BlessArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        if let Some(folder) = &self.list {
            return match list(folder) {
                Ok(entries) => {
                    let text = match self.json {
                        true => serde_json::to_string_pretty(&entries).unwrap_or_default(),
                        false => list_text(&entries),
                    };
                    let damaged = entries.iter().any(|entry| entry.problem.is_some());
                    finish(writeln!(out, "{text}"), if damaged { exit::CASE_FAILED } else { exit::OK })
                }
                Err(error) => {
                    let _ = writeln!(errors, "error: {error}");
                    exit::USAGE
                }
            };
        }
        let blessing = Blessing {
            run: self.run.unwrap_or_default(),
            into: self.into.unwrap_or_default(),
            note: self.note,
            replace: self.replace,
            unchecked: self.unchecked,
            all_checkpoints: self.all_checkpoints,
        };
        match bless(&blessing) {
            Ok(header) => {
                let text = match self.json {
                    true => serde_json::to_string_pretty(&header).unwrap_or_default(),
                    false => {
                        let bytes: u64 = header.files.iter().map(|file| file.bytes).sum();
                        let (title, count) = (header.title(), header.files.len());
                        format!("{title}: {count} files, {bytes} bytes, in {}", blessing.into.display())
                    }
                };
                finish(writeln!(out, "{text}"), exit::OK)
            }
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }
}
