//! A rank's own micro-batches: their gradients arrive one parameter at a time and are added up along the tree.

use super::flat::{self, Flat};
use super::layout::{Bucket, Layout};
use super::tree::{Accumulation, LeafPlan, LeafSum};
use crate::mutate::{Mutation, active, active_from};
use crate::precision::Format;
use std::ops::Range;
use tch::Tensor;

/// Elements that take all additions of a leaf before the next ones: few enough for the processor's first cache, so that
/// each buffer in memory is read or written once.
const STRETCH: usize = 1024;

/// This rank's partial sums of one bucket: a buffer for each slot of the [`Accumulation`]. It moves to whoever reduces
/// the bucket and comes back with the step's gradient in the first buffer.
#[derive(Debug, Default)]
pub struct PartialSums {
    slots: Vec<Flat>,
    /// How many of the slots hold a subtree at the end.
    held: usize,
}

impl PartialSums {
    /// One sum that is complete as far as this rank goes.
    pub fn whole(sum: Flat) -> Self {
        Self { slots: vec![sum], held: 1 }
    }

    /// This rank's subtrees, in leaf order.
    pub fn held(&self) -> &[Flat] {
        &self.slots[..self.held]
    }

    pub fn held_mut(&mut self) -> &mut [Flat] {
        &mut self.slots[..self.held]
    }

    /// Where the step's gradient ends up.
    pub fn gradient(&self) -> &Flat {
        &self.slots[0]
    }

    pub fn gradient_mut(&mut self) -> &mut Flat {
        &mut self.slots[0]
    }

    /// Adds this rank's subtrees, one after the other: not the order of the tree, for sums that are approximate anyway.
    pub fn add_up(&mut self) {
        let held = self.held;
        if let Some((sum, others)) = self.slots[..held].split_first_mut() {
            others.iter().for_each(|other| flat::add(sum.as_mut_slice(), other.as_slice()));
        }
    }

    /// Adds one gradient, and the kept one of its left sibling, to what lies in a range of the slots. In a 16-bit `format`
    /// each sum is rounded.
    fn add(
        &mut self,
        plan: &LeafSum,
        range: Range<usize>,
        kept: Option<&[f32]>,
        gradient: &[f32],
        format: Option<Format>,
    ) {
        let round = |sum: &mut [f32]| format.into_iter().for_each(|format| format.round_in_place(sum));
        let mut sum = [0.0; STRETCH];
        let mut start = 0;
        while start < gradient.len() {
            let end = (start + STRETCH).min(gradient.len());
            let place = range.start + start..range.start + end;
            let sum = &mut sum[..end - start];
            match kept {
                Some(kept) => flat::sum(&kept[start..end], &gradient[start..end], sum),
                None => sum.copy_from_slice(&gradient[start..end]),
            }
            round(sum);
            for &slot in &plan.left {
                flat::add(sum, &self.slots[slot].as_slice()[place.clone()]);
                round(sum);
            }
            if plan.left.is_empty() && active_from(Mutation::ZeroGradSkipped, 2) {
                flat::add(sum, &self.slots[plan.into].as_slice()[place.clone()]);
            }
            self.slots[plan.into].as_mut_slice()[place].copy_from_slice(sum);
            start = end;
        }
    }
}

/// The partial sums of all buckets, while this rank computes them.
pub struct Accumulator {
    plan: Accumulation,
    /// The format of leaves and sums, unless it is fp32.
    format: Option<Format>,
    buckets: Vec<PartialSums>,
    /// Gradients of the last leaf that wait for their right sibling's.
    kept: Vec<Option<Tensor>>,
    /// Which leaf is being computed.
    leaf: usize,
    /// Which parameters have not brought its gradient yet, and how many of each bucket.
    missing: Vec<bool>,
    missing_in: Vec<usize>,
}

impl Accumulator {
    pub fn new(plan: Accumulation, layout: &Layout) -> Self {
        let held = plan.partials.len();
        let buffers = |elements| (0..plan.slots).map(|_| Flat::zeros(elements)).collect();
        // A frozen bucket has no gradient.
        let elements = |bucket: &Bucket| if bucket.frozen { 0 } else { bucket.elements };
        let sums = |bucket: &Bucket| PartialSums { slots: buffers(elements(bucket)), held };
        Self {
            buckets: layout.buckets.iter().map(sums).collect(),
            kept: layout.parameters.iter().map(|_| None).collect(),
            leaf: 0,
            missing: Vec::new(),
            missing_in: Vec::new(),
            format: None,
            plan,
        }
    }

    /// Rounds each leaf and each sum to a 16-bit format.
    pub fn in_format(self, format: Option<Format>) -> Self {
        Self { format, ..self }
    }

    /// Starts with the `leaf`-th of this rank's micro-batches.
    pub fn begin(&mut self, layout: &Layout, leaf: usize) {
        self.leaf = leaf;
        self.missing = (0..layout.parameters.len()).map(|index| !layout.is_frozen(index)).collect();
        self.missing_in = layout.buckets.iter().map(|bucket| bucket.parameters.len()).collect();
    }

    /// Adds one parameter's gradient, a contiguous fp32 tensor. True if it was the last of its bucket.
    ///
    /// # Panics
    /// If the parameter has brought its gradient already: autograd calls once.
    pub fn add(&mut self, layout: &Layout, parameter: usize, gradient: Tensor) -> bool {
        assert!(std::mem::replace(&mut self.missing[parameter], false), "parameter {parameter} came twice");
        let slot = &layout.slots[parameter];
        let gradient = self.planted(parameter, gradient);
        let gradient = match self.format {
            None => gradient,
            Some(format) => gradient.to_kind(format.kind()).to_kind(tch::Kind::Float),
        };
        match &self.plan.leaves[self.leaf] {
            LeafPlan::Keep => self.kept[parameter] = Some(gradient),
            LeafPlan::Sum(plan) => {
                let kept = if plan.kept { self.kept[parameter].take() } else { None };
                let kept = kept.as_ref().map(flat::elements);
                let gradient = flat::elements(&gradient);
                self.buckets[slot.bucket].add(plan, slot.range(), kept, gradient, self.format);
            }
        }
        self.missing_in[slot.bucket] -= 1;
        self.missing_in[slot.bucket] == 0
    }

    /// The gradient, unless a bug is planted: micro-batches that do not count, or count for less.
    fn planted(&self, parameter: usize, gradient: Tensor) -> Tensor {
        let (first, last) = (self.leaf == 0, self.is_last());
        let lost = active(Mutation::FirstLeafOnly) && !first
            || active(Mutation::LastLeafOnly) && !last
            || active(Mutation::LastLeafMissing) && last
            || active(Mutation::LargeGradientLost) && !first && parameter == 0;
        match () {
            () if lost => gradient.zeros_like(),
            () if active(Mutation::RescaledEachTime) && !first => gradient * 0.5,
            () => gradient,
        }
    }

    /// The trained parameters whose gradient has not come.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.missing.len()).filter(|&index| self.missing[index]).collect()
    }

    /// Whether the leaf is this rank's last of the step: complete buckets may go.
    pub fn is_last(&self) -> bool {
        self.leaf + 1 == self.plan.leaves.len()
    }

    /// A bucket leaves to be reduced.
    pub fn take(&mut self, bucket: usize) -> PartialSums {
        std::mem::take(&mut self.buckets[bucket])
    }

    /// And comes back.
    pub fn put_back(&mut self, bucket: usize, sums: PartialSums) {
        self.buckets[bucket] = sums;
    }

    /// The step's gradient of every bucket, once all are back.
    pub fn gradient(&self, bucket: usize) -> &Flat {
        self.buckets[bucket].gradient()
    }

    pub fn gradient_mut(&mut self, bucket: usize) -> &mut Flat {
        self.buckets[bucket].gradient_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::layout::ParameterSpec;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[i64]| ParameterSpec { name: name.into(), shape: shape.into() };
        let specs = vec![spec("a", &[4, 2]), spec("b", &[3]), spec("c", &[2, 2])];
        Layout::simple(specs, 1 << 20)
    }

    fn ones(elements: i64) -> Tensor {
        Tensor::ones([elements], (tch::Kind::Float, tch::Device::Cpu))
    }

    #[test]
    fn a_bucket_is_complete_with_its_last_gradient() {
        let layout = layout();
        let mut accumulator = Accumulator::new(Accumulation::along_tree(0..2, 2), &layout);
        for leaf in 0..2 {
            accumulator.begin(&layout, leaf);
            assert!(!accumulator.add(&layout, 2, ones(4)));
            assert_eq!(accumulator.missing(), [0, 1]);
            assert!(accumulator.add(&layout, 1, ones(3)));
            assert!(accumulator.add(&layout, 0, Tensor::from_slice(&[0.5f32; 8])));
            assert!(accumulator.missing().is_empty());
            assert_eq!(accumulator.is_last(), leaf == 1);
        }
        let slot = &layout.slots[0];
        assert_eq!(accumulator.gradient(slot.bucket).as_slice()[slot.range()], [1.0; 8]);
    }

    #[test]
    fn leaves_are_added_along_the_tree() {
        let layout = layout();
        // (x + 1) + (1 + 1) is not ((x + 1) + 1) + 1 for an x where one is half a unit in the last place.
        let values = [16_777_216.0f32, 1.0, 1.0, 1.0];
        let mut accumulator = Accumulator::new(Accumulation::along_tree(0..4, 4), &layout);
        for (leaf, value) in values.into_iter().enumerate() {
            accumulator.begin(&layout, leaf);
            for parameter in 0..3 {
                let elements = layout.slots[parameter].elements as i64;
                accumulator.add(&layout, parameter, ones(elements) * f64::from(value));
            }
        }
        let slot = &layout.slots[1];
        assert_eq!(accumulator.gradient(slot.bucket).as_slice()[slot.offset], 16_777_218.0);
    }

    #[test]
    #[should_panic(expected = "came twice")]
    fn a_gradient_comes_once() {
        let layout = layout();
        let mut accumulator = Accumulator::new(Accumulation::along_tree(0..1, 1), &layout);
        accumulator.begin(&layout, 0);
        accumulator.add(&layout, 0, ones(8));
        accumulator.add(&layout, 0, ones(8));
    }
}
