//! Text that is safe to show, and files that are never seen half written.

use std::io;
use std::path::Path;

/// Line breaks and control characters would break a table, or the terminal.
pub fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Replaces a file in one step, so that a reader never sees half of it.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_trainer_printed_cannot_drive_the_terminal() {
        assert_eq!(one_line("a\n\x1b[2Jb\t c"), "a [2Jb c");
    }
}
