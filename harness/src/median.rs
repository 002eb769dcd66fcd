//! The middle of some values.

/// The middle value, or the mean of the two middle ones; 0 of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!([median(&mut []), median(&mut [3.0, 1.0, 2.0]), median(&mut [4.0, 1.0])], [0.0, 2.0, 2.5]);
    }
}
