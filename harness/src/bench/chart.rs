//! The results as a picture: for each metric a panel, for each comparison a line with its pairs' ratios,
//! their median and the aim. The axis is logarithmic, so that twice as fast and half as fast are equally far
//! from 1.

use minijinja::{Environment, context};
use serde::Serialize;

use super::measure::Metric;
use super::plan::{Aim, LOOPBACK};
use super::results::{Finding, Results, Row};
use super::statistics::Met;
use super::table::{aim_text, figure_text};

const TEMPLATE: &str = include_str!("chart.svg");

/// In SVG units, which are pixels at the natural size.
const WIDTH: f64 = 1040.0;
const PLOT_LEFT: f64 = 360.0;
const PLOT_RIGHT: f64 = 780.0;
const ROW_HEIGHT: f64 = 24.0;
const PANEL_HEAD: f64 = 40.0;
const PANEL_FOOT: f64 = 34.0;
const TOP: f64 = 44.0;
/// Labels of the axis are never closer than this.
const TICK_GAP: f64 = 40.0;
const LABEL_CHARS_MAX: usize = 46;
const TICKS: [f64; 33] = [
    1.0, 0.5, 2.0, 0.1, 10.0, 0.01, 100.0, 0.2, 5.0, 1.5, 0.75, 3.0, 0.3, 1.25, 0.8, 1.1, 0.9, 1.2, 1.05,
    0.95, 0.7, 0.6, 0.4, 1.02, 0.98, 4.0, 20.0, 50.0, 0.05, 0.02, 1.01, 0.99, 0.001,
];

#[derive(Debug, PartialEq, Serialize)]
struct Panel {
    title: String,
    y: f64,
    /// Of the axis below the rows.
    axis_y: f64,
    ticks: Vec<Tick>,
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Tick {
    x: f64,
    label: String,
    /// Ours and theirs alike.
    is_one: bool,
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    label: String,
    y: f64,
    dots: Vec<Dot>,
    median: Option<f64>,
    aim: Option<f64>,
    text: String,
    class: &'static str,
}

#[derive(Debug, PartialEq, Serialize)]
struct Dot {
    x: f64,
    hollow: bool,
}

/// Draws the results. One grey serves light and dark pages.
pub fn svg(results: &Results) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_template("chart.svg", TEMPLATE)?;
    let panels = panels(results);
    let bottom = panels.last().map_or(TOP, |panel| panel.axis_y + PANEL_FOOT);
    environment.get_template("chart.svg")?.render(context! {
        panels, width => WIDTH, height => bottom, left => PLOT_LEFT, right => PLOT_RIGHT, row => ROW_HEIGHT,
        title => if results.title.is_empty() { "Ours against theirs" } else { &results.title },
    })
}

fn panels(results: &Results) -> Vec<Panel> {
    let mut y = TOP;
    let mut panels = Vec::new();
    for metric in results.metrics() {
        let of_metric = |finding: &'_ Finding| {
            finding.rows.iter().find(|row| row.aim.metric == metric && row.spread.is_some()).cloned()
        };
        let rows: Vec<(&Finding, Row)> =
            results.comparisons.iter().filter_map(|finding| Some((finding, of_metric(finding)?))).collect();
        if rows.is_empty() {
            continue;
        }
        let scale = Scale::over(rows.iter().flat_map(|(finding, row)| shown(finding, row)));
        let line = |(index, (finding, row)): (usize, &(&Finding, Row))| {
            line(finding, row, &scale, y + PANEL_HEAD + ROW_HEIGHT * (index as f64 + 0.5))
        };
        let lines: Vec<Line> = rows.iter().enumerate().map(line).collect();
        let axis_y = y + PANEL_HEAD + ROW_HEIGHT * lines.len() as f64;
        panels.push(Panel { title: title(metric).into(), y, axis_y, ticks: scale.ticks(), lines });
        y = axis_y + PANEL_FOOT;
    }
    panels
}

fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::TokensPerSecond => "Tokens per second, ours ÷ theirs: more is better",
        Metric::StartupSeconds => {
            "Seconds from launch to the first finished step, ours ÷ theirs: less is better"
        }
        Metric::ResidentBytes => "Largest resident set of a rank, ours ÷ theirs: less is better",
        Metric::ExposedShare => "Share of communication that the training waits for, ours: less is better",
        Metric::StateBytes => "Optimizer and master bytes a rank, ours ÷ theirs: less is better",
    }
}

/// Every value that must fit on the axis.
fn shown(finding: &Finding, row: &Row) -> Vec<f64> {
    let pairs = dots(finding, row.aim.metric).into_iter().map(|(ratio, _)| ratio);
    pairs.chain(bound(&row.aim)).chain([1.0]).collect()
}

/// Ratios of all pairs, and whether someone else used the cores.
fn dots(finding: &Finding, metric: Metric) -> Vec<(f64, bool)> {
    let ratio = |pair: &super::results::Pair| {
        Some((super::measure::figure(&pair.ours, &pair.theirs, metric)?, pair.disturbed && metric.is_timed()))
    };
    finding.pairs.iter().filter_map(ratio).collect()
}

fn bound(aim: &Aim) -> Option<f64> {
    aim.at_least.or(aim.at_most)
}

fn line(finding: &Finding, row: &Row, scale: &Scale, y: f64) -> Line {
    let ranks = if finding.ranks == 1 { "1 rank".into() } else { format!("{} ranks", finding.ranks) };
    let link = if finding.link == LOOPBACK { String::new() } else { format!(", {}", finding.link) };
    let ratio = row.spread.map_or(String::new(), |spread| figure_text(spread.median));
    let text = match row.met {
        Met::NoAim => ratio,
        Met::Yes => format!("{ratio}  aim {}: met", aim_text(&row.aim)),
        Met::No => format!("{ratio}  aim {}: missed", aim_text(&row.aim)),
        Met::Disturbed => format!("{ratio}  disturbed: not to be quoted"),
        Met::Unknown => format!("{ratio}  unknown"),
    };
    Line {
        label: shorten(&format!("{} ({ranks}{link})", finding.name)),
        y: round(y),
        dots: dots(finding, row.aim.metric)
            .into_iter()
            .map(|(ratio, hollow)| Dot { x: scale.x(ratio), hollow })
            .collect(),
        median: row.spread.map(|spread| scale.x(spread.median)),
        aim: bound(&row.aim).map(|bound| scale.x(bound)),
        text,
        class: match row.met {
            Met::Yes => "met",
            Met::No => "missed",
            _ => "open",
        },
    }
}

/// The end of a name tells more than its beginning: ranks and link.
fn shorten(text: &str) -> String {
    let count = text.chars().count();
    if count <= LABEL_CHARS_MAX {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(count + 1 - LABEL_CHARS_MAX)).collect()
}

/// A logarithmic axis.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (0.97f64, 1.03f64);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        let margin = (high / low).powf(0.05);
        Self { low: low / margin, high: high * margin }
    }

    /// Zero lies at the left edge: a logarithm has no place for it.
    fn x(&self, value: f64) -> f64 {
        let share = ((value / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0);
        round(PLOT_LEFT + share * (PLOT_RIGHT - PLOT_LEFT))
    }

    /// Round numbers, the roundest first, as many as have room.
    fn ticks(&self) -> Vec<Tick> {
        let mut ticks: Vec<Tick> = Vec::new();
        for value in TICKS.into_iter().filter(|value| (self.low..=self.high).contains(value)) {
            let x = self.x(value);
            if ticks.iter().all(|tick| (tick.x - x).abs() >= TICK_GAP) {
                ticks.push(Tick { x, label: value.to_string(), is_one: value == 1.0 });
            }
        }
        ticks
    }
}

/// Tenths of a pixel are enough, and keep the file readable.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_names_keep_their_end() {
        let long = format!("{} (2 ranks)", "a".repeat(80));
        let short = shorten(&long);
        assert!(
            short.chars().count() == LABEL_CHARS_MAX
                && short.starts_with('…')
                && short.ends_with("(2 ranks)")
        );
        assert_eq!(shorten("short"), "short");
    }

    proptest! {
        #[test]
        fn everything_lies_on_the_axis_and_in_order(
            values in proptest::collection::vec(1e-4..1e4f64, 1..20),
        ) {
            let scale = Scale::over(values.iter().copied());
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let places: Vec<f64> = sorted.iter().map(|value| scale.x(*value)).collect();
            prop_assert!(places.is_sorted());
            prop_assert!(places.iter().all(|x| (PLOT_LEFT..=PLOT_RIGHT).contains(x)));
            let ticks = scale.ticks();
            prop_assert!(ticks.iter().any(|tick| tick.is_one), "1 is always on the axis");
            for (index, tick) in ticks.iter().enumerate() {
                prop_assert!(ticks[..index].iter().all(|other| (other.x - tick.x).abs() >= TICK_GAP));
            }
        }
    }
}
