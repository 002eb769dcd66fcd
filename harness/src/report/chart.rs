//! One quantity of several runs as SVG that the page's style sheet colours, so that it follows light and dark.

use plotters::prelude::*;

use super::curves::{Point, Quantity};

const WIDTH: u32 = 560;
const HEIGHT: u32 = 260;
const MARGIN: u32 = 8;
const BELOW: u32 = 34;
const LEFT: u32 = 64;
/// Stand-ins for a series' colour begin with this red and have its number for green and blue.
const STAND_IN: &str = "stroke=\"#01";
/// Series that have a number of their own.
const SERIES_MAX: usize = 1 << 16;
/// Steps and values beyond these are not drawn: doubles would not tell neighbours apart.
const STEP_MAX: f64 = 1e15;
const VALUE_MAX: f64 = 1e30;

/// The curve of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    pub points: &'a [Point],
    /// Classes of the style sheet.
    pub class: String,
    /// Drawn broad, and under the others.
    pub is_reference: bool,
}

/// A chart, and where its plot lies in it, so that the page can find the step under a pointer.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    pub svg: String,
    pub first_step: f64,
    pub last_step: f64,
}

impl Chart {
    /// Pixels of the picture: its width, and where its plot begins and ends.
    pub const PLOT: (u32, u32, u32) = (WIDTH, MARGIN + LEFT, WIDTH - MARGIN);

    /// Draws the series over one another. None without any point.
    pub fn draw(quantity: &Quantity, series: &[Series]) -> Option<Self> {
        let scale = Scale::of(quantity);
        let points = |series: &Series| -> Vec<Point> {
            let drawn = |(step, value): &Point| step.abs() <= STEP_MAX && value.abs() <= VALUE_MAX;
            series
                .points
                .iter()
                .filter(|point| drawn(point))
                .map(|&(step, value)| (step, scale.up(value)))
                .collect()
        };
        let lines: Vec<Vec<Point>> = series.iter().take(SERIES_MAX).map(points).collect();
        let all = || lines.iter().flatten().copied();
        let (first, last) = span(all().map(|(step, _)| step))?;
        let (low, high) = scale.room(span(all().map(|(_, value)| value))?);
        let last = last.max(first + 1.0);
        let mut svg = String::new();
        // Drawing into a string fails only on memory.
        draw(quantity, &scale, ((first, last), (low, high)), (series, &lines), &mut svg).ok()?;
        let svg = name_series(&svg, series).replacen("<svg ", "<svg aria-hidden=\"true\" ", 1);
        Some(Self { svg, first_step: first, last_step: last })
    }
}

/// The least and the largest; None of nothing.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values.fold(start, |(low, high), value| (low.min(value), high.max(value)));
    (low <= high).then_some((low, high))
}

/// How values become heights.
enum Scale {
    Linear,
    /// Up to 1 as they are, then a unit for each power of ten: 0, 1, 10, 100, …
    Ulps,
}

impl Scale {
    fn of(quantity: &Quantity) -> Self {
        match quantity {
            Quantity::Divergence => Self::Ulps,
            _ => Self::Linear,
        }
    }

    fn up(&self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Ulps if value <= 1.0 => value.max(0.0),
            Self::Ulps => 1.0 + value.log10(),
        }
    }

    fn label(&self, height: f64) -> String {
        match self {
            Self::Linear => number(height),
            // Between powers of ten.
            Self::Ulps if (height - height.round()).abs() > 1e-3 => String::new(),
            Self::Ulps if height < 0.5 => "0".into(),
            Self::Ulps if height < 1.5 => "1".into(),
            Self::Ulps if height < 5.5 => format!("{:.0}", 10f64.powf((height - 1.0).round())),
            Self::Ulps => format!("1e{:.0}", height - 1.0),
        }
    }

    /// Some room above and below, also where all values are one.
    fn room(&self, (low, high): (f64, f64)) -> (f64, f64) {
        match self {
            Self::Linear => {
                let margin = ((high - low) * 0.05).max(high.abs().max(low.abs()) * 1e-3).max(1e-6);
                (low - margin, high + margin)
            }
            Self::Ulps => (0.0, (high * 1.05).max(1.2)),
        }
    }

    fn labels(&self, high: f64) -> usize {
        match self {
            Self::Linear => 6,
            // So many that each power of ten has one.
            Self::Ulps => high as usize + 2,
        }
    }
}

/// Four digits at most, or a power of ten.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        size if size < 0.1 => format!("{value:.4}"),
        size if size < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

type Span = (f64, f64);

fn draw(
    quantity: &Quantity,
    scale: &Scale,
    (steps, values): (Span, Span),
    (series, lines): (&[Series], &[Vec<Point>]),
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(MARGIN)
        .x_label_area_size(BELOW)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(steps.0..steps.1, values.0..values.1)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(quantity.unit())
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|height| scale.label(*height))
        .x_labels((steps.1 - steps.0).clamp(1.0, 8.0) as usize + 1)
        .y_labels(scale.labels(values.1))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .disable_x_mesh()
        .draw()?;
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|&index| !series[index].is_reference);
    for index in order {
        let colour = RGBColor(1, (index >> 8) as u8, index as u8);
        let style = colour.stroke_width(if series[index].is_reference { 7 } else { 2 });
        chart.draw_series(LineSeries::new(lines[index].iter().copied(), style))?;
    }
    area.present()?;
    Ok(())
}

/// Puts each series' class and number in the place of its stand-in colour.
fn name_series(svg: &str, series: &[Series]) -> String {
    let mut parts = svg.split(STAND_IN);
    let mut named = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let index = part.get(..4).and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match index.and_then(|index| Some((index, series.get(index)?, part.get(5..)?))) {
            Some((index, series, rest)) => {
                named.push_str(&format!("class=\"curve {}\" data-series=\"{index}\"{rest}", series.class));
            }
            None => named.extend([STAND_IN, part]),
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Targets;
    use proptest::prelude::*;

    const LOSS: Quantity = Quantity::Loss(Targets::Tokens);

    fn series<'a>(points: &'a [Point], class: &str) -> Series<'a> {
        Series { points, class: class.into(), is_reference: class == "golden" }
    }

    #[test]
    fn every_series_can_be_styled_and_the_reference_lies_below() {
        let (a, b) = ([(1.0, 2.0), (2.0, 1.0)], [(1.0, 2.0), (2.0, 3.0)]);
        let chart = Chart::draw(&LOSS, &[series(&a, "passed"), series(&b, "golden")]).unwrap();
        let golden = chart.svg.find("class=\"curve golden\" data-series=\"1\"").unwrap();
        assert!(golden < chart.svg.find("class=\"curve passed\" data-series=\"0\"").unwrap());
        assert!(!chart.svg.contains("#01"), "{}", chart.svg);
        assert_eq!((chart.first_step, chart.last_step), (1.0, 2.0));
    }

    #[test]
    fn nothing_to_draw_is_no_chart() {
        assert_eq!(Chart::draw(&LOSS, &[]), None);
        assert_eq!(Chart::draw(&LOSS, &[series(&[(1.0, f64::NAN)], "passed")]), None);
    }

    #[test]
    fn ulps_have_a_label_each_power_of_ten() {
        let label = |ulps: f64| Scale::Ulps.label(Scale::Ulps.up(ulps));
        assert_eq!([0.0, 1.0, 10.0, 1e4, 1e10].map(label), ["0", "1", "10", "10000", "1e10"]);
        assert_eq!(
            [0.0, 2e-5, 0.0123, 4.5, 1234.0, 1e7].map(number),
            ["0", "2.0e-5", "0.0123", "4.50", "1234", "1.0e7"]
        );
    }

    proptest! {
        /// Labels are found by a search that ends only on ranges that make sense.
        #[test]
        fn no_numbers_panic_or_hang(points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..8)) {
            for quantity in Quantity::of([]) {
                let _ = Chart::draw(&quantity, &[series(&points, "passed")]);
            }
        }
    }
}
