//! Storing a run as a golden run: whole, or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_record::{CheckpointManifest, Outcome, RunDir, exit};

use super::family::Family;
use super::header::{GOLDEN_VERSION, Header, StoredFile};
use crate::compare::{CompareError, Run, config_digest, read_manifest};
use crate::lint::{Severity, lint};
use crate::plan_file::check_name;
use crate::tolerance::Envelope;
use lockstep_record::open_plain_file;

/// What is to be stored, and where.
#[derive(Clone, Debug)]
pub struct Blessing {
    pub run: PathBuf,
    /// The golden run's own folder, such as `goldens/demo`.
    pub into: PathBuf,
    pub note: Option<String>,
    /// Takes the place of the one that is there.
    pub replace: bool,
    /// Takes a run that is not finished, or that `lint` finds fault with.
    pub unchecked: bool,
    /// All checkpoints instead of the newest.
    pub all_checkpoints: bool,
}

/// Why a run was not stored.
#[derive(Debug, thiserror::Error)]
pub enum BlessError {
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error("--into {}: {problem}", path.display())]
    Name { path: PathBuf, problem: String },
    #[error("{}: the run has not come to its end: finish it (lockstep train --resume auto), or say --unchecked", .0.display())]
    NotFinished(PathBuf),
    #[error(
        "{}: lint found {errors} error{}, the first: {first}\nLook at them all (lockstep-harness lint {}), or say --unchecked",
        run.display(), if *errors == 1 { "" } else { "s" }, run.display()
    )]
    Faulty { run: PathBuf, errors: u64, first: String },
    #[error("{} holds {title}: say --replace to store revision {} in its place", path.display(), revision + 1)]
    Exists { path: PathBuf, title: String, revision: u32 },
    #[error("{} exists and is no golden run: choose another name", .0.display())]
    Occupied(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl BlessError {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Compare(CompareError::NotARun(_)) => exit::USAGE,
            Self::Compare(_) | Self::NotFinished(_) => exit::CASE_FAILED,
            Self::Faulty { .. } => exit::DIFFERENT,
            Self::Io { .. } => exit::INTERNAL,
            Self::Name { .. } | Self::Exists { .. } | Self::Occupied(_) => exit::USAGE,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Copies what a comparison needs of a run, with a header; returns the header.
pub fn bless(blessing: &Blessing) -> Result<Header, BlessError> {
    let into = blessing.into.as_path();
    let name = name_of(into)?;
    let run = Run::open(&blessing.run)?;
    if !blessing.unchecked {
        check(&run)?;
    }
    let earlier = predecessor(into, blessing.replace)?;
    let parent = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(BlessError::io(parent))?;
    let partial = parent.join(format!(".{name}.partial"));
    if partial.exists() {
        // Of an attempt that was interrupted.
        fs::remove_dir_all(&partial).map_err(BlessError::io(&partial))?;
    }
    let files = copy(&run.dir, &partial, blessing.all_checkpoints)?;
    // From the copy: the header speaks of what is stored.
    let stored = Run::open(&partial)?;
    let header = header(&stored, &name, blessing.note.clone(), files, earlier);
    let stored_header = stored.dir.golden_header();
    let text = format!("{}\n", serde_json::to_string_pretty(&header).unwrap_or_default());
    write_synced(&stored_header, text.as_bytes()).map_err(BlessError::io(&stored_header))?;
    header.check_files(&stored.dir)?;
    publish(&partial, into, &parent.join(format!(".{name}.replaced")))?;
    Ok(header)
}

fn name_of(into: &Path) -> Result<String, BlessError> {
    let fail = |problem: String| BlessError::Name { path: into.to_owned(), problem };
    let name = into
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| fail("needs a folder's name at its end".into()))?;
    check_name(name).map_err(fail)?;
    Ok(name.to_owned())
}

fn check(run: &Run) -> Result<(), BlessError> {
    let path = run.dir.path();
    let ended = run.manifest.segments.last().and_then(|segment| segment.ended.as_ref());
    if !ended.is_some_and(|ended| matches!(ended.outcome, Outcome::Finished | Outcome::Stopped)) {
        return Err(BlessError::NotFinished(path.to_owned()));
    }
    let report = lint(path)?;
    let first = report.findings.iter().find(|finding| finding.severity == Severity::Error);
    match first {
        None => Ok(()),
        Some(first) => Err(BlessError::Faulty {
            run: path.to_owned(),
            errors: report.count(Severity::Error),
            first: first.to_string(),
        }),
    }
}

/// The header of the golden run that is to be replaced.
fn predecessor(into: &Path, replace: bool) -> Result<Option<Header>, BlessError> {
    if fs::symlink_metadata(into).is_err() {
        return Ok(None);
    }
    match Header::read(&RunDir::new(into))? {
        None => Err(BlessError::Occupied(into.to_owned())),
        Some(header) if replace => Ok(Some(header)),
        Some(header) => Err(BlessError::Exists {
            path: into.to_owned(),
            title: header.title(),
            revision: header.revision,
        }),
    }
}

fn header(
    stored: &Run,
    name: &str,
    note: Option<String>,
    files: Vec<StoredFile>,
    earlier: Option<Header>,
) -> Header {
    let manifest = &stored.manifest;
    Header {
        golden_version: GOLDEN_VERSION,
        name: name.to_owned(),
        revision: earlier.as_ref().map_or(1, |earlier| earlier.revision.saturating_add(1)),
        blessed_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
        note,
        program: manifest.program.clone(),
        seed: manifest.seed,
        steps: manifest
            .segments
            .iter()
            .rev()
            .find_map(|segment| segment.ended.as_ref())
            .map_or(0, |ended| ended.step),
        config_digest: config_digest(&manifest.config),
        family: Family::of(manifest),
        files,
        earlier: earlier.map(Header::into_revisions).unwrap_or_default(),
    }
}

/// Copies the files that a comparison reads, each with its digest.
fn copy(run: &RunDir, target: &Path, all_checkpoints: bool) -> Result<Vec<StoredFile>, BlessError> {
    let mut paths = vec![run.manifest(), run.config(), run.metrics(), run.samples(), run.digests()];
    // Foreign trainers may leave out the configuration for people, and digests.
    paths.retain(|path| path.exists() || *path == run.metrics() || *path == run.samples());
    paths.extend(Envelope::files(run).into_iter().filter(|path| path.exists()));
    let mut steps = run.checkpoint_steps().map_err(BlessError::io(&run.checkpoints()))?;
    if !all_checkpoints {
        steps.drain(..steps.len().saturating_sub(1));
    }
    for step in steps {
        let folder = run.checkpoint(step);
        let manifest: CheckpointManifest = read_manifest(&folder.join("manifest.json"))?;
        paths.push(folder.join("manifest.json"));
        for file in &manifest.files {
            if Path::new(&file.name).file_name().and_then(|name| name.to_str()) != Some(&file.name) {
                let problem = format!("`{}` is not a plain file name", file.name);
                return Err(CompareError::malformed(&folder.join("manifest.json"), problem).into());
            }
            paths.push(folder.join(&file.name));
        }
    }
    let mut files = Vec::new();
    for path in paths {
        let inside = path.strip_prefix(run.path()).unwrap_or(&path);
        files.push(copy_file(&path, &target.join(inside), inside)?);
    }
    Ok(files)
}

fn copy_file(from: &Path, to: &Path, inside: &Path) -> Result<StoredFile, BlessError> {
    let (mut source, _) = open_plain_file(from).map_err(CompareError::from)?;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(BlessError::io(folder))?;
    }
    let mut target = File::create(to).map_err(BlessError::io(to))?;
    let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0u64, vec![0; 1 << 20]);
    loop {
        let read = source.read(&mut buffer).map_err(BlessError::io(from))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        target.write_all(&buffer[..read]).map_err(BlessError::io(to))?;
        bytes += read as u64;
    }
    target.sync_all().map_err(BlessError::io(to))?;
    Ok(StoredFile {
        path: inside.to_string_lossy().into_owned(),
        bytes,
        blake3: hasher.finalize().to_hex().to_string(),
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives the folder its name; the one that had it goes when the new one is there.
fn publish(partial: &Path, into: &Path, replaced: &Path) -> Result<(), BlessError> {
    if into.exists() {
        if replaced.exists() {
            fs::remove_dir_all(replaced).map_err(BlessError::io(replaced))?;
        }
        fs::rename(into, replaced).map_err(BlessError::io(into))?;
    }
    fs::rename(partial, into).map_err(BlessError::io(into))?;
    if replaced.exists() {
        fs::remove_dir_all(replaced).map_err(BlessError::io(replaced))?;
    }
    Ok(())
}
