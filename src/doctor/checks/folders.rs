//! Folders that a training writes to.

use super::or_ok;
use crate::doctor::catalogue::{PATH_APART, PATH_CACHE, PATH_FULL, PATH_LOW, PATH_RUNS, PATH_TEMPORARY};
use crate::doctor::facts::{Facts, Folder, Purpose, Trial};
use crate::doctor::finding::{Finding, Kind, distinct, each};
use crate::quantity::bytes_text;

const LOW_BYTES: u64 = 1 << 30;
const LOW_FILES: u64 = 1000;

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let purposes: [(Purpose, &Kind); 3] =
        [(Purpose::Runs, &PATH_RUNS), (Purpose::Temporary, &PATH_TEMPORARY), (Purpose::Cache, &PATH_CACHE)];
    let about = |(purpose, kind): (Purpose, &Kind)| {
        let folder = |facts: &Facts| facts.folders.iter().find(|folder| folder.purpose == purpose).cloned();
        let problems = [
            each(kind, all, |facts| refused(&folder(facts)?)),
            each(&PATH_FULL, all, |facts| full(&folder(facts)?)),
            each(&PATH_LOW, all, |facts| low(&folder(facts)?)),
            each(&PATH_APART, all, |facts| {
                let Folder { path, is_shared, .. } = folder(facts)?;
                (is_shared == Some(false))
                    .then(|| format!("{path} does not have a file that rank 0 made in its own"))
            }),
        ]
        .concat();
        or_ok(problems, || Finding::ok(id(purpose), distinct(all, |facts| describe(folder(facts)))))
    };
    purposes.into_iter().flat_map(about).collect()
}

fn id(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Runs => "path.runs",
        Purpose::Temporary => "path.temporary",
        Purpose::Cache => "path.cache",
    }
}

fn refused(folder: &Folder) -> Option<String> {
    match &folder.trial {
        Trial::Refused(error) => Some(format!("{} {}: {error}", folder.purpose.name(), folder.path)),
        _ => None,
    }
}

fn full(folder: &Folder) -> Option<String> {
    match &folder.trial {
        Trial::Full(error) => Some(format!("{} {}: {error}", folder.purpose.name(), folder.path)),
        _ => None,
    }
}

/// Only where something could be written at all.
fn low(folder: &Folder) -> Option<String> {
    if folder.trial != Trial::Written {
        return None;
    }
    let name = format!("{} {}", folder.purpose.name(), folder.path);
    match (folder.free_bytes, folder.free_files) {
        (Some(bytes), _) if bytes < LOW_BYTES => Some(format!("{name}: {} are left", bytes_text(bytes))),
        // File systems without a fixed number of files say 0.
        (_, Some(files)) if files > 0 && files < LOW_FILES => Some(format!("{name}: {files} files are left")),
        _ => None,
    }
}

fn describe(folder: Option<Folder>) -> String {
    let Some(folder) = folder else { return String::new() };
    let free = folder.free_bytes.map(|bytes| format!(", {:.0} GiB free", bytes as f64 / f64::from(1 << 30)));
    let shared = if folder.is_shared == Some(true) { ", the same on all hosts" } else { "" };
    format!("{} can be written{}{shared}", folder.path, free.unwrap_or_default())
}
