//! How many partial sums a rank sends under the ordered sum, from the tree's definition alone.
//!
//! The M micro-batches are the leaves of one binary tree: a node of level l covers `index·2^l ..
//! (index+1)·2^l`, cut off at M. A rank owns a contiguous share of the leaves and sends one partial sum for
//! each of the fewest nodes that make up its share (docs/why-the-bits-agree.md).

use std::ops::Range;

/// The largest number of partial sums that any of `ranks` holds; 1 when each share is one subtree.
pub fn partial_sums_max(micro_batches: u32, ranks: u32) -> u32 {
    let (leaves, ranks) = (u64::from(micro_batches), u64::from(ranks.max(1)));
    (0..ranks).map(|rank| subtrees(share(leaves, ranks, rank), leaves)).max().unwrap_or(1).max(1)
}

/// The contiguous share of a rank: sizes differ by at most one, and the first ranks have the larger ones.
fn share(total: u64, parts: u64, index: u64) -> Range<u64> {
    let (size, larger) = (total / parts, total % parts);
    let start = index * size + index.min(larger);
    start..start + size + u64::from(index < larger)
}

/// The number of largest nodes that lie whole in `owned`.
fn subtrees(owned: Range<u64>, leaves: u64) -> u32 {
    let (mut at, mut count) = (owned.start, 0);
    while at < owned.end {
        let fits =
            |level: &u32| at.is_multiple_of(1 << level) && (at + (1 << level)).min(leaves) <= owned.end;
        let level = (0..u64::BITS - 1).take_while(fits).last().unwrap_or(0);
        at = (at + (1 << level)).min(leaves);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By recursion from the root, which is another way to count the same nodes.
    fn by_definition(owned: &Range<u64>, leaves: u64, node: Range<u64>) -> u32 {
        let covered = node.start..node.end.min(leaves);
        if covered.is_empty() || covered.end <= owned.start || owned.end <= covered.start {
            return 0;
        }
        if owned.start <= covered.start && covered.end <= owned.end {
            return 1;
        }
        let middle = node.start + (node.end - node.start) / 2;
        by_definition(owned, leaves, node.start..middle) + by_definition(owned, leaves, middle..node.end)
    }

    proptest! {
        #[test]
        fn both_ways_of_counting_agree(leaves in 1u64..300, start in 0u64..300, length in 0u64..300) {
            let start = start % leaves;
            let owned = start..(start + length).min(leaves);
            let root = 0..leaves.next_power_of_two();
            prop_assert_eq!(subtrees(owned.clone(), leaves), by_definition(&owned, leaves, root));
        }

        #[test]
        fn one_micro_batch_a_rank_is_one_partial_sum(ranks in 1u32..500) {
            prop_assert_eq!(partial_sums_max(ranks, ranks), 1);
        }
    }

    #[test]
    fn examples_of_the_documentation() {
        assert_eq!(partial_sums_max(8, 3), 2);
        assert_eq!([1, 2, 4, 8].map(|ranks| partial_sums_max(8, ranks)), [1; 4]);
        assert_eq!(partial_sums_max(1024, 512), 1);
    }
}
