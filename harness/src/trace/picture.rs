//! A few steps as a picture: a row for each thread of each rank, a colour for each category.

use std::collections::BTreeMap;

use lockstep_record::{COMMUNICATION_THREAD, Category, Span};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Steps that are drawn: more could not be told apart.
const STEPS_MAX: u64 = 3;
const RANKS_MAX: u32 = 16;
const SPANS_MAX: usize = 50_000;

const WIDTH: u32 = 1200;
const ROW: i32 = 22;
const RANK_GAP: i32 = 12;
const LEFT: i32 = 150;
const RIGHT: i32 = 16;
const TOP: i32 = 56;
const BOTTOM: i32 = 44;
/// Legible on white and on black: the background stays transparent.
const TEXT: RGBColor = RGBColor(0x77, 0x77, 0x77);
/// A bar narrower than this has no number in it.
const NUMBER_PX: i32 = 18;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A bar's colour and that of the number in it. The colours are those of Okabe and Ito (2008), which people
/// with any colour vision tell apart.
fn colours(category: Category) -> (RGBColor, RGBColor) {
    match category {
        Category::Data => (RGBColor(0x56, 0xb4, 0xe9), BLACK),
        Category::Forward => (RGBColor(0x00, 0x72, 0xb2), WHITE),
        Category::Backward => (RGBColor(0x00, 0x9e, 0x73), WHITE),
        Category::Optimizer => (RGBColor(0xcc, 0x79, 0xa7), BLACK),
        Category::Record => (RGBColor(0x9a, 0x9a, 0x9a), BLACK),
        Category::Wait => (RGBColor(0xd5, 0x5e, 0x00), WHITE),
        Category::Communication => (RGBColor(0xe6, 0x9f, 0x00), BLACK),
    }
}

/// The spans to draw, gathered while the traces are read.
#[derive(Default)]
pub struct Sketch {
    first_step: Option<u64>,
    spans: Vec<Span>,
    names: BTreeMap<u32, String>,
    left_out: bool,
}

impl Sketch {
    pub fn add(&mut self, span: Span) {
        let first = *self.first_step.get_or_insert(span.args.step);
        if !(first..first + STEPS_MAX).contains(&span.args.step) {
            return;
        }
        match span.rank < RANKS_MAX && self.spans.len() < SPANS_MAX {
            true => self.spans.push(span),
            false => self.left_out = true,
        }
    }

    pub fn name(&mut self, rank: usize, label: &str) {
        self.names.extend(u32::try_from(rank).ok().map(|rank| (rank, label.to_owned())));
    }

    /// What the picture does not show.
    pub fn note(&self) -> Option<String> {
        self.left_out.then(|| {
            format!("the picture shows the first {RANKS_MAX} ranks, and at most {SPANS_MAX} spans of them")
        })
    }

    /// The picture as an SVG document.
    pub fn svg(&self) -> String {
        let rows = Rows::of(&self.spans);
        let mut svg = String::new();
        // Drawing into a string fails only on memory.
        let _ = self.draw(&rows, &mut svg);
        svg
    }

    fn draw(&self, rows: &Rows, svg: &mut String) -> Drawn {
        let area = SVGBackend::with_string(svg, (WIDTH, rows.height())).into_drawing_area();
        let axis = Axis::of(&self.spans);
        draw_legend(&area)?;
        self.draw_labels(&area, rows)?;
        self.draw_steps(&area, rows, &axis)?;
        axis.draw(&area, rows.bottom())?;
        self.draw_spans(&area, rows, &axis)?;
        area.present()?;
        Ok(())
    }

    fn draw_labels(&self, area: &Area, rows: &Rows) -> Drawn {
        for (&(rank, thread), &y) in &rows.tops {
            let name = if thread == COMMUNICATION_THREAD { "communication" } else { "training" };
            area.draw_text(name, &style(13, TEXT, HPos::Right, VPos::Center), (LEFT - 8, y + ROW / 2))?;
            if rows.is_first_of_rank(rank, thread) {
                let short = format!("rank {rank}");
                let name = clip(self.names.get(&rank).unwrap_or(&short));
                let at = (4, y - RANK_GAP / 2 + 2);
                area.draw_text(&name, &style(13, TEXT, HPos::Left, VPos::Center), at)?;
            }
        }
        Ok(())
    }

    /// A line where each step begins.
    fn draw_steps(&self, area: &Area, rows: &Rows, axis: &Axis) -> Drawn {
        let mut begins: BTreeMap<u64, f64> = BTreeMap::new();
        for span in self.spans.iter().filter(|span| span.thread != COMMUNICATION_THREAD) {
            let begin = begins.entry(span.args.step).or_insert(span.start_us);
            *begin = begin.min(span.start_us);
        }
        for (step, begin) in begins {
            let at = axis.x(begin);
            area.draw(&PathElement::new([(at, TOP - 10), (at, rows.bottom())], TEXT.mix(0.6)))?;
            let text = style(13, TEXT, HPos::Left, VPos::Bottom);
            area.draw_text(&format!("step {step}"), &text, (at + 3, TOP - 3))?;
        }
        Ok(())
    }

    /// The number in a bar is that of the bucket or of the micro-batch.
    fn draw_spans(&self, area: &Area, rows: &Rows, axis: &Axis) -> Drawn {
        for span in &self.spans {
            let Some(&y) = rows.tops.get(&(span.rank, span.thread)) else { continue };
            let (from, to) = (axis.x(span.start_us), axis.x(span.start_us + span.duration_us));
            let bar = [(from, y + 2), (to.max(from + 1), y + ROW - 2)];
            let (colour, ink) = colours(span.category);
            area.draw(&Rectangle::new(bar, colour.filled()))?;
            let number = span.args.bucket.or(span.args.micro_batch).filter(|_| to - from >= NUMBER_PX);
            if let Some(number) = number {
                let middle = ((from + to) / 2, y + ROW / 2);
                area.draw_text(&number.to_string(), &style(12, ink, HPos::Center, VPos::Center), middle)?;
            }
        }
        Ok(())
    }
}

fn style(size: u32, colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(horizontal, vertical))
}

fn draw_legend(area: &Area) -> Drawn {
    for (index, category) in Category::ALL.into_iter().enumerate() {
        let at = LEFT + index as i32 * 140;
        area.draw(&Rectangle::new([(at, 12), (at + 14, 26)], colours(category).0.filled()))?;
        area.draw_text(category.name(), &style(14, TEXT, HPos::Left, VPos::Center), (at + 20, 19))?;
    }
    Ok(())
}

/// From microseconds to pixels.
struct Axis {
    start_us: f64,
    length_us: f64,
}

impl Axis {
    fn of(spans: &[Span]) -> Self {
        let start_us = spans.iter().map(|span| span.start_us).fold(f64::INFINITY, f64::min);
        let end = spans.iter().map(|span| span.start_us + span.duration_us).fold(start_us, f64::max);
        Self { start_us, length_us: (end - start_us).max(1.0) }
    }

    fn x(&self, time_us: f64) -> i32 {
        let pixels = f64::from(WIDTH as i32 - LEFT - RIGHT);
        LEFT + ((time_us - self.start_us) / self.length_us * pixels).round() as i32
    }

    /// Milliseconds since the picture begins.
    fn draw(&self, area: &Area, bottom: i32) -> Drawn {
        let below = style(13, TEXT, HPos::Center, VPos::Top);
        area.draw(&PathElement::new([(LEFT, bottom), (WIDTH as i32 - RIGHT, bottom)], TEXT))?;
        let stride_us = nice_stride(self.length_us / 8.0);
        for tick in (0..).map(|tick| f64::from(tick) * stride_us).take_while(|tick| *tick <= self.length_us) {
            let at = self.x(self.start_us + tick);
            area.draw(&PathElement::new([(at, bottom), (at, bottom + 5)], TEXT))?;
            area.draw_text(&format!("{}", tick / 1e3), &below, (at, bottom + 8))?;
        }
        area.draw_text("milliseconds", &below, ((LEFT + WIDTH as i32 - RIGHT) / 2, bottom + 25))?;
        Ok(())
    }
}

/// Where each thread's row begins, in pixels from the top.
struct Rows {
    tops: BTreeMap<(u32, u32), i32>,
}

impl Rows {
    fn of(spans: &[Span]) -> Self {
        let threads: std::collections::BTreeSet<(u32, u32)> =
            spans.iter().map(|span| (span.rank, span.thread)).collect();
        let (mut tops, mut y, mut last) = (BTreeMap::new(), TOP, None);
        for (rank, thread) in threads {
            y += if last == Some(rank) { 0 } else { RANK_GAP };
            tops.insert((rank, thread), y);
            y += ROW;
            last = Some(rank);
        }
        Self { tops }
    }

    fn bottom(&self) -> i32 {
        self.tops.values().max().map_or(TOP, |top| top + ROW) + 6
    }

    fn height(&self) -> u32 {
        (self.bottom() + BOTTOM).unsigned_abs()
    }

    fn is_first_of_rank(&self, rank: u32, thread: u32) -> bool {
        self.tops.range((rank, 0)..).next().is_some_and(|(&key, _)| key == (rank, thread))
    }
}

/// The next larger of 1, 2 and 5 times a power of ten; 1 where nothing is to be divided.
fn nice_stride(least: f64) -> f64 {
    if !(least > 0.0 && least.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.map(|factor| factor * power).into_iter().find(|stride| *stride >= least).unwrap_or(10.0 * power)
}

/// What fits left of the rows.
fn clip(name: &str) -> String {
    const CHARACTERS: usize = 22;
    match name.chars().count() > CHARACTERS {
        true => name.chars().take(CHARACTERS - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_round() {
        assert_eq!([0.9, 1.0, 1.1, 3.0, 70.0].map(nice_stride), [1.0, 1.0, 2.0, 5.0, 100.0]);
        assert_eq!([0.0, f64::NAN, -1.0].map(nice_stride), [1.0; 3]);
    }

    #[test]
    fn a_picture_of_nothing_is_a_picture() {
        assert!(Sketch::default().svg().contains("<svg"));
    }
}
