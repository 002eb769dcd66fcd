//! What a value may be. Everything in the body of a script is quoted for the shell; lines for the scheduler cannot be
//! quoted, so there only harmless characters pass.

use super::JobError;

/// Characters of an account, a queue, a mail address and the like.
const WORD: &str = "_.:@%+,-/=";
/// Characters of a whole directive, besides those: constraints and lists.
const DIRECTIVE: &str = "_.:@%+,-/=[]()*&| ";

/// A word for a scheduler's line.
pub fn word(key: &str, value: &str) -> Result<(), JobError> {
    match !value.is_empty() && !value.starts_with('-') && consists_of(value, WORD) {
        true => Ok(()),
        false => Err(refused(key, value, &format!("letters, digits and {WORD}"))),
    }
}

/// A whole directive that a site adds.
pub fn directive(key: &str, value: &str) -> Result<(), JobError> {
    match value.starts_with('-') && consists_of(value, DIRECTIVE) {
        true => Ok(()),
        false => Err(refused(
            key,
            value,
            &format!("a leading `-`, letters, digits, blanks and {}", DIRECTIVE.trim()),
        )),
    }
}

/// A name that becomes a folder, a job's name or part of a message.
pub fn name(key: &str, value: &str) -> Result<(), JobError> {
    let starts = value.starts_with(|c: char| c.is_ascii_alphabetic());
    match starts && value.len() <= 64 && consists_of(value, "_.-") {
        true => Ok(()),
        false => Err(refused(key, value, "a letter first, then letters, digits and _.- (up to 64)")),
    }
}

/// The name of an environment variable.
pub fn variable(key: &str, value: &str) -> Result<(), JobError> {
    let starts = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match starts && consists_of(value, "_") {
        true => Ok(()),
        false => Err(refused(key, value, "letters, digits and _, no digit first")),
    }
}

/// Any text that can be quoted for the shell and shown on one line.
pub fn text(key: &str, value: &str) -> Result<(), JobError> {
    match value.chars().any(char::is_control) {
        false => Ok(()),
        true => Err(refused(key, value, "printable characters")),
    }
}

/// Text that is a program or a path, so it cannot be empty.
pub fn program(key: &str, value: &str) -> Result<(), JobError> {
    match value.is_empty() || value.starts_with('-') {
        false => text(key, value),
        true => Err(refused(key, value, "a name or a path of at least one character, no `-` first")),
    }
}

fn consists_of(value: &str, others: &str) -> bool {
    value.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn refused(key: &str, value: &str, allowed: &str) -> JobError {
    JobError::new(format!("{key}: {value:?} is refused; it may consist of {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scheduler_would_misread_is_refused() {
        for value in ["", "a b", "a'b", "a\"b", "a\nb", "$(id)", "`id`", "a;b", "a#b", "a\\b", "-a", "é"] {
            assert!(word("account", value).is_err(), "{value:?}");
        }
        assert_eq!(word("account", "proj-1_a.b:c"), Ok(()));
        for value in ["C", "--a\n#SBATCH --b", "--a=$(id)", "--a='b'", "--a;b", "--comment=\"x\"", "--a #"] {
            assert!(directive("directives", value).is_err(), "{value:?}");
        }
        assert_eq!(directive("directives", "--constraint=[a100*2&h100*1]"), Ok(()));
        assert_eq!(directive("directives", "-l place=scatter:excl"), Ok(()));
    }

    #[test]
    fn text_is_one_line() {
        assert!(
            text("env", "a\nb").is_err() && text("env", "a\0b").is_err() && text("env", "\u{1b}[2J").is_err()
        );
        assert_eq!(text("env", "it's \"$(fine)\""), Ok(()));
        assert!(
            variable("env", "A B").is_err() && variable("env", "1A").is_err() && variable("env", "").is_err()
        );
    }
}
