//! The files that make up a configuration, in the order in which they apply: what a file extends comes before
//! it, and each file applies once, where it is first named. So `--config demo.yaml --config mine.yaml` keeps
//! what demo.yaml set although both extend base.yaml, and no chain of `extends` costs more than its files.

use std::path::{Path, PathBuf};

use super::error::{Origin, Problem};
use super::expand::Environment;
use super::settings::{self, Setting};
use super::source::Source;

/// Files that extend one another in a chain.
const DEPTH_MAX: usize = 16;
/// Files that one configuration is made of.
const FILES_MAX: usize = 64;

/// Reads `files`, left to right, and what they extend. Later settings win.
pub fn read(files: &[PathBuf], environment: Environment<'_>) -> Result<Vec<Setting>, Vec<Problem>> {
    let mut reader = Reader {
        environment,
        chain: Vec::new(),
        done: Vec::new(),
        settings: Vec::new(),
        problems: Vec::new(),
    };
    for file in files {
        // A name that is not UTF-8 can still be a file's.
        let on_disk = std::fs::metadata(file).is_ok().then(|| Source::File(file.clone()));
        let source = on_disk.map_or_else(|| Source::locate(Some(Path::new("")), &file.to_string_lossy()), Ok);
        match source {
            Ok(source) => reader.file(&source, None),
            Err(problem) => reader.problems.push(Problem { key: "--config".into(), ..problem }),
        }
    }
    if reader.problems.is_empty() { Ok(reader.settings) } else { Err(reader.problems) }
}

struct Reader<'a> {
    environment: Environment<'a>,
    /// Files that are being read, outermost first: identity, name, and the line of its `extends`.
    chain: Vec<(PathBuf, Source, usize)>,
    done: Vec<PathBuf>,
    settings: Vec<Setting>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// `named_by`: the `extends` that asked for this file. Recursion is bounded by [`DEPTH_MAX`].
    fn file(&mut self, source: &Source, named_by: Option<&Origin>) {
        if let Err(problem) = self.try_file(source) {
            let origin = problem.origin.clone().or_else(|| named_by.cloned());
            self.problems.push(Problem { origin, ..problem });
        }
    }

    fn try_file(&mut self, source: &Source) -> Result<(), Problem> {
        let text = source.read()?;
        let identity = source.identity(&text);
        if let Some(start) = self.chain.iter().position(|(known, _, _)| *known == identity) {
            return Err(self.circle(start, source));
        }
        if self.done.contains(&identity) {
            return Ok(());
        }
        if self.chain.len() == DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} files extend one another");
            return Err(Problem::new("extends", message, "put some of them together"));
        }
        if self.done.len() + self.chain.len() == FILES_MAX {
            let message = format!("more than {FILES_MAX} files");
            return Err(Problem::new("extends", message, "put some of them together"));
        }
        match settings::from_file(&text, &source.origin(1), self.environment) {
            Ok(file) => {
                self.extends(source, &identity, file.extends);
                self.settings.extend(file.settings);
            }
            Err(problems) => self.problems.extend(problems),
        }
        self.done.push(identity);
        Ok(())
    }

    fn extends(&mut self, source: &Source, identity: &Path, names: Vec<(String, usize)>) {
        for (name, line) in names {
            let origin = source.origin(line);
            match Source::locate(source.folder(), &name) {
                Ok(parent) => {
                    self.chain.push((identity.to_owned(), source.clone(), line));
                    self.file(&parent, Some(&origin));
                    self.chain.pop();
                }
                Err(problem) => {
                    self.problems.push(Problem { key: "extends".into(), ..problem.found_at(&origin) });
                }
            }
        }
    }

    fn circle(&self, start: usize, again: &Source) -> Problem {
        let links =
            self.chain[start..].iter().map(|(_, source, line)| format!("{} -> ", source.origin(*line)));
        let message =
            format!("these files extend one another in a circle: {}{again}", links.collect::<String>());
        Problem::new("extends", message, "remove one of these lines")
    }
}
