//! Loss curves as SVG that the page's style sheet colours, so that they follow light and dark.

use lockstep_record::{RunDir, read_lines};
use plotters::prelude::*;

use super::cell::{Cell, Outcome};

/// Points of a curve; longer runs are thinned out.
const POINTS_MAX: usize = 600;
const SIZE: (u32, u32) = (860, 300);
/// Stand-ins that the style sheet replaces: see `page.html`.
const GOLDEN: RGBColor = RGBColor(0xc8, 0x96, 0x00);
const PASSED: RGBColor = RGBColor(0x00, 0x64, 0xc8);
const DIFFERENT: RGBColor = RGBColor(0xc8, 0x00, 0x00);

/// Step and loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(pub Vec<(f64, f64)>);

/// The losses that a run has recorded so far. What cannot be read is left out: judging it is `compare`'s work.
pub fn read_curve(run: &RunDir) -> Curve {
    let Ok(lines) = read_lines::<lockstep_record::StepLine>(&run.metrics()) else { return Curve::default() };
    let points = lines.map_while(Result::ok).map(|line| (line.step as f64, line.loss.0));
    thin(points.filter(|(_, loss)| loss.is_finite()).collect())
}

fn thin(points: Vec<(f64, f64)>) -> Curve {
    let stride = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    Curve(
        points
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % stride == 0 || *i == last)
            .map(|(_, p)| p)
            .collect(),
    )
}

/// The curves of one group: the golden run broad, candidates thin on top of it. None without any point.
pub fn chart(cells: &[&Cell]) -> Option<String> {
    let points = || cells.iter().flat_map(|cell| cell.curve.0.iter().copied());
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (first, last) = span(&mut points().map(|(step, _)| step));
    let (low, high) = span(&mut points().map(|(_, loss)| loss));
    if !(first.is_finite() && low.is_finite()) {
        return None;
    }
    let margin = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-6);
    let mut svg = String::new();
    draw(cells, (first, last.max(first + 1.0)), (low - margin, high + margin), &mut svg).ok()?;
    Some(svg)
}

fn draw(
    cells: &[&Cell],
    steps: (f64, f64),
    losses: (f64, f64),
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(steps.0..steps.1, losses.0..losses.1)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .x_labels((steps.1 - steps.0).clamp(1.0, 8.0) as usize + 1)
        .y_labels(6)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .disable_x_mesh()
        .draw()?;
    let rank = |cell: &Cell| {
        matches!(cell.outcome, Outcome::Different) as u8 + !matches!(cell.outcome, Outcome::Golden) as u8
    };
    let mut ordered = cells.to_vec();
    ordered.sort_by_key(|cell| rank(cell));
    for cell in ordered {
        let style = match cell.outcome {
            Outcome::Golden => GOLDEN.stroke_width(7),
            Outcome::Passed => PASSED.stroke_width(1),
            _ => DIFFERENT.stroke_width(2),
        };
        chart.draw_series(LineSeries::new(cell.curve.0.iter().copied(), style))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_thinned_and_keep_both_ends() {
        let points: Vec<_> = (0..10_000).map(|step| (f64::from(step), 1.0)).collect();
        let thinned = thin(points).0;
        assert!(thinned.len() <= POINTS_MAX + 1);
        assert_eq!((thinned[0].0, thinned[thinned.len() - 1].0), (0.0, 9999.0));
        assert_eq!(thin(Vec::new()), Curve::default());
    }
}
