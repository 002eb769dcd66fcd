//! Whether the folders that a training writes to can be written, and whether all hosts see the same.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::Request;
use crate::comm::{Comm, CommError};
use crate::doctor::facts::{Facts, Folder, Purpose, Trial};

/// Enough to meet a file system or a quota that is full: it must be stored somewhere.
const TRIAL_BYTES: usize = 1 << 20;

pub fn folders(request: &Request) -> Vec<Folder> {
    let places = [
        (Purpose::Runs, request.run_dir.clone()),
        (Purpose::Temporary, std::env::temp_dir()),
        (Purpose::Cache, request.cache_dir.clone()),
    ];
    places.into_iter().map(|(purpose, path)| examine(purpose, &path)).collect()
}

/// The folder itself, or the nearest one above it that exists: a training makes what is missing.
fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn examine(purpose: Purpose, path: &Path) -> Folder {
    let path = existing(path);
    let space = statvfs(&path).ok();
    Folder {
        purpose,
        path: path.display().to_string(),
        trial: verdict(write_some(&path)),
        free_bytes: space.map(|space| space.blocks_available() * space.fragment_size()),
        free_files: space.map(|space| space.files_available()),
        is_shared: None,
    }
}

/// A file without a name, which is gone whatever happens.
fn write_some(folder: &Path) -> io::Result<()> {
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(&vec![0x5a; TRIAL_BYTES])?;
    file.sync_all()
}

fn verdict(result: io::Result<()>) -> Trial {
    match result {
        Ok(()) => Trial::Written,
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Trial::Full(error.to_string())
        }
        Err(error) => Trial::Refused(plain(&error)),
    }
}

/// Without the random name that the file would have had.
fn plain(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string().split(" at path ").next().unwrap_or_default().to_owned(),
        |code| io::Error::from_raw_os_error(code).to_string(),
    )
}

/// Rank 0 makes a file in its run directory, and the others look for it. All ranks call it.
pub fn find_shared(comm: &dyn Comm, mine: &mut Facts, request: &Request) -> Result<(), CommError> {
    if comm.size() == 1 {
        return Ok(());
    }
    let folder = existing(&request.run_dir);
    let mark =
        (comm.rank() == 0).then(|| tempfile::Builder::new().prefix(".doctor-").tempfile_in(&folder).ok());
    let mark = mark.flatten();
    let name = mark.as_ref().and_then(|mark| mark.path().file_name());
    let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let names = comm.all_gather_bytes("gather of host names", name.as_bytes())?;
    let name = String::from_utf8_lossy(&names[0]).into_owned();
    let is_shared = (!name.is_empty()).then(|| folder.join(name).exists());
    // The file goes when all have looked.
    comm.barrier()?;
    drop(mark);
    for folder in mine.folders.iter_mut().filter(|folder| folder.purpose == Purpose::Runs) {
        folder.is_shared = is_shared;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let found = examine(Purpose::Runs, &folder.path().join("not/yet/there"));
        assert_eq!((found.trial, found.path.as_str()), (Trial::Written, folder.path().to_str().unwrap()));
        assert!(found.free_bytes.unwrap() > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_and_a_quota_are_told_from_a_refusal() {
        let of = |code| verdict(Err(io::Error::from_raw_os_error(code)));
        assert!(matches!(of(libc::ENOSPC), Trial::Full(_)) && matches!(of(libc::EDQUOT), Trial::Full(_)));
        assert!(
            matches!(of(libc::EACCES), Trial::Refused(_)) && matches!(of(libc::EROFS), Trial::Refused(_))
        );
        assert!(matches!(examine(Purpose::Runs, Path::new("/proc/nowhere")).trial, Trial::Refused(_)));
        assert!(matches!(examine(Purpose::Runs, Path::new("/dev/null/a")).trial, Trial::Refused(_)));
    }
}
