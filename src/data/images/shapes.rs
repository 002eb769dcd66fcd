//! A set of drawn images: sixteen shapes of random place, size and colours under noise. An image is a pure function of
//! its number, in whole numbers only, so that any program can draw the same bytes (`harness/peers/images.py` does).

use super::{CHANNELS, PIXELS, RECORD, SIDE};
use crate::random::Stream;

/// What there is to tell apart.
pub const CLASSES: u8 = 16;
/// Images in the set.
pub const IMAGES: usize = 4096;
/// The set is one, as a file would be: it does not depend on `run.seed`.
const SEED: u64 = 0x0073_6861_7065_7331;
/// Random words that decide what is drawn; one word of noise for two pixels follows.
const CHOICES: usize = 8;

/// What is drawn where.
struct Drawing {
    class: u8,
    /// Centre.
    column: i32,
    row: i32,
    /// Half of the extent, in pixels.
    radius: i32,
    background: [i32; CHANNELS],
    foreground: [i32; CHANNELS],
}

/// All records in order.
pub fn draw_all() -> Vec<u8> {
    let mut records = vec![0; IMAGES * RECORD];
    for (id, record) in records.chunks_exact_mut(RECORD).enumerate() {
        draw(id as u32, record);
    }
    records
}

/// Draws image `id` as a record.
fn draw(id: u32, record: &mut [u8]) {
    let mut words = [0; CHOICES + PIXELS / 2];
    Stream::image(SEED, id).fill_u32(&mut words);
    let (choices, noise) = words.split_at(CHOICES);
    let drawing = Drawing::choose(choices);
    record[0] = drawing.class;
    for (index, pixel) in record[1..].iter_mut().enumerate() {
        let (channel, row, column) = (index / (SIDE * SIDE), index / SIDE % SIDE, index % SIDE);
        let colours =
            if drawing.covers(column as i32, row as i32) { &drawing.foreground } else { &drawing.background };
        // The sum of two bytes: triangular, from −128 to 127.
        let half = noise[index / 2] >> (16 * (index % 2));
        let noise = ((half & 0xff) as i32 + (half >> 8 & 0xff) as i32 - 255) >> 1;
        *pixel = (colours[channel] + noise).clamp(0, 255) as u8;
    }
}

impl Drawing {
    fn choose(words: &[u32]) -> Self {
        let below = |word: u32, bound: u64| ((u64::from(word) * bound) >> 32) as i32;
        let contrast = 32 + below(words[5], 64);
        // Seven bits a channel, and one bit each for the sign of the contrast.
        let background = [0, 1, 2].map(|channel| 64 + (words[4] >> (8 * channel + 1) & 0x7f) as i32);
        let lighter = [0, 1, 2].map(|channel| words[6] >> (29 + channel) & 1 == 1);
        let colour =
            |channel: usize| background[channel] + if lighter[channel] { contrast } else { -contrast };
        Self {
            class: below(words[0], u64::from(CLASSES)) as u8,
            column: 10 + below(words[1], 12),
            row: 10 + below(words[2], 12),
            radius: 5 + below(words[3], 6),
            background,
            foreground: [0, 1, 2].map(colour),
        }
    }

    /// Whether the shape covers a pixel. Gratings and nested squares fill the whole image. Mirrored, each shape is still
    /// one of its class.
    fn covers(&self, column: i32, row: i32) -> bool {
        let (x, y, r) = (column - self.column, row - self.row, self.radius);
        let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
        let stripe = |distance: i32| distance.rem_euclid(r) < r / 2;
        match self.class {
            0 => x * x + y * y <= r * r,                                     // disc
            1 => x * x + y * y <= r * r && 9 * (x * x + y * y) >= 4 * r * r, // ring
            2 => long < r,                                                   // square
            3 => long < r && 3 * long >= 2 * r,                              // frame
            4 => x.abs() + y.abs() <= r,                                     // diamond
            5 => long <= r && 4 * short <= r,                                // cross
            6 => long <= r && 3 * (long - short) <= r,                       // saltire
            7 => stripe(y),                                                  // horizontal grating
            8 => stripe(x),                                                  // vertical grating
            9 => stripe(x + y),                                              // diagonal grating
            10 => stripe(long),                                              // nested squares
            11 => stripe(x) != stripe(y),                                    // checkerboard
            12 => x * x + y * y <= r * r && y < 0,                           // half disc
            13 => y.abs() <= r && 2 * x.abs() <= y + r,                      // triangle
            14 => long <= r && 3 * y.abs() <= r,                             // horizontal bar
            _ => long <= r && 3 * x.abs() <= r,                              // vertical bar
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The peer's numpy draws the same bytes: it has this digest too.
    #[test]
    fn the_set_is_pinned() {
        let digest = blake3::hash(&draw_all()).to_string();
        assert_eq!(digest, "be944efe2992c514ab0df0b2ef8a7ca916a2c463a21398dfff2ce523dec2a2d0");
    }

    #[test]
    fn an_image_is_a_function_of_its_number_and_classes_are_even() {
        let all = draw_all();
        let mut record = vec![0; RECORD];
        draw(77, &mut record);
        assert_eq!(record, all[77 * RECORD..78 * RECORD]);
        for class in 0..CLASSES {
            let share = all.chunks(RECORD).filter(|record| record[0] == class).count() as f64 / IMAGES as f64;
            assert!((share - 0.0625).abs() < 0.015, "class {class}: {share}");
        }
    }

    /// Without noise, classes are told apart by their outline alone: no two cover the same pixels.
    #[test]
    fn every_class_has_its_own_outline() {
        let outline = |class| {
            let drawing =
                Drawing { class, column: 16, row: 15, radius: 8, background: [0; 3], foreground: [0; 3] };
            let side = 0..SIDE as i32;
            side.clone()
                .flat_map(|row| side.clone().map(move |column| (column, row)))
                .filter(|&(column, row)| drawing.covers(column, row))
                .collect::<Vec<_>>()
        };
        let outlines: Vec<_> = (0..CLASSES).map(outline).collect();
        for (index, one) in outlines.iter().enumerate() {
            assert!(one.len() > 20, "class {index} covers {} pixels", one.len());
            assert!(!outlines[..index].contains(one), "class {index}");
        }
    }
}
