//! The one fixed tree along which a step's gradient is summed.
//!
//! The M micro-batches are its leaves. `Node { level, index }` covers leaves `index·2^level ..
//! (index+1)·2^level`, cut off at M; its value is left child + right child, or the left child alone where the right
//! one covers nothing. Who computes which leaf does not enter: a rank adds up the subtrees that lie whole in its
//! range of leaves, and the owner of a chunk adds the ranks' partial sums further up. So the same additions happen
//! for every number of ranks, and floating-point rounding with them.

use std::ops::Range;

/// A subtree. Of the levels that would name the same set of leaves, the highest is used, so that equal sets compare
/// equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub level: u32,
    pub index: usize,
}

impl Node {
    /// The subtree of one leaf out of `leaves`.
    pub fn leaf(index: usize, leaves: usize) -> Self {
        Self { level: 0, index }.promoted(leaves)
    }

    /// Climbs while the parent adds nothing, because its right child covers no leaf.
    fn promoted(mut self, leaves: usize) -> Self {
        while !self.is_root(leaves)
            && self.index.is_multiple_of(2)
            && (self.index + 1) << self.level >= leaves
        {
            self = Self { level: self.level + 1, index: self.index / 2 };
        }
        self
    }

    fn is_root(self, leaves: usize) -> bool {
        self.index == 0 && 1usize << self.level >= leaves
    }

    /// Whether `self` + `right` is one addition of the tree.
    fn is_left_sibling_of(self, right: Node) -> bool {
        self.level == right.level && self.index.is_multiple_of(2) && self.index + 1 == right.index
    }

    fn parent(self, leaves: usize) -> Self {
        Self { level: self.level + 1, index: self.index / 2 }.promoted(leaves)
    }
}

/// Adds slot `from` to slot `into`, which becomes their parent. Of the exchange between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    pub into: usize,
    pub from: usize,
}

/// What to do with one micro-batch's gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafPlan {
    /// Its right sibling is this rank's next leaf: keep it as it is. No buffer is written, and the sum of both is
    /// formed where it is needed.
    Keep,
    Sum(LeafSum),
}

/// Additions that start with one leaf, all of them in one pass over the elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSum {
    /// Its left sibling was kept: that one + this one. Otherwise this one alone.
    pub kept: bool,
    /// Then slot + sum, for each of these in order: the left siblings on the way up.
    pub left: Vec<usize>,
    /// Where the sum goes: the last of `left`, or an empty slot.
    pub into: usize,
}

/// How one rank accumulates the leaves that it owns: a binary counter of partial sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accumulation {
    /// One per owned leaf, in order.
    pub leaves: Vec<LeafPlan>,
    /// The subtrees left in slots `0..partials.len()` at the end, in leaf order.
    pub partials: Vec<Node>,
    /// Slots that are live at once, at most: gradient-sized buffers.
    pub slots: usize,
}

impl Accumulation {
    /// Plan for a rank that owns `owned` of `leaves` leaves.
    pub fn along_tree(owned: Range<usize>, leaves: usize) -> Self {
        let mut stack: Vec<Node> = Vec::new();
        let mut plan = Self { leaves: Vec::new(), partials: Vec::new(), slots: 0 };
        let mut kept = false;
        for index in owned.clone() {
            let leaf = Node::leaf(index, leaves);
            if owned.contains(&(index + 1)) && leaf.is_left_sibling_of(Node::leaf(index + 1, leaves)) {
                kept = true;
                plan.leaves.push(LeafPlan::Keep);
                continue;
            }
            let sum = if kept { leaf.parent(leaves) } else { leaf };
            let left = climb(&mut stack, sum, leaves);
            plan.slots = plan.slots.max(stack.len());
            plan.leaves.push(LeafPlan::Sum(LeafSum { kept, left, into: stack.len() - 1 }));
            kept = false;
        }
        plan.partials = stack;
        plan
    }

    /// Plan that adds the owned leaves one after another, as other trainers do: its bits depend on the number of
    /// ranks.
    pub fn one_after_another(owned: Range<usize>, leaves: usize) -> Self {
        let first = owned.start;
        let left = |index| if index == first { Vec::new() } else { vec![0] };
        let plan = |index| LeafPlan::Sum(LeafSum { kept: false, left: left(index), into: 0 });
        Self { leaves: owned.map(plan).collect(), partials: vec![Node::leaf(first, leaves)], slots: 1 }
    }
}

/// Adds a subtree to its left siblings at the top of the stack for as long as there are some, and pushes what comes of
/// it. Returns the siblings' slots, which are their positions in the stack.
fn climb(stack: &mut Vec<Node>, mut node: Node, leaves: usize) -> Vec<usize> {
    let mut left = Vec::new();
    while stack.last().is_some_and(|top| top.is_left_sibling_of(node)) {
        stack.pop();
        left.push(stack.len());
        node = node.parent(leaves);
    }
    stack.push(node);
    left
}

/// The additions that turn partial sums, given in leaf order and covering all leaves, into the root: slots are
/// positions in `partials`, and the root ends in slot 0.
///
/// # Panics
/// If the subtrees do not cover the tree: that is a fault of the caller, which made them with
/// [`Accumulation::along_tree`] for each rank.
pub fn merge_order(partials: &[Node], leaves: usize) -> Vec<Merge> {
    let mut stack: Vec<(Node, usize)> = Vec::new();
    let mut merges = Vec::new();
    for (slot, &node) in partials.iter().enumerate() {
        stack.push((node, slot));
        while let [.., (left, into), (right, from)] = stack[..]
            && left.is_left_sibling_of(right)
        {
            stack.truncate(stack.len() - 2);
            stack.push((left.parent(leaves), into));
            merges.push(Merge { into, from });
        }
    }
    assert!(
        matches!(stack[..], [(root, 0)] if root.is_root(leaves)),
        "partial sums {partials:?} of {leaves} leaves"
    );
    merges
}

/// Sum of scalars along the tree, for losses.
pub fn sum_scalars(values: &[f64]) -> f64 {
    let nodes: Vec<Node> = (0..values.len()).map(|index| Node::leaf(index, values.len())).collect();
    let mut values = values.to_vec();
    for Merge { into, from } in merge_order(&nodes, values.len()) {
        values[into] += values[from];
    }
    values[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::share;
    use proptest::prelude::*;

    /// The tree by its definition, as text: independent of the code above.
    fn reference(level: u32, index: usize, leaves: usize) -> String {
        if level == 0 {
            return index.to_string();
        }
        let left = reference(level - 1, index * 2, leaves);
        if (index * 2 + 1) << (level - 1) >= leaves {
            return left;
        }
        format!("({left}+{})", reference(level - 1, index * 2 + 1, leaves))
    }

    fn root(leaves: usize) -> String {
        reference(leaves.next_power_of_two().trailing_zeros(), 0, leaves)
    }

    fn add(slots: &mut [String], merge: Merge) {
        slots[merge.into] = format!("({}+{})", slots[merge.into], slots[merge.from]);
    }

    fn partial_sums(owned: Range<usize>, leaves: usize) -> (Accumulation, Vec<String>) {
        let plan = Accumulation::along_tree(owned.clone(), leaves);
        let mut slots = vec![String::new(); plan.slots];
        let mut kept_leaf = None;
        for (leaf, step) in owned.zip(&plan.leaves) {
            let LeafPlan::Sum(LeafSum { kept, left, into }) = step else {
                assert_eq!(kept_leaf.replace(leaf), None);
                continue;
            };
            assert_eq!(kept_leaf.is_some(), *kept);
            let sum = kept_leaf.take().map_or(leaf.to_string(), |kept| format!("({kept}+{leaf})"));
            slots[*into] = left.iter().fold(sum, |sum, &slot| format!("({}+{sum})", slots[slot]));
        }
        assert_eq!(kept_leaf, None);
        slots.truncate(plan.partials.len());
        (plan, slots)
    }

    fn sum_over_ranks(leaves: usize, ranks: usize) -> String {
        let (mut nodes, mut slots) = (Vec::new(), Vec::new());
        for rank in 0..ranks {
            let (plan, partials) = partial_sums(share(leaves, ranks, rank), leaves);
            nodes.extend(plan.partials);
            slots.extend(partials);
        }
        merge_order(&nodes, leaves).into_iter().for_each(|merge| add(&mut slots, merge));
        slots.swap_remove(0)
    }

    #[test]
    fn every_number_of_ranks_does_the_same_additions() {
        for leaves in 1..=33 {
            for ranks in 1..=leaves {
                assert_eq!(sum_over_ranks(leaves, ranks), root(leaves), "{leaves} leaves on {ranks} ranks");
            }
        }
    }

    #[test]
    fn one_after_another_is_another_sum() {
        let plan = Accumulation::one_after_another(0..4, 4);
        let left = |leaf: &LeafPlan| match leaf {
            LeafPlan::Sum(sum) => sum.left.clone(),
            LeafPlan::Keep => panic!("nothing is kept"),
        };
        assert_eq!(plan.leaves.iter().map(left).collect::<Vec<_>>(), [vec![], vec![0], vec![0], vec![0]]);
        assert_ne!("(((0+1)+2)+3)", root(4));
    }

    #[test]
    fn one_leaf_a_rank_needs_one_buffer_and_many_need_few() {
        assert_eq!(Accumulation::along_tree(3..4, 8).slots, 1);
        assert_eq!(Accumulation::along_tree(0..2, 8).slots, 1);
        assert_eq!(Accumulation::along_tree(0..64, 64).slots, 5);
    }

    proptest! {
        #[test]
        fn any_split_of_the_leaves_gives_the_same_sum(leaves in 1usize..200, cuts in prop::collection::vec(0usize..200, 0..6)) {
            let mut bounds: Vec<usize> = cuts.into_iter().map(|cut| cut % (leaves + 1)).chain([0, leaves]).collect();
            bounds.sort_unstable();
            let (mut nodes, mut slots) = (Vec::new(), Vec::new());
            for window in bounds.windows(2) {
                let (plan, partials) = partial_sums(window[0]..window[1], leaves);
                nodes.extend(plan.partials);
                slots.extend(partials);
            }
            merge_order(&nodes, leaves).into_iter().for_each(|merge| add(&mut slots, merge));
            prop_assert_eq!(&slots[0], &root(leaves));
        }

        #[test]
        fn scalars_are_summed_along_the_same_tree(values in prop::collection::vec(-1e6f64..1e6, 1..40)) {
            fn by_definition(values: &[f64]) -> f64 {
                if let [one] = values { return *one; }
                let half = values.len().next_power_of_two() / 2;
                by_definition(&values[..half]) + by_definition(&values[half..])
            }
            prop_assert_eq!(sum_scalars(&values).to_bits(), by_definition(&values).to_bits());
        }
    }
}
