//! Golden runs that are kept: stored with what their bits depend on, versioned, and checked by digest whenever they are read.
//!
//! A stored golden run is a run directory with a header ([`Header`], `golden.json`), and with only those files that a
//! comparison needs.

mod bless;
mod date;
mod family;
mod header;
mod list;

use crate::compare::{CompareError, Mode, Run};

pub use bless::{BlessError, Blessing, bless};
pub use family::{Family, FamilyDifference};
pub use header::{Header, Revision, StoredFile};
pub use list::{Entry, list, list_text};

/// Whether a golden run of another family may be compared with bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// No: its bits may differ for that reason alone.
    #[default]
    Same,
    /// Yes, with a note.
    Any,
}

/// Checks a golden run that has a header, and says what is to be known about the comparison. Nothing to do for one that is a
/// plain run directory.
pub fn admit(
    golden: &Run,
    candidate: &Run,
    mode: Mode,
    families: Families,
) -> Result<Vec<String>, CompareError> {
    if let Some(header) = Header::read(&candidate.dir)? {
        header.check_files(&candidate.dir)?;
    }
    let Some(header) = Header::read(&golden.dir)? else { return Ok(Vec::new()) };
    header.check_files(&golden.dir)?;
    let title = header.title();
    let differences = header.family.differences(&Family::of(&candidate.manifest));
    let mut notes = Vec::new();
    if !differences.is_empty() {
        let what: Vec<String> = differences.iter().map(ToString::to_string).collect();
        let sentence = format!(
            "{title} is of another family: {}; bits may differ for that reason alone",
            what.join("; ")
        );
        if mode == Mode::Exact && families == Families::Same {
            return Err(CompareError::OtherFamily(sentence));
        }
        notes.push(sentence);
    }
    if header.family.processors.is_empty() {
        notes.push(format!("{title} does not say which processor it was made on"));
    }
    Ok(notes)
}
