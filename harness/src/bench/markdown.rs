//! The results as Markdown, and their place in a document: between two markers, so that a document holds
//! exactly what the program found.

use super::results::{Finding, Results, Row};
use super::statistics::Met;
use super::table::{aim_text, figure_text};
use crate::report::one_line;

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// A table with one line a metric, and what it was measured on.
pub fn table(results: &Results) -> String {
    let mut text = String::from(
        "| comparison | configuration | ranks | link | ours | theirs | metric | median of ours | of theirs \
         | ours ÷ theirs, median (range) | pairs | disturbed | aim | met |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for finding in &results.comparisons {
        for row in &finding.rows {
            text += &line(finding, row);
        }
    }
    for (what, facts) in [("Machine", distinct(results, machines)), ("Programs", distinct(results, programs))]
    {
        if !facts.is_empty() {
            text += &format!("\n{what}: {}.\n", facts.join("; "));
        }
    }
    for finding in &results.comparisons {
        if let Some(problem) = &finding.problem {
            text += &format!("\n`{}` could not be run to its end: {}\n", finding.name, cell(problem));
        }
    }
    text
}

fn line(finding: &Finding, row: &Row) -> String {
    let value = |value: Option<f64>| value.map_or("—".into(), |value| row.aim.metric.show(value));
    let ratio = row.spread.map_or("—".into(), |spread| {
        format!("{} ({} to {})", figure_text(spread.median), figure_text(spread.min), figure_text(spread.max))
    });
    let met = match row.met {
        Met::No | Met::Disturbed => format!("**{}**", row.met.to_string().to_lowercase()),
        met => met.to_string(),
    };
    let columns = [
        finding.name.clone(),
        finding.config.clone(),
        finding.ranks.to_string(),
        finding.link.clone(),
        finding.ours.label.clone(),
        finding.theirs.label.clone(),
        row.aim.metric.to_string(),
        value(row.ours),
        value(row.theirs),
        ratio,
        row.figures.len().to_string(),
        finding.disturbed().to_string(),
        aim_text(&row.aim),
        met,
    ];
    format!("| {} |\n", columns.map(|column| cell(&column)).join(" | "))
}

fn machines(finding: &Finding) -> Vec<String> {
    vec![finding.machine.clone()]
}

fn programs(finding: &Finding) -> Vec<String> {
    let side = |side: &super::results::SideInfo| {
        let versions: Vec<String> =
            side.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        match (side.program.is_empty(), versions.is_empty()) {
            (true, _) => String::new(),
            (false, true) => side.program.clone(),
            (false, false) => format!("{} ({})", side.program, versions.join(", ")),
        }
    };
    [&finding.ours, &finding.theirs].map(side).into_iter().filter(|text| !text.is_empty()).collect()
}

fn distinct(results: &Results, of: fn(&Finding) -> Vec<String>) -> Vec<String> {
    let mut facts: Vec<String> = results.comparisons.iter().flat_map(of).map(|fact| cell(&fact)).collect();
    facts.sort();
    facts.dedup();
    facts
}

/// What a run says of itself must not break the table, or become markup.
fn cell(text: &str) -> String {
    one_line(text).replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('`', "'")
}

/// Replaces what lies between the markers of a document.
pub fn replace(document: &str, table: &str) -> Result<String, String> {
    let begin = document.find(BEGIN).ok_or(format!("has no line `{BEGIN}`: put it where the table goes"))?;
    let begin = begin + BEGIN.len();
    let rest = document[begin..].find(END).ok_or(format!("has no line `{END}` after `{BEGIN}`"))?;
    Ok(format!("{}\n{table}{}", &document[..begin], &document[begin + rest..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_lies_between_the_markers_changes() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replace(&document, "| new |\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n| new |\n{END}\nafter\n"));
        assert_eq!(replace(&once, "| new |\n").unwrap(), once);
        assert!(replace("nothing", "x").unwrap_err().contains("bench:begin"));
        assert!(replace(&format!("{END} {BEGIN}"), "x").unwrap_err().contains("bench:end"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_cell(text in "\\PC{0,40}|[|`<\n\\\\]{0,10}") {
            let cell = cell(&text);
            prop_assert!(!cell.contains(['\n', '<', '`']));
            let unescaped = cell.replace("\\\\", "").replace("\\|", "");
            prop_assert!(!unescaped.contains('|'), "{}", cell);
        }
    }
}
