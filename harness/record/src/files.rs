//! Opening what a record is made of: plain files of its own folder and nothing else.
//!
//! A run directory may come from anyone. A link in it could lead anywhere on the machine of whoever reads it, and a
//! pipe or a device could block for ever, so neither is opened.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::RecordError;

/// Opens a plain file of a record for reading; also returns its size.
pub fn open_plain_file(path: &Path) -> Result<(File, u64), RecordError> {
    let io = |source: std::io::Error| RecordError::Io { path: path.to_owned(), source };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ELOOP) => RecordError::Link { path: path.to_owned() },
            // A socket, or a device without a driver.
            Some(libc::ENXIO) => RecordError::NotPlain { path: path.to_owned() },
            _ => io(error),
        }
    })?;
    let metadata = file.metadata().map_err(io)?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(RecordError::NotPlain { path: path.to_owned() }),
    }
}

/// Refuses a folder of a record that is a symbolic link. One that does not exist is no link.
pub fn refuse_link(path: &Path) -> Result<(), RecordError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => Err(RecordError::Link { path: path.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pipes_and_folders_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
        assert_eq!(open_plain_file(&path("file")).unwrap().1, 4);
        for name in ["link", "dangling"] {
            let error = open_plain_file(&path(name)).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}: a symbolic link")), "{error}");
            assert!(refuse_link(&path(name)).is_err());
        }
        let pipe = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(pipe.success());
        for other in [path("pipe"), folder.path().to_owned(), "/dev/zero".into()] {
            let error = open_plain_file(&other).unwrap_err().to_string();
            assert!(error.contains("not a plain file"), "{error}");
        }
        assert!(refuse_link(&path("missing")).is_ok() && refuse_link(folder.path()).is_ok());
    }
}
