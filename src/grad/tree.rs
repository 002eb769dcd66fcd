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

/// Adds slot `from` to slot `into`, which becomes their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    pub into: usize,
    pub from: usize,
}

/// What to do with one micro-batch's gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPlan {
    pub slot: usize,
    /// The slot is empty: store. Otherwise it holds the left sibling: add.
    pub stores: bool,
    /// Additions that are due then, in order.
    pub merges: Vec<Merge>,
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
        for index in owned {
            let leaf = Node::leaf(index, leaves);
            let stores = !stack.last().is_some_and(|top| top.is_left_sibling_of(leaf));
            if stores {
                stack.push(leaf);
            } else if let Some(top) = stack.last_mut() {
                *top = leaf.parent(leaves);
            }
            let slot = stack.len() - 1;
            plan.slots = plan.slots.max(stack.len());
            let merges = collapse(&mut stack, leaves);
            plan.leaves.push(LeafPlan { slot, stores, merges });
        }
        plan.partials = stack;
        plan
    }

    /// Plan that adds the owned leaves one after another, as other trainers do: its bits depend on the number of
    /// ranks.
    pub fn one_after_another(owned: Range<usize>, leaves: usize) -> Self {
        let first = owned.start;
        let plan = |index| LeafPlan { slot: 0, stores: index == first, merges: Vec::new() };
        Self { leaves: owned.map(plan).collect(), partials: vec![Node::leaf(first, leaves)], slots: 1 }
    }
}

/// Merges siblings at the top of the stack for as long as there are some.
fn collapse(stack: &mut Vec<Node>, leaves: usize) -> Vec<Merge> {
    let mut merges = Vec::new();
    while let [.., left, right] = stack[..]
        && left.is_left_sibling_of(right)
    {
        stack.truncate(stack.len() - 2);
        stack.push(left.parent(leaves));
        merges.push(Merge { into: stack.len() - 1, from: stack.len() });
    }
    merges
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
        for (leaf, step) in owned.zip(&plan.leaves) {
            slots[step.slot] = match step.stores {
                true => leaf.to_string(),
                false => format!("({}+{leaf})", slots[step.slot]),
            };
            step.merges.iter().for_each(|&merge| add(&mut slots, merge));
        }
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
        assert!(plan.leaves[0].stores && plan.leaves[1..].iter().all(|leaf| !leaf.stores));
        assert_ne!("(((0+1)+2)+3)", root(4));
    }

    #[test]
    fn one_leaf_a_rank_needs_one_buffer_and_many_need_few() {
        assert_eq!(Accumulation::along_tree(3..4, 8).slots, 1);
        assert_eq!(Accumulation::along_tree(0..2, 8).slots, 1);
        assert_eq!(Accumulation::along_tree(0..64, 64).slots, 6);
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
