//! The prediction as a picture: predicted curves dashed, measured points solid, and how well the two agree.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Checked, Measurement, Prediction, Scaling};
use crate::median;

const SIZE: (u32, u32) = (1200, 470);
/// Curves that can be told apart; the text and the JSON have all of them.
const CURVES_MAX: usize = 7;
const LINE_PX: i32 = 18;
/// Legible on white and on black: the background stays transparent.
const TEXT: RGBColor = RGBColor(0x77, 0x77, 0x77);
/// Okabe and Ito (2008): people with any colour vision tell them apart.
const COLOURS: [RGBColor; CURVES_MAX] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x9a, 0x9a, 0x9a),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Strong scaling, weak scaling, and predicted against measured, side by side, as an SVG document.
pub fn picture(prediction: &Prediction) -> String {
    let mut svg = String::new();
    // Drawing into a string fails only on memory.
    let _ = draw(prediction, &mut svg);
    svg
}

fn draw(prediction: &Prediction, svg: &mut String) -> Drawn {
    let curves = &prediction.scaling[..prediction.scaling.len().min(CURVES_MAX)];
    let legend = (curves.len() as i32 + 2) * LINE_PX;
    let area = SVGBackend::with_string(svg, (SIZE.0, SIZE.1 + legend.unsigned_abs())).into_drawing_area();
    let (panels, below) = area.split_vertically(SIZE.1);
    let panels = panels.split_evenly((1, 3));
    let scope = &prediction.scope;
    let strong = format!("PREDICTED strong scaling, {} micro-batches a step", scope.micro_batches);
    efficiencies(&panels[0], prediction, curves, &strong, Kind::Strong)?;
    let weak = format!("PREDICTED weak scaling, {} micro-batch(es) a rank", scope.micro_batches_a_rank);
    efficiencies(&panels[1], prediction, curves, &weak, Kind::Weak)?;
    agreement(&panels[2], prediction)?;
    draw_legend(&below, curves, prediction)?;
    area.present()?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Strong,
    Weak,
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT)
}

/// Dashed: predicted. Dots: measured, where runs on one rank and on several were measured with the same
/// micro-batches.
fn efficiencies(area: &Area, prediction: &Prediction, curves: &[Scaling], title: &str, kind: Kind) -> Drawn {
    let powers = f64::from(prediction.scope.to.max(2)).log2();
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(14))
        .margin(10)
        .x_label_area_size(38)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..powers, 0.0..1.05)?;
    chart
        .configure_mesh()
        .x_desc("ranks")
        .y_desc(if kind == Kind::Strong { "E_s = T(1) / (N·T(N))" } else { "E_w = T(1) / T(N)" })
        .x_labels(powers as usize + 1)
        .x_label_formatter(&|power| format!("{:.0}", power.exp2()))
        .y_label_formatter(&|value| format!("{value:.1}"))
        .axis_style(TEXT)
        .bold_line_style(TEXT.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(12))
        .axis_desc_style(text(12))
        .draw()?;
    for (scaling, colour) in curves.iter().zip(COLOURS) {
        let predicted = scaling.points.iter().map(|point| {
            let predicted = if kind == Kind::Strong { &point.strong } else { &point.weak };
            (f64::from(point.ranks).log2(), predicted)
        });
        let range = |(x, predicted): (f64, &super::Predicted)| {
            let (low, high) = predicted.efficiency_range;
            PathElement::new([(x, low), (x, high)], colour.mix(0.5).stroke_width(4))
        };
        chart.draw_series(predicted.clone().map(range))?;
        let points = predicted.map(|(x, predicted)| (x, predicted.efficiency));
        chart.draw_series(DashedLineSeries::new(points, 6, 4, colour.stroke_width(2)))?;
        let measured = measured(prediction, scaling, kind).into_iter();
        chart.draw_series(measured.map(|at| Circle::new(at, 4, colour.filled())))?;
    }
    Ok(())
}

/// Measured efficiencies that mean the same as the curve's: the same series and micro-batches.
fn measured(prediction: &Prediction, scaling: &Scaling, kind: Kind) -> Vec<(f64, f64)> {
    let all = || prediction.fitted.iter().chain(&prediction.held_out).map(|checked| &checked.measurement);
    let scope = &prediction.scope;
    let alone = |micro_batches: u32| {
        let same = |run: &&Measurement| {
            run.ranks == 1 && run.workload == scaling.series.workload && run.micro_batches == micro_batches
        };
        let seconds: Vec<f64> = all().filter(same).map(|run| run.step_s).collect();
        median(&seconds)
    };
    let point = |run: &Measurement| {
        let ranks = f64::from(run.ranks);
        let efficiency = match kind {
            Kind::Strong if run.micro_batches == scope.micro_batches => {
                alone(run.micro_batches)? / (ranks * run.step_s)
            }
            Kind::Weak if run.micro_batches == scope.micro_batches_a_rank.saturating_mul(run.ranks) => {
                alone(scope.micro_batches_a_rank)? / run.step_s
            }
            _ => return None,
        };
        Some((ranks.log2(), efficiency))
    };
    let of_series = |run: &&Measurement| run.ranks > 1 && super::Series::from(*run) == scaling.series;
    all().filter(of_series).filter_map(point).collect()
}

/// Predicted ÷ measured of every measurement: solid where it was held out of the fit.
fn agreement(area: &Area, prediction: &Prediction) -> Drawn {
    let at = |checked: &Checked| {
        (checked.measurement.step_s.log10(), checked.predicted_step_s / checked.measurement.step_s)
    };
    let all: Vec<(f64, f64)> = prediction.fitted.iter().chain(&prediction.held_out).map(at).collect();
    let fold = |of: fn(&(f64, f64)) -> f64| {
        all.iter()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (fastest, slowest) = fold(|point| point.0);
    let (low, high) = fold(|point| point.1);
    let limit = (prediction.max_error_percent / 100.0).min(1.0);
    let reach = (1.0 - low).max(high - 1.0).max(limit) * 1.2;
    let (left, right) = (fastest - 0.1, slowest + 0.1);
    let mut chart = ChartBuilder::on(area)
        .caption("predicted ÷ measured", text(14))
        .margin(10)
        .x_label_area_size(38)
        .y_label_area_size(46)
        .build_cartesian_2d(left..right, 1.0 - reach..1.0 + reach)?;
    chart
        .configure_mesh()
        .x_desc("measured seconds a step")
        .x_labels(5)
        .x_label_formatter(&|power| format!("{:.2}", 10f64.powf(*power)))
        .y_label_formatter(&|value| format!("{value:.2}"))
        .axis_style(TEXT)
        .bold_line_style(TEXT.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(12))
        .axis_desc_style(text(12))
        .draw()?;
    let line = |height: f64| [(left, height), (right, height)];
    chart.draw_series(LineSeries::new(line(1.0), TEXT.stroke_width(1)))?;
    for height in [1.0 - limit, 1.0 + limit] {
        chart.draw_series(DashedLineSeries::new(line(height), 3, 3, TEXT.stroke_width(1)))?;
    }
    chart.draw_series(prediction.fitted.iter().map(|checked| Circle::new(at(checked), 4, COLOURS[0])))?;
    chart.draw_series(
        prediction.held_out.iter().map(|checked| Circle::new(at(checked), 5, COLOURS[1].filled())),
    )?;
    Ok(())
}

fn draw_legend(area: &Area, curves: &[Scaling], prediction: &Prediction) -> Drawn {
    let style = text(13).pos(Pos::new(HPos::Left, VPos::Center));
    for (row, (scaling, colour)) in curves.iter().zip(COLOURS).enumerate() {
        let y = row as i32 * LINE_PX + LINE_PX / 2;
        for dash in 0..3 {
            area.draw(&PathElement::new([(16 + dash * 10, y), (22 + dash * 10, y)], colour.stroke_width(2)))?;
        }
        area.draw_text(&scaling.series.to_string(), &style, (52, y))?;
    }
    let more = match prediction.scaling.len().saturating_sub(curves.len()) {
        0 => String::new(),
        more => format!("; {more} more curves are not drawn"),
    };
    let y = curves.len() as i32 * LINE_PX + LINE_PX / 2;
    let note = format!(
        "Dashed lines and their ranges are predicted by a fitted cost model, dots measured{more}. Right: circles are \
         measurements that the model was fitted to, dots those held out."
    );
    area.draw_text(&note, &style, (16, y))?;
    Ok(())
}
