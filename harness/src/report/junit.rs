//! `junit.xml`, for continuous integration.
//!
//! There are several schemas of this format, none official. The document keeps to what the strict ones have in common,
//! those of Ant's JUnit task and of Jenkins' xUnit plugin: GitLab and GitHub's reporters read it, too. So the root has
//! no attributes, every suite has all of its own, and its children come in one order.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::view::{CaseView, Class, Report};

/// A test suite a group, a test case a case. A skipped case is shown as skipped.
pub fn junit(report: &Report) -> io::Result<String> {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    writer.create_element("testsuites").write_inner_content(|writer| {
        let groups = report.groups();
        groups.iter().enumerate().try_for_each(|(index, group)| suite(writer, report, index, group))
    })?;
    let mut text = String::from_utf8(writer.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

fn suite(writer: &mut Writer<Vec<u8>>, report: &Report, index: usize, group: &str) -> io::Result<()> {
    let cases: Vec<&CaseView> = report.views().filter(|view| view.group == group).collect();
    let count =
        |wanted: fn(Class) -> bool| cases.iter().filter(|view| wanted(view.class)).count().to_string();
    let attributes = [
        ("package", token(&report.title, "lockstep-harness")),
        ("id", index.to_string()),
        ("name", token(group, "cases")),
        ("timestamp", timestamp(report.started_unix_s)),
        ("hostname", "localhost".into()),
        ("tests", cases.len().to_string()),
        ("failures", count(|class| class == Class::Different)),
        ("errors", count(|class| class == Class::CouldNotRun)),
        ("skipped", count(|class| class == Class::Skipped)),
        ("time", seconds(cases.iter().map(|view| view.seconds).sum())),
    ];
    let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
    writer.create_element("testsuite").with_attributes(attributes).write_inner_content(|writer| {
        writer.create_element("properties").write_empty()?;
        cases.iter().try_for_each(|view| test_case(writer, view))?;
        writer.create_element("system-out").write_text_content(BytesText::new(&clean(&report.sentence)))?;
        writer.create_element("system-err").write_empty()?;
        Ok(())
    })?;
    Ok(())
}

fn test_case(writer: &mut Writer<Vec<u8>>, view: &CaseView) -> io::Result<()> {
    let CaseView { group, strategy, ranks, .. } = view;
    let attributes = [
        ("name", token(&view.name, "case")),
        ("classname", token(&format!("{group} {strategy} {ranks}"), "case")),
        ("time", seconds(view.seconds)),
    ];
    let element = writer
        .create_element("testcase")
        .with_attributes(attributes.iter().map(|(name, value)| (*name, value.as_str())));
    let child = match view.class {
        Class::Golden | Class::Passed => return element.write_empty().map(drop),
        Class::Different => "failure",
        Class::CouldNotRun => "error",
        Class::Skipped => "skipped",
    };
    let problem = clean(view.problem.as_deref().unwrap_or_default());
    let message = token(&problem, &view.verdict);
    let detail = clean(view.detail.as_deref().unwrap_or(&problem));
    element.write_inner_content(|writer| {
        let attributes = [("message", message.as_str()), ("type", view.class.name())];
        writer
            .create_element(child)
            .with_attributes(attributes)
            .write_text_content(BytesText::new(&detail))?;
        Ok(())
    })?;
    Ok(())
}

/// One word after another, as the schemas want names; never empty.
fn token(text: &str, otherwise: &str) -> String {
    let words = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() { otherwise.to_owned() } else { words }
}

/// Without the characters that no XML document may hold.
fn clean(text: &str) -> String {
    let allowed = |c: &char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars().filter(allowed).collect()
}

fn seconds(value: f64) -> String {
    format!("{:.3}", if value.is_finite() { value.clamp(0.0, 1e9) } else { 0.0 })
}

/// Coordinated universal time without a zone, as the schemas want it: `2026-01-31T12:00:00`.
fn timestamp(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years have four digits there.
    let (year, month, day) = date(days.min(2_932_896));
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The date so many days after 1 January 1970, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(timestamp(1_767_225_599), "2025-12-31T23:59:59");
        assert_eq!(timestamp(4_107_542_400), "2100-03-01T00:00:00");
        assert!(timestamp(u64::MAX).starts_with("9999-12-31T"));
    }

    #[test]
    fn numbers_are_numbers() {
        let all = [0.0, 1.5, -1.0, f64::NAN, f64::INFINITY, 1e300].map(seconds);
        assert_eq!(all, ["0.000", "1.500", "0.000", "0.000", "0.000", "1000000000.000"]);
    }

    #[test]
    fn names_are_never_empty_and_hold_no_control_characters() {
        assert_eq!(token(" a\u{0}\n\u{b}b ", "x"), "a b");
        assert_eq!(token(" \u{1} ", "x"), "x");
        assert_eq!(clean("a\u{ffff}\u{8}b"), "ab");
    }
}
