//! Text that is safe to show, and files that are never seen half written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Characters that drive a terminal, break a table, or hide or reorder what stands beside them.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with such characters spelt out, as `\u{202e}`.
pub fn visible(text: &str) -> String {
    spelt(text, is_hazard)
}

/// [`visible`] for text of several lines.
pub fn visible_lines(text: &str) -> String {
    spelt(text, |c| c != '\n' && is_hazard(c))
}

fn spelt(text: &str, hazard: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match hazard(c) {
            true => safe.extend(c.escape_unicode()),
            false => safe.push(c),
        }
    }
    safe
}

/// The text as one line for a table: runs of white space and of control characters become one space.
pub fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let words = text.chars().map(clean).collect::<String>();
    visible(&words.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Writes on, with hazards spelt out: for messages that may quote what a file says.
pub struct Visible<W>(pub W);

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let safe = spelt(&String::from_utf8_lossy(bytes), |c| !matches!(c, '\n' | '\t') && is_hazard(c));
        self.0.write_all(safe.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Creates or empties a file; a link in its place is refused, since it could lead out of the folder.
pub fn create_plain_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Replaces a file in one step, so that a reader never sees half of it.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    create_plain_file(&draft)?.write_all(text.as_bytes())?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_trainer_printed_cannot_drive_the_terminal() {
        assert_eq!(one_line("a\n\x1b[2Jb\t c"), "a [2Jb c");
        assert_eq!(visible("a\u{202e}b\x1b"), "a\\u{202e}b\\u{1b}");
        assert_eq!(visible_lines("α → β\n\u{7}"), "α → β\n\\u{7}");
        let mut written = Vec::new();
        writeln!(Visible(&mut written), "error: \x1b]0;title\u{7}").unwrap();
        assert_eq!(written, b"error: \\u{1b}]0;title\\u{7}\n");
    }

    #[test]
    fn a_link_in_the_place_of_a_draft_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("report.draft")).unwrap();
        assert!(write_whole(&folder.path().join("report.json"), "{}").is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    }

    proptest! {
        #[test]
        fn nothing_hazardous_is_left(text: String) {
            prop_assert!(!visible(&text).chars().any(is_hazard));
            prop_assert!(!one_line(&text).chars().any(is_hazard));
        }
    }
}
