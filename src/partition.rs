//! How a count is divided among ranks: micro-batches, blocks of a bucket, files of a checkpoint.

use std::ops::Range;

/// The contiguous share of `total` items that part `index` of `parts` has. Shares follow one another in the
/// parts' order, cover everything, and differ by at most one item; the first parts have the larger ones.
///
/// # Panics
/// Unless `index < parts`: a rank outside its own world is a mistake of the program, not of its user.
pub fn share(total: usize, parts: usize, index: usize) -> Range<usize> {
    assert!(index < parts, "part {index} of {parts} does not exist");
    let (size, larger) = (total / parts, total % parts);
    let start = index * size + index.min(larger);
    start..start + size + usize::from(index < larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_are_ordered_disjoint_complete_and_balanced(total in 0usize..5000, parts in 1usize..130) {
            let shares: Vec<_> = (0..parts).map(|index| share(total, parts, index)).collect();
            let mut expected_start = 0;
            for range in &shares {
                prop_assert_eq!(range.start, expected_start);
                expected_start = range.end;
            }
            prop_assert_eq!(expected_start, total);
            prop_assert!(shares.windows(2).all(|pair| pair[0].len() >= pair[1].len()));
            prop_assert!(shares[0].len() - shares[parts - 1].len() <= 1);
        }
    }

    #[test]
    fn examples() {
        assert_eq!([share(8, 3, 0), share(8, 3, 1), share(8, 3, 2)], [0..3, 3..6, 6..8]);
        assert_eq!(share(2, 4, 3), 2..2);
        assert_eq!(share(usize::MAX, 2, 1).end, usize::MAX);
    }

    #[test]
    #[should_panic(expected = "part 3 of 3")]
    fn a_part_beyond_the_last_is_a_mistake() {
        share(8, 3, 3);
    }
}
