//! The usual augmentation of small images (He et al. 2016, section 4.2): the image is shifted by up to four pixels
//! in each direction, with zeros where nothing is left, and mirrored half of the time.

use super::{CHANNELS, SIDE};
use crate::random::Stream;

/// Largest shift in each direction, in pixels.
const SHIFT_MAX: i32 = 4;

/// How an image is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    mirrored: bool,
    /// Pixels to the right.
    right: i32,
    /// Pixels down.
    down: i32,
}

impl View {
    /// As it is.
    pub const STRAIGHT: Self = Self { mirrored: false, right: 0, down: 0 };

    /// What one visit to a sample sees: whoever makes it, and after any restart.
    pub fn random(seed: u64, epoch: u64, id: u64) -> Self {
        let mut words = [0; 3];
        // Samplers have ids below 2^32, and no training has as many epochs.
        Stream::augmentation(seed, id as u32, epoch as u32).fill_u32(&mut words);
        let shift = |word: u32| {
            let steps = u64::from(SHIFT_MAX as u32 * 2 + 1);
            ((u64::from(word) * steps) >> 32) as i32 - SHIFT_MAX
        };
        Self { mirrored: words[0] >> 31 == 1, right: shift(words[1]), down: shift(words[2]) }
    }

    /// Writes the pixels as numbers; what lies outside the image is zero.
    pub fn render(self, pixels: &[u8], out: &mut [f32]) {
        let side = SIDE as i32;
        for (index, value) in out.iter_mut().enumerate().take(CHANNELS * SIDE * SIDE) {
            let (plane, row, column) =
                (index / (SIDE * SIDE), (index / SIDE % SIDE) as i32, (index % SIDE) as i32);
            let column = if self.mirrored { side - 1 - column } else { column };
            let (from_row, from_column) = (row - self.down, column - self.right);
            let inside = (0..side).contains(&from_row) && (0..side).contains(&from_column);
            *value = match inside {
                true => number(pixels[plane * SIDE * SIDE + (from_row * side + from_column) as usize]),
                false => 0.0,
            };
        }
    }
}

/// A byte as the number that the model sees: exact.
fn number(byte: u8) -> f32 {
    (f32::from(byte) - 127.5) / 64.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::images::PIXELS;

    fn render(view: View) -> Vec<f32> {
        let pixels: Vec<u8> = (0..PIXELS).map(|i| (i % 251) as u8).collect();
        let mut out = vec![9.0; PIXELS];
        view.render(&pixels, &mut out);
        out
    }

    #[test]
    fn a_straight_view_is_the_image() {
        let expected: Vec<f32> = (0..PIXELS).map(|i| number((i % 251) as u8)).collect();
        assert_eq!(render(View::STRAIGHT), expected);
        assert_eq!((number(0), number(255)), (-1.9921875, 1.9921875));
    }

    #[test]
    fn shifts_leave_zeros_and_mirroring_twice_is_nothing() {
        let straight = render(View::STRAIGHT);
        let shifted = render(View { right: 3, down: -2, ..View::STRAIGHT });
        // Row 5, column 10 of the second plane shows row 7, column 7.
        let at = |plane: usize, row: usize, column: usize| (plane * SIDE + row) * SIDE + column;
        assert_eq!(shifted[at(1, 5, 10)], straight[at(1, 7, 7)]);
        assert_eq!(shifted[at(1, 5, 2)], 0.0);
        assert_eq!(shifted[at(2, 31, 20)], 0.0);
        let mirrored = render(View { mirrored: true, ..View::STRAIGHT });
        assert_eq!(mirrored[at(0, 4, 0)], straight[at(0, 4, 31)]);
    }

    #[test]
    fn each_visit_has_its_view_and_all_views_occur() {
        let views: Vec<View> = (0..2000).map(|id| View::random(7, 1, id)).collect();
        assert!(views.iter().any(|view| view.mirrored) && views.iter().any(|view| !view.mirrored));
        for shift in -SHIFT_MAX..=SHIFT_MAX {
            assert!(
                views.iter().any(|view| view.right == shift) && views.iter().any(|view| view.down == shift)
            );
        }
        assert!(views.iter().all(|view| view.right.abs() <= SHIFT_MAX && view.down.abs() <= SHIFT_MAX));
        let others = |seed, epoch| (0..2000).map(|id| View::random(seed, epoch, id)).collect::<Vec<_>>();
        assert_ne!(others(7, 2), views);
        assert_ne!(others(8, 1), views);
        assert_eq!(others(7, 1), views);
    }
}
