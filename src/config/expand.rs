//! Environment variables in values: `${NAME}`, `${NAME:-default}` (used where the variable is unset or empty,
//! as in a shell; a default may hold further references), and `$$` for a dollar sign.

/// References inside the default of a reference.
const DEPTH_MAX: usize = 16;
/// The longest value, in bytes, after expansion.
const BYTES_MAX: usize = 1 << 20;

/// A lookup of environment variables: a parameter, so that tests need not touch the process's environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A value after expansion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// Variables whose value went into it.
    pub variables: Vec<String>,
}

/// Why a value cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("the environment variable {0} is not set")]
    Unset(String),
    #[error("`${{` has no closing `}}`")]
    Unclosed,
    #[error("`${{{0}}}` does not name a variable")]
    Malformed(String),
    #[error("`${0}` is not expanded without braces")]
    Bare(String),
    #[error("defaults are nested more than {DEPTH_MAX} deep")]
    TooDeep,
    #[error("longer than {BYTES_MAX} bytes after expansion")]
    TooLong,
}

impl ExpandError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unset(name) => format!("set it, or write ${{{name}:-default}}"),
            Self::Unclosed => "close it, or write $$ for a dollar sign".into(),
            Self::Malformed(_) => "write ${NAME} or ${NAME:-default}, or $$ for a dollar sign".into(),
            Self::Bare(name) => format!("write ${{{name}}}, or $$ for a dollar sign"),
            Self::TooDeep => "write fewer of them".into(),
            Self::TooLong => "shorten the variables in it".into(),
        }
    }
}

/// Expands every reference in `text`.
pub fn expand(text: &str, environment: Environment<'_>) -> Result<Expanded, ExpandError> {
    let mut expanded = Expanded { text: String::new(), variables: Vec::new() };
    expand_into(&mut expanded, text, environment, 0)?;
    Ok(expanded)
}

/// Text that [`expand`] turns into `literal` again.
pub fn escape(literal: &str) -> String {
    literal.replace('$', "$$")
}

fn expand_into(
    into: &mut Expanded,
    text: &str,
    environment: Environment<'_>,
    depth: usize,
) -> Result<(), ExpandError> {
    if depth > DEPTH_MAX {
        return Err(ExpandError::TooDeep);
    }
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        append(into, &rest[..dollar])?;
        let after = &rest[dollar + 1..];
        rest = if let Some(literal) = after.strip_prefix('$') {
            append(into, "$")?;
            literal
        } else if let Some(inside) = after.strip_prefix('{') {
            let end = closing_brace(inside).ok_or(ExpandError::Unclosed)?;
            expand_reference(into, &inside[..end], environment, depth)?;
            &inside[end + 1..]
        } else {
            let length = after.find(|c| !is_name_character(c)).unwrap_or(after.len());
            if is_name(&after[..length]) {
                return Err(ExpandError::Bare(after[..length].into()));
            }
            append(into, "$")?;
            after
        };
    }
    append(into, rest)
}

/// `inside` is what stands between `${` and its `}`.
fn expand_reference(
    into: &mut Expanded,
    inside: &str,
    environment: Environment<'_>,
    depth: usize,
) -> Result<(), ExpandError> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) {
        return Err(ExpandError::Malformed(super::document::shown(inside)));
    }
    match (environment(name), default) {
        (Some(value), _) if !value.is_empty() => {
            if !into.variables.iter().any(|known| known == name) {
                into.variables.push(name.into());
            }
            append(into, &value)
        }
        (_, Some(default)) => expand_into(into, default, environment, depth + 1),
        (Some(_), None) => Ok(()),
        (None, None) => Err(ExpandError::Unset(name.into())),
    }
}

fn append(into: &mut Expanded, text: &str) -> Result<(), ExpandError> {
    if into.text.len() + text.len() > BYTES_MAX {
        return Err(ExpandError::TooLong);
    }
    into.text.push_str(text);
    Ok(())
}

/// Where the brace closes that was opened just before `text`: inner `${` must close first.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0;
    let mut previous = ' ';
    for (index, character) in text.char_indices() {
        match character {
            '{' if previous == '$' => open += 1,
            '}' if open == 0 => return Some(index),
            '}' => open -= 1,
            _ => {}
        }
        let escaped = character == '$' && previous == '$';
        previous = if escaped { ' ' } else { character };
    }
    None
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_name_character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/u".into()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("${HOME}".into()),
            _ => None,
        }
    }

    fn text_of(text: &str) -> Result<String, ExpandError> {
        expand(text, &environment).map(|expanded| expanded.text)
    }

    #[test]
    fn references_and_defaults() {
        let cases = [
            ("plain", "plain"),
            ("${HOME}/x", "/home/u/x"),
            ("${NONE:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("${NONE:-${HOME:-.}/.cache}/t", "/home/u/.cache/t"),
            ("${NONE:-${ALSO:-a}b}c", "abc"),
            ("$$HOME costs $5 and a $", "$HOME costs $5 and a $"),
            ("${DOLLAR}", "${HOME}"),
        ];
        for (text, expected) in cases {
            assert_eq!(text_of(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn each_fault_has_a_remedy() {
        let cases = [
            ("${NONE}", "the environment variable NONE is not set; set it, or write ${NONE:-default}"),
            ("a${HOME", "`${` has no closing `}`; close it, or write $$ for a dollar sign"),
            (
                "${1x}",
                "`${1x}` does not name a variable; write ${NAME} or ${NAME:-default}, or $$ for a dollar sign",
            ),
            ("$HOME/x", "`$HOME` is not expanded without braces; write ${HOME}, or $$ for a dollar sign"),
        ];
        for (text, expected) in cases {
            let error = text_of(text).unwrap_err();
            assert_eq!(format!("{error}; {}", error.remedy()), expected, "{text}");
        }
        let nested = "${A:-".repeat(40) + &"}".repeat(40);
        assert_eq!(text_of(&nested), Err(ExpandError::TooDeep));
        let huge = |_: &str| Some("x".repeat(1 << 19));
        assert_eq!(expand("${A}${A}${A}", &huge), Err(ExpandError::TooLong));
    }

    #[test]
    fn variables_that_were_used_are_named_once() {
        let expanded = expand("${HOME}/${NONE:-n}/${HOME}", &environment).unwrap();
        assert_eq!(expanded.variables, ["HOME"]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r"(\$|\{|\}|:-|[A-Z]|é|\PC){0,60}") {
            let _ = text_of(&text);
        }

        #[test]
        fn escaped_text_expands_to_itself(text in r"(\$|\{|\}|:-|[A-Z]|\PC){0,60}") {
            prop_assert_eq!(text_of(&escape(&text)), Ok(text));
        }
    }
}
