//! The table on the terminal: a line a metric, printed as soon as the comparison is done.

use super::plan::Aim;
use super::results::{Finding, Row};
use crate::report::one_line;

/// Column widths, known before the first run so that lines can be printed one by one.
pub struct Table {
    name: usize,
    link: usize,
}

const METRIC_WIDTH: usize = "tokens_per_second".len();

impl Table {
    /// Of comparisons with these names and links.
    pub fn new<'a>(comparisons: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut table = Self { name: "comparison".len(), link: "link".len() };
        for (name, link) in comparisons {
            table.name = table.name.max(name.len());
            table.link = table.link.max(link.len());
        }
        table
    }

    pub fn head(&self) -> String {
        self.line([
            "comparison",
            "ranks",
            "link",
            "metric",
            "ours/theirs",
            "[min–max]",
            "pairs",
            "disturbed",
            "aim",
            "met",
        ])
    }

    /// A line per metric, and one more if it could not be run to its end.
    pub fn rows(&self, finding: &Finding) -> String {
        let measured = finding.rows.iter().filter(|_| !finding.pairs.is_empty());
        let mut lines: Vec<String> = measured.map(|row| self.row(finding, row)).collect();
        if let Some(problem) = &finding.problem {
            lines.push(format!("{:w$}  COULD NOT RUN: {}", finding.name, one_line(problem), w = self.name));
        }
        lines.join("\n")
    }

    fn row(&self, finding: &Finding, row: &Row) -> String {
        self.line([
            &finding.name,
            &finding.ranks.to_string(),
            &finding.link,
            row.aim.metric.name(),
            &row.spread.map_or("—".into(), |spread| figure_text(spread.median)),
            &row.spread.map_or(String::new(), |s| format!("[{}–{}]", figure_text(s.min), figure_text(s.max))),
            &row.figures.len().to_string(),
            &finding.disturbed().to_string(),
            &aim_text(&row.aim),
            &row.met.to_string(),
        ])
    }

    fn line(&self, columns: [&str; 10]) -> String {
        let [name, ranks, link, metric, ratio, range, pairs, disturbed, aim, met] = columns;
        let (w_name, w_link) = (self.name, self.link);
        let line = format!(
            "{name:w_name$}  {ranks:>5}  {link:w_link$}  {metric:METRIC_WIDTH$}  {ratio:>11}  {range:15}  \
             {pairs:>5}  {disturbed:>9}  {aim:7}  {met}"
        );
        line.trim_end().to_owned()
    }
}

/// Three digits after the point: runs on a shared machine do not tell more.
pub fn figure_text(figure: f64) -> String {
    format!("{figure:.3}")
}

/// `≥ 1.1`, `≤ 0.5`, `—`.
pub fn aim_text(aim: &Aim) -> String {
    match (aim.at_least, aim.at_most) {
        (Some(bound), _) => format!("≥ {bound}"),
        (None, Some(bound)) => format!("≤ {bound}"),
        (None, None) => "—".into(),
    }
}

/// What the last pair gave.
pub fn progress(finding: &Finding) -> String {
    let Some(pair) = finding.pairs.last() else { return String::new() };
    let first = if pair.ours_first { "ours first" } else { "theirs first" };
    let ratios: Vec<String> = finding
        .rows
        .iter()
        .filter_map(|row| {
            let ratio = super::measure::figure(&pair.ours, &pair.theirs, row.aim.metric)?;
            Some(format!("{} {}", row.aim.metric, figure_text(ratio)))
        })
        .collect();
    let others = 100.0 * pair.ours.others_share.max(pair.theirs.others_share);
    let quiet = if pair.disturbed { ": DISTURBED" } else { "" };
    format!(
        "{}: pair {} ({first}): {}; others used {others:.1} % of the cores{quiet}",
        finding.name,
        finding.pairs.len(),
        ratios.join(", "),
    )
}
