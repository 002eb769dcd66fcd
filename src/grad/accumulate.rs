//! A rank's own micro-batches: their gradients arrive one parameter at a time and are added up along the tree.

use super::device;
use super::flat::{self, Flat};
use super::home::Home;
use super::layout::{Bucket, Layout};
use super::shared::SharedSums;
use super::tree::{Accumulation, LeafPlan, LeafSum};
use crate::mutate::{Mutation, active, active_from};
use crate::precision::Format;
use crate::torch::TorchError;
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

    /// Of these subtrees, in leaf order.
    #[cfg(test)]
    pub fn of(subtrees: Vec<Flat>) -> Self {
        Self { held: subtrees.len(), slots: subtrees }
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

    /// Where all of them lie.
    pub fn home(&self) -> Home {
        self.gradient().home()
    }

    /// Adds this rank's subtrees, one after the other: not the order of the tree, for sums that are approximate anyway.
    pub fn add_up(&mut self) -> Result<(), TorchError> {
        let held = self.held;
        let Some((sum, others)) = self.slots[..held].split_first_mut() else { return Ok(()) };
        let all = 0..sum.len();
        for other in others {
            let other = other.read(all.clone())?;
            sum.edit(all.clone(), |sum| flat::add(sum, &other))?;
        }
        Ok(())
    }

    /// Adds one gradient, and the kept one of its left sibling, to what lies in a range of the slots. In a 16-bit `format`
    /// each sum is rounded.
    fn add(
        &mut self,
        plan: &LeafSum,
        range: Range<usize>,
        kept: Option<&Tensor>,
        gradient: &Tensor,
        format: Option<Format>,
    ) -> Result<(), TorchError> {
        match self.home() {
            Home::Host => {
                let kept = kept.map(flat::elements);
                self.add_on_host(plan, range, kept, flat::elements(gradient), format);
                Ok(())
            }
            Home::Device(_) => device::add_leaf(&self.slots, plan, &range, kept, gradient, format),
        }
    }

    fn add_on_host(
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
    /// Of a rank whose sums nobody else sees.
    #[cfg(test)]
    pub fn new(plan: Accumulation, layout: &Layout, home: Home) -> Self {
        Self::in_common(plan, layout, home, None)
    }

    /// What a rank is left with at the end lies where all ranks of the host see it, if that is given, with the rank.
    pub fn in_common(
        plan: Accumulation,
        layout: &Layout,
        home: Home,
        shared: Option<(&SharedSums, usize)>,
    ) -> Self {
        let held = plan.partials.len();
        let sums = |(index, bucket): (usize, &Bucket)| {
            // A frozen bucket has no gradient.
            let elements = if bucket.frozen { 0 } else { bucket.elements };
            let mut slots = shared.map_or_else(Vec::new, |(shared, rank)| shared.of_rank(rank, index));
            slots.resize_with(plan.slots, || Flat::zeros(home, elements));
            PartialSums { slots, held }
        };
        Self {
            buckets: layout.buckets.iter().enumerate().map(sums).collect(),
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

    /// Adds one parameter's gradient, a contiguous fp32 tensor beside the sums. True if it was the last of its bucket.
    ///
    /// # Panics
    /// If the parameter has brought its gradient already: autograd calls once.
    pub fn add(&mut self, layout: &Layout, parameter: usize, gradient: Tensor) -> Result<bool, TorchError> {
        assert!(std::mem::replace(&mut self.missing[parameter], false), "parameter {parameter} came twice");
        let slot = &layout.slots[parameter];
        let gradient = self.planted(parameter, gradient);
        let gradient = match self.format {
            None => gradient,
            Some(format) => gradient.f_to_kind(format.kind())?.f_to_kind(tch::Kind::Float)?,
        };
        match &self.plan.leaves[self.leaf] {
            LeafPlan::Keep => self.kept[parameter] = Some(gradient),
            LeafPlan::Sum(plan) => {
                let kept = if plan.kept { self.kept[parameter].take() } else { None };
                self.buckets[slot.bucket].add(plan, slot.range(), kept.as_ref(), &gradient, self.format)?;
            }
        }
        self.missing_in[slot.bucket] -= 1;
        Ok(self.missing_in[slot.bucket] == 0)
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
    use crate::partition::share;
    use proptest::prelude::*;
    use tch::{Device, Kind};

    /// The second as a GPU's, over a double of NCCL.
    const HOMES: [Home; 2] = [Home::Host, Home::Device(Device::Cpu)];

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[i64]| ParameterSpec { name: name.into(), shape: shape.into() };
        let specs = vec![spec("a", &[4, 2]), spec("b", &[3]), spec("c", &[2, 2])];
        Layout::simple(specs, 1 << 20)
    }

    fn ones(elements: i64) -> Tensor {
        Tensor::ones([elements], (Kind::Float, Device::Cpu))
    }

    fn gradient(accumulator: &Accumulator, layout: &Layout, parameter: usize) -> Vec<f32> {
        let slot = &layout.slots[parameter];
        accumulator.gradient(slot.bucket).read(slot.range()).unwrap().into_owned()
    }

    #[test]
    fn a_bucket_is_complete_with_its_last_gradient() {
        let layout = layout();
        for home in HOMES {
            let mut accumulator = Accumulator::new(Accumulation::along_tree(0..2, 2), &layout, home);
            for leaf in 0..2 {
                accumulator.begin(&layout, leaf);
                assert!(!accumulator.add(&layout, 2, ones(4)).unwrap());
                assert_eq!(accumulator.missing(), [0, 1]);
                assert!(accumulator.add(&layout, 1, ones(3)).unwrap());
                assert!(accumulator.add(&layout, 0, Tensor::from_slice(&[0.5f32; 8])).unwrap());
                assert!(accumulator.missing().is_empty());
                assert_eq!(accumulator.is_last(), leaf == 1);
            }
            assert_eq!(gradient(&accumulator, &layout, 0), [1.0; 8], "{home:?}");
        }
    }

    #[test]
    fn leaves_are_added_along_the_tree() {
        let layout = layout();
        // (x + 1) + (1 + 1) is not ((x + 1) + 1) + 1 for an x where one is half a unit in the last place.
        let values = [16_777_216.0f32, 1.0, 1.0, 1.0];
        for home in HOMES {
            let mut accumulator = Accumulator::new(Accumulation::along_tree(0..4, 4), &layout, home);
            for (leaf, value) in values.into_iter().enumerate() {
                accumulator.begin(&layout, leaf);
                for parameter in 0..3 {
                    let elements = layout.slots[parameter].elements as i64;
                    accumulator.add(&layout, parameter, ones(elements) * f64::from(value)).unwrap();
                }
            }
            assert_eq!(gradient(&accumulator, &layout, 1)[0], 16_777_218.0, "{home:?}");
        }
    }

    #[test]
    #[should_panic(expected = "came twice")]
    fn a_gradient_comes_once() {
        let layout = layout();
        let mut accumulator = Accumulator::new(Accumulation::along_tree(0..1, 1), &layout, Home::Host);
        accumulator.begin(&layout, 0);
        accumulator.add(&layout, 0, ones(8)).unwrap();
        let _ = accumulator.add(&layout, 0, ones(8));
    }

    /// Bits of this rank's partial sums after `leaves` of its micro-batches, whose gradients `value` makes up.
    fn partial_sums(
        plan: Accumulation,
        home: Home,
        format: Option<Format>,
        value: &dyn Fn(usize, usize) -> f32,
    ) -> Vec<Vec<u32>> {
        let layout = Layout::simple(vec![ParameterSpec { name: "w".into(), shape: vec![7, 300] }], 1 << 20);
        let leaves = plan.leaves.len();
        let mut accumulator = Accumulator::new(plan, &layout, home).in_format(format);
        for leaf in 0..leaves {
            accumulator.begin(&layout, leaf);
            let values: Vec<f32> = (0..2100).map(|element| value(leaf, element)).collect();
            accumulator.add(&layout, 0, Tensor::from_slice(&values).view([7, 300])).unwrap();
        }
        let bits = |sum: &Flat| -> Vec<u32> {
            sum.read(0..sum.len()).unwrap().iter().map(|value| value.to_bits()).collect()
        };
        accumulator.take(0).held().iter().map(bits).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the plan and the format, libtorch's kernels and our loops do the same additions.
        #[test]
        fn homes_have_the_same_bits(
            leaves in 1usize..14, ranks in 1usize..5, rank in 0usize..5, seed in any::<u32>(), in_order in any::<bool>(),
        ) {
            let ranks = ranks.min(leaves);
            let owned = share(leaves, ranks, rank % ranks);
            let plan = || match in_order {
                false => Accumulation::along_tree(owned.clone(), leaves),
                true => Accumulation::one_after_another(owned.clone(), leaves),
            };
            // Of many sizes, so that each addition rounds.
            let value = |leaf: usize, element: usize| {
                let word = (seed ^ (leaf * 7919 + element) as u32).wrapping_mul(2_654_435_761);
                (word as f32 / 4e9 - 0.5) * ((word % 23) as f32 - 12.0).exp2()
            };
            for format in [None, Some(Format::Bf16), Some(Format::Fp16)] {
                let [host, device] = HOMES.map(|home| partial_sums(plan(), home, format, &value));
                prop_assert_eq!(host, device, "{:?}", format);
            }
        }
    }
}
