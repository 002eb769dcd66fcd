//! The bytes of `data.path`: a file, or the text inside the program.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What a path starts with that names a text inside the program.
const EMBEDDED: &str = "embedded:";

/// The plays and poems of Shakespeare, which are in the public domain.
static SHAKESPEARE: &[u8] = include_bytes!("../../data/shakespeare.txt");

/// Why a text could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("there is no text at {}: set data.path to a text file, or to embedded:shakespeare", .0.display())]
    Missing(PathBuf),
    #[error("{} is {what}, not a file: set data.path to a text file", path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("the text {} (data.path) cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the text {} (data.path) is empty", .0.display())]
    Empty(PathBuf),
    #[error("there is no text `{0}` in the program: it has embedded:shakespeare")]
    UnknownEmbedded(String),
}

/// Reads all of the text.
pub fn read(path: &Path) -> Result<Cow<'static, [u8]>, SourceError> {
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix(EMBEDDED)) {
        return match name {
            "shakespeare" => Ok(Cow::Borrowed(SHAKESPEARE)),
            _ => Err(SourceError::UnknownEmbedded(format!("{EMBEDDED}{name}"))),
        };
    }
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => SourceError::Missing(path.into()),
        _ => SourceError::Unreadable { path: path.into(), error },
    };
    // Looked at before it is opened: opening a pipe would wait for its writer, and a device may have no end.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() { "a directory" } else { "a device, pipe or socket" };
        return Err(SourceError::NotAFile { path: path.into(), what });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    if bytes.is_empty() { Err(SourceError::Empty(path.into())) } else { Ok(Cow::Owned(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_text_is_there() {
        let text = read(Path::new("embedded:shakespeare")).unwrap();
        assert!(text.len() > 2_000_000 && std::str::from_utf8(&text).is_ok());
    }

    #[test]
    fn a_file_is_read_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, b"a\r\n\xff\0").unwrap();
        assert_eq!(&read(&path).unwrap()[..], b"a\r\n\xff\0");
    }

    #[test]
    fn what_is_no_text_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("empty"), "").unwrap();
        let cases = [
            (path("nothing"), "there is no text at"),
            (path("empty"), "is empty"),
            (folder.path().into(), "is a directory"),
            (PathBuf::from("/dev/zero"), "is a device"),
            (path("empty").join("below"), "cannot be read"),
            (PathBuf::from("embedded:hamlet"), "it has embedded:shakespeare"),
            (PathBuf::from(""), "there is no text at"),
        ];
        for (path, expected) in cases {
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }

    #[test]
    fn a_pipe_is_refused_instead_of_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(matches!(read(&path), Err(SourceError::NotAFile { .. })));
    }
}
