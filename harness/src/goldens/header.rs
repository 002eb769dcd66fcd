//! `golden.json`: what a stored golden run is, and the digests of its files.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use lockstep_record::{Program, RecordError, RunDir};
use serde::{Deserialize, Serialize};

use super::date::day;
use super::family::Family;
use crate::compare::{CompareError, blake3_of};
use lockstep_record::open_plain_file;

/// Version of the header's format.
pub const GOLDEN_VERSION: u32 = 1;
/// The largest header that is read, in bytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Files and folders that a golden run has at most, one inside the other.
const DEPTH_MAX: usize = 3;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub golden_version: u32,
    pub name: String,
    /// 1 for the first run that was stored under this name.
    pub revision: u32,
    pub blessed_unix_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The trainer, with its version and commit.
    pub program: Program,
    pub seed: u64,
    /// The last step.
    pub steps: u64,
    /// BLAKE3 of the configuration, without what may differ between runs with the same result.
    pub config_digest: String,
    pub family: Family,
    pub files: Vec<StoredFile>,
    /// Runs that were stored under this name before, oldest first.
    #[serde(default)]
    pub earlier: Vec<Revision>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Inside the folder of the golden run, with `/`.
    pub path: String,
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// What is remembered of a golden run that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub revision: u32,
    pub blessed_unix_s: u64,
    pub git_commit: String,
    pub config_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Header {
    /// The header of a golden run; None for a run directory without one.
    pub fn read(run: &RunDir) -> Result<Option<Self>, CompareError> {
        let path = run.golden_header();
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let (file, bytes) = open_plain_file(&path)?;
        if bytes > HEADER_BYTES_MAX {
            return Err(CompareError::malformed(&path, format!("{bytes} bytes are too many for a header")));
        }
        let io = |source| RecordError::Io { path: path.clone(), source };
        let text = std::io::read_to_string(file).map_err(io)?;
        let tree: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| CompareError::malformed(&path, error))?;
        let version = tree.get("golden_version").and_then(serde_json::Value::as_u64).unwrap_or_default();
        if version > u64::from(GOLDEN_VERSION) {
            let problem = format!(
                "golden_version {version} is newer than {GOLDEN_VERSION}, the newest that this program reads"
            );
            return Err(CompareError::malformed(&path, problem));
        }
        serde_json::from_value(tree).map(Some).map_err(|error| CompareError::malformed(&path, error))
    }

    /// `golden run demo, revision 2 of 2026-11-22`
    pub fn title(&self) -> String {
        format!("golden run {}, revision {} of {}", self.name, self.revision, day(self.blessed_unix_s))
    }

    /// What a successor remembers of this one, and of those before it.
    pub fn into_revisions(self) -> Vec<Revision> {
        let mut revisions = self.earlier;
        revisions.push(Revision {
            revision: self.revision,
            blessed_unix_s: self.blessed_unix_s,
            git_commit: self.program.git_commit,
            config_digest: self.config_digest,
            note: self.note,
        });
        revisions
    }

    /// Makes sure that the folder holds the files that were stored, and no others.
    pub fn check_files(&self, run: &RunDir) -> Result<(), CompareError> {
        let mut listed = BTreeSet::new();
        for stored in &self.files {
            let path = self.plain_path(run, stored)?;
            no_links(run.path(), &path)?;
            check_file(&path, stored)?;
            listed.insert(path);
        }
        for needed in [run.manifest(), run.metrics(), run.samples()] {
            if !listed.contains(&needed) {
                return Err(CompareError::malformed(
                    &run.golden_header(),
                    format!("does not list {}", needed.display()),
                ));
            }
        }
        listed.insert(run.golden_header());
        match stranger(run.path(), &listed, DEPTH_MAX)? {
            None => Ok(()),
            Some(path) => Err(CompareError::malformed(
                &path,
                "is not in the header's list of files: a golden run is changed by `lockstep-harness bless --replace` alone",
            )),
        }
    }

    fn plain_path(&self, run: &RunDir, stored: &StoredFile) -> Result<PathBuf, CompareError> {
        let path = Path::new(&stored.path);
        let parts: Vec<Component> = path.components().collect();
        let plain = !parts.is_empty()
            && parts.len() <= DEPTH_MAX
            && parts.iter().all(|part| matches!(part, Component::Normal(_)))
            && parts.iter().collect::<PathBuf>().to_str() == Some(stored.path.as_str());
        match plain {
            true => Ok(run.path().join(path)),
            false => {
                let problem = format!("`{}` is not a plain path inside the golden run", stored.path);
                Err(CompareError::malformed(&run.golden_header(), problem))
            }
        }
    }
}

/// Refuses a path that leads through a link: it may lead anywhere.
fn no_links(root: &Path, path: &Path) -> Result<(), CompareError> {
    let folders = path.ancestors().skip(1).take_while(|folder| *folder != root);
    for folder in folders {
        if std::fs::symlink_metadata(folder).is_ok_and(|kind| kind.is_symlink()) {
            return Err(CompareError::malformed(folder, "is a link, which is refused"));
        }
    }
    Ok(())
}

fn check_file(path: &Path, stored: &StoredFile) -> Result<(), CompareError> {
    let (file, bytes) = open_plain_file(path)?;
    let restore = "restore it (from version control), or bless a run anew with --replace";
    if bytes != stored.bytes {
        let problem = format!("has {bytes} bytes, but was stored with {}: {restore}", stored.bytes);
        return Err(CompareError::malformed(path, problem));
    }
    let found = blake3_of(file).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    if found != stored.blake3 {
        return Err(CompareError::malformed(path, format!("is not what was stored: {restore}")));
    }
    Ok(())
}

/// A file that is not listed, or a link to a folder.
fn stranger(
    folder: &Path,
    listed: &BTreeSet<PathBuf>,
    depth: usize,
) -> Result<Option<PathBuf>, CompareError> {
    let io = |source| RecordError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if listed.contains(&path) {
            continue;
        }
        let kind = std::fs::symlink_metadata(&path).map_err(io)?;
        if !kind.is_dir() || depth == 0 {
            return Ok(Some(path));
        }
        if let Some(found) = stranger(&path, listed, depth - 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
