//! Where the text of a configuration comes from: a file on disk, or one of those in the program.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::{Origin, Problem};

/// The largest configuration file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// The configurations in `configs/`, so that their names work anywhere.
pub const EMBEDDED: &[(&str, &str)] = &[
    ("base.yaml", include_str!("../../configs/base.yaml")),
    ("bench-10m.yaml", include_str!("../../configs/bench-10m.yaml")),
    ("bench-30m.yaml", include_str!("../../configs/bench-30m.yaml")),
    ("bench-resnet.yaml", include_str!("../../configs/bench-resnet.yaml")),
    ("bpe.yaml", include_str!("../../configs/bpe.yaml")),
    ("demo.yaml", include_str!("../../configs/demo.yaml")),
    ("gpt-10m.yaml", include_str!("../../configs/gpt-10m.yaml")),
    ("gpt-30m.yaml", include_str!("../../configs/gpt-30m.yaml")),
    ("resnet-tiny.yaml", include_str!("../../configs/resnet-tiny.yaml")),
    ("rotary.yaml", include_str!("../../configs/rotary.yaml")),
    ("sgd.yaml", include_str!("../../configs/sgd.yaml")),
    ("tiny.yaml", include_str!("../../configs/tiny.yaml")),
    ("vla-tiny.yaml", include_str!("../../configs/vla-tiny.yaml")),
];

/// Before a name, it asks for the embedded file even where a file of that name lies beside.
const EMBEDDED_PREFIX: &str = "embedded:";

/// A configuration file that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Embedded(&'static str),
}

impl Source {
    /// What `name` means in `folder`: the file there, else the embedded configuration of that name.
    pub fn locate(folder: Option<&Path>, name: &str) -> Result<Self, Problem> {
        if let Some(name) = name.strip_prefix(EMBEDDED_PREFIX) {
            return embedded(name).map(|(name, _)| Self::Embedded(name)).ok_or_else(|| not_found(name));
        }
        let on_disk = folder.map(|folder| folder.join(name)).filter(|path| std::fs::metadata(path).is_ok());
        match (on_disk, embedded(name)) {
            (Some(path), _) => Ok(Self::File(path)),
            (None, Some((name, _))) => Ok(Self::Embedded(name)),
            (None, None) => {
                Err(not_found(&folder.map_or(PathBuf::from(name), |f| f.join(name)).to_string_lossy()))
            }
        }
    }

    /// The folder that `extends:` in this file is relative to; an embedded file extends embedded files only.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path.parent().unwrap_or(Path::new(""))),
            Self::Embedded(_) => None,
        }
    }

    pub fn origin(&self, line: usize) -> Origin {
        match self {
            Self::File(path) => Origin::File { path: path.clone(), line },
            Self::Embedded(name) => Origin::Embedded { name, line },
        }
    }

    /// The whole text, if it is UTF-8 and of a reasonable size.
    pub fn read(&self) -> Result<String, Problem> {
        match self {
            Self::Embedded(name) => Ok(embedded(name).map_or("", |(_, text)| text).to_owned()),
            Self::File(path) => {
                let bytes = read_bounded(path)?;
                String::from_utf8(bytes).map(without_byte_order_mark).map_err(|error| {
                    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                    let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                    Problem::new("", "not UTF-8 text", "save the file as UTF-8").found_at(&self.origin(line))
                })
            }
        }
    }

    /// Equal for two files that are the same layer: the same file on disk, or an embedded file and its
    /// unchanged copy.
    pub fn identity(&self, text: &str) -> PathBuf {
        let Self::File(path) = self else { return PathBuf::from(self.to_string()) };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match embedded(name) {
            Some((name, original)) if original == text => PathBuf::from(Self::Embedded(name).to_string()),
            _ => path.canonicalize().unwrap_or_else(|_| path.clone()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Embedded(name) => write!(formatter, "{EMBEDDED_PREFIX}{name}"),
        }
    }
}

fn embedded(name: &str) -> Option<(&'static str, &'static str)> {
    EMBEDDED.iter().copied().find(|(known, _)| *known == name)
}

fn not_found(name: &str) -> Problem {
    let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
    Problem::new(
        "",
        format!("there is no configuration file {}", super::document::shown(name)),
        format!("give a file that exists, or one of the program's own: {}", names.join(", ")),
    )
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Problem> {
    let cannot = |error: std::io::Error| {
        let message = format!("cannot read {}: {error}", path.display());
        Problem::new("", message, "check the path and its permissions")
    };
    // Opening a pipe or a device could wait for ever.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        let message = format!("{} is not a regular file", path.display());
        return Err(Problem::new("", message, "give a YAML file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > BYTES_MAX {
        let message = format!("{} is larger than {BYTES_MAX} bytes", path.display());
        return Err(Problem::new("", message, "give a YAML file of keys and values; data belong elsewhere"));
    }
    Ok(bytes)
}

fn without_byte_order_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}
