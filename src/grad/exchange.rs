//! The ordered reduce-scatter: ranks swap chunks of their partial sums, and each chunk's owner adds them along the
//! tree. No arithmetic is left to the communication library. Where all ranks see one memory, nothing is swapped: the owner
//! adds the sums where they lie.

use std::ops::Range;
use std::sync::Arc;

use super::accumulate::PartialSums;
use super::device;
use super::flat::{Flat, add};
use super::home::Home;
use super::narrow::Narrow;
use super::shared::SharedSums;
use super::tree::{Accumulation, Merge, Node, merge_order};
use crate::comm::{Comm, CommError, Incoming, Outgoing, Region, RegionMut};
use crate::mutate::{Mutation, active, active_in, cut_to_bf16};
use crate::partition::share;
use crate::precision::Format;
use crate::torch::TorchError;

/// Elements that are added through the whole tree before the next ones: few enough to stay in the processor's cache.
const STRETCH: usize = 2048;

/// Who gets the sum of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receivers {
    Owner,
    Everyone,
}

/// What this rank needs to know to reduce any bucket: everybody's partial sums and the additions over them.
pub struct Exchange {
    rank: usize,
    /// How many subtrees each rank holds after its own accumulation.
    held: Vec<usize>,
    /// Additions over all ranks' subtrees in leaf order; the sum ends in the first.
    merges: Vec<Merge>,
    /// The other ranks' subtrees of this rank's shard, back to back in leaf order, where this rank's lie.
    received: Flat,
    /// Where all ranks' partial sums lie, if they see each other's.
    shared: Option<Arc<SharedSums>>,
    /// The format of all sums, unless it is fp32, and messages in it.
    format: Option<Format>,
    outgoing: Vec<Narrow>,
    incoming: Narrow,
}

impl Exchange {
    /// For `micro_batches` leaves over `world_size` ranks.
    pub fn new(micro_batches: usize, rank: usize, world_size: usize) -> Self {
        let held =
            |rank| Accumulation::along_tree(share(micro_batches, world_size, rank), micro_batches).partials;
        let partials: Vec<Vec<Node>> = (0..world_size).map(held).collect();
        let all = partials.concat();
        let mut merges = match active(Mutation::RankOrder) {
            false => merge_order(&all, micro_batches),
            true => (1..all.len()).map(|from| Merge { into: 0, from }).collect(),
        };
        if active(Mutation::HalfTheTree) {
            merges.pop();
        }
        Self {
            rank,
            held: partials.iter().map(Vec::len).collect(),
            merges,
            received: Flat::default(),
            shared: None,
            format: None,
            outgoing: Vec::new(),
            incoming: Narrow::default(),
        }
    }

    /// Rounds each sum to a 16-bit format, which all partial sums have already. Since they have it, they travel in 16
    /// bits and lose nothing.
    pub fn in_format(self, format: Option<Format>) -> Self {
        Self { format, ..self }
    }

    /// Adds sums where they lie, if that is where all ranks see them.
    pub fn in_common(self, shared: Option<Arc<SharedSums>>) -> Self {
        Self { shared, ..self }
    }

    /// The subtrees that other ranks hold.
    fn others(&self) -> usize {
        self.held.iter().sum::<usize>() - self.held[self.rank]
    }

    /// Where the others' subtrees of a shard of `length` elements go.
    pub fn places(&self, length: usize) -> Vec<Range<usize>> {
        (0..self.others()).map(|index| index * length..(index + 1) * length).collect()
    }

    /// Turns all of the bucket's gradient into the sum over all micro-batches, on every rank. Of messages, the second half
    /// is about the shards `gathered`.
    pub fn all_reduce(
        &mut self,
        comm: &dyn Comm,
        bucket: usize,
        sums: &mut PartialSums,
        (shards, gathered): (&[Range<usize>], &[Range<usize>]),
    ) -> Result<(), CommError> {
        if let Some(shared) = &self.shared {
            return self.reduce_in_common(comm, shared, bucket, shards, Receivers::Everyone);
        }
        self.reduce_scatter(comm, bucket, sums, shards)?;
        self.gather(comm, sums.gradient_mut(), gathered)
    }

    /// Turns this rank's `shards[rank]` of the bucket's gradient into the sum over all micro-batches.
    pub fn reduce_scatter(
        &mut self,
        comm: &dyn Comm,
        bucket: usize,
        sums: &mut PartialSums,
        shards: &[Range<usize>],
    ) -> Result<(), CommError> {
        if let Some(shared) = &self.shared {
            return self.reduce_in_common(comm, shared, bucket, shards, Receivers::Owner);
        }
        let mut received = std::mem::take(&mut self.received);
        let places = self.places(shards[self.rank].len());
        received.make_room(sums.home(), places.last().map_or(0, |last| last.end))?;
        match self.format {
            None => {
                let subtree = |index: usize, chunk: &Range<usize>| sums.held()[index].region(chunk);
                self.swap(comm, shards, &subtree, received.regions_mut(&places))?;
            }
            Some(format) => self.swap_narrow(comm, format, sums, shards, &mut received)?,
        }
        self.plant(&mut received)?;
        self.add_up(sums, shards[self.rank].clone(), &mut received)?;
        self.received = received;
        Ok(())
    }

    /// The same where all ranks' subtrees lie in one memory: no rank touches a bucket of its own between the two meetings, but
    /// for its shard of everybody's.
    fn reduce_in_common(
        &self,
        comm: &dyn Comm,
        shared: &SharedSums,
        bucket: usize,
        shards: &[Range<usize>],
        receivers: Receivers,
    ) -> Result<(), CommError> {
        let (begin, end) = match receivers {
            Receivers::Owner => ("reduce-scatter", "end of reduce-scatter"),
            Receivers::Everyone => ("all-reduce", "end of all-reduce"),
        };
        let elements = shards.iter().map(Range::len).sum();
        comm.meet(begin, shared.commons(), elements, self.bytes_to_others(shards, receivers))?;
        self.add_up_in_common(shared, bucket, &shards[self.rank], receivers);
        comm.meet(end, shared.commons(), elements, 0)
    }

    /// What this rank would have to send for it.
    fn bytes_to_others(&self, shards: &[Range<usize>], receivers: Receivers) -> usize {
        let (mine, all) = (shards[self.rank].len(), shards.iter().map(Range::len).sum::<usize>());
        let sums = self.held[self.rank] * (all - mine);
        size_of::<f32>()
            * match receivers {
                Receivers::Owner => sums,
                Receivers::Everyone => sums + (shards.len() - 1) * mine,
            }
    }

    /// The additions and copies of this rank.
    fn add_up_in_common(
        &self,
        shared: &SharedSums,
        bucket: usize,
        mine: &Range<usize>,
        receivers: Receivers,
    ) {
        let first = |rank: usize| self.held[..rank].iter().sum::<usize>();
        let receivers: Vec<usize> = match receivers {
            _ if active(Mutation::ResultNotCopied) => Vec::new(),
            Receivers::Owner => vec![first(self.rank)],
            Receivers::Everyone => (0..self.held.len()).map(first).collect(),
        };
        let work = |slots: &mut [&mut [f32]]| {
            self.merge(slots);
            let Some((sum, others)) = slots.split_first_mut() else { return };
            for &receiver in receivers.iter().filter(|&&receiver| receiver > 0) {
                others[receiver - 1].copy_from_slice(sum);
            }
        };
        for start in mine.clone().step_by(STRETCH) {
            let stretch = start..(start + STRETCH).min(mine.end);
            // SAFETY: nobody else touches this rank's shard before the next meeting.
            unsafe { shared.on_slots(bucket, &stretch, work) };
        }
    }

    /// All additions over one stretch of all ranks' subtrees. The sum ends in the first.
    fn merge(&self, slots: &mut [&mut [f32]]) {
        for &Merge { into, from } in &self.merges {
            let (sums, others) = slots.split_at_mut(from);
            add(sums[into], others[0]);
            self.format.into_iter().for_each(|format| format.round_in_place(sums[into]));
        }
    }

    /// The same with messages of 16 bits.
    fn swap_narrow(
        &mut self,
        comm: &dyn Comm,
        format: Format,
        sums: &PartialSums,
        shards: &[Range<usize>],
        received: &mut Flat,
    ) -> Result<(), CommError> {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let mut incoming = std::mem::take(&mut self.incoming);
        outgoing.resize_with(sums.held().len(), Narrow::default);
        for (sum, narrow) in sums.held().iter().zip(&mut outgoing) {
            narrow.make_room(sum.home(), sum.len(), format)?;
            narrow.round(format, &(0..sum.len()), sum)?;
        }
        let places = self.places(shards[self.rank].len());
        let all = 0..places.last().map_or(0, |last| last.end);
        incoming.make_room(sums.home(), all.end, format)?;
        let subtree = |index: usize, chunk: &Range<usize>| outgoing[index].region(chunk);
        self.swap(comm, shards, &subtree, incoming.regions_mut(&places))?;
        incoming.widen(format, &all, received)?;
        (self.outgoing, self.incoming) = (outgoing, incoming);
        Ok(())
    }

    /// Brings the shards of the reduced gradient to all ranks.
    pub fn gather(
        &mut self,
        comm: &dyn Comm,
        gradient: &mut Flat,
        shards: &[Range<usize>],
    ) -> Result<(), CommError> {
        let Some(format) = self.format else { return all_gather(comm, gradient.regions_mut(shards)) };
        self.outgoing.resize_with(self.outgoing.len().max(1), Narrow::default);
        let narrow = &mut self.outgoing[0];
        narrow.make_room(gradient.home(), gradient.len(), format)?;
        narrow.round(format, &shards[self.rank], gradient)?;
        all_gather(comm, narrow.regions_mut(shards))?;
        Ok(narrow.widen(format, &(0..gradient.len()), gradient)?)
    }

    /// Sends each rank its shard of this rank's subtrees, `subtree(index, shard)` in whichever form, and receives the
    /// others' subtrees of this rank's shard in `places`, in leaf order.
    pub fn swap<'s>(
        &self,
        comm: &dyn Comm,
        shards: &[Range<usize>],
        subtree: &dyn Fn(usize, &Range<usize>) -> Region<'s>,
        places: Vec<RegionMut<'_>>,
    ) -> Result<(), CommError> {
        if shards.len() == 1 {
            return Ok(());
        }
        let others = || (0..shards.len()).filter(|&rank| rank != self.rank);
        let chunks = |to: usize| {
            (0..self.held[self.rank]).map(move |index| Outgoing { to, region: subtree(index, &shards[to]) })
        };
        let from = others().flat_map(|rank| std::iter::repeat_n(rank, self.held[rank]));
        let recvs = from.zip(places).map(|(from, region)| Incoming { from, region });
        send_and_receive(comm, "reduce-scatter", others().flat_map(chunks), recvs)
    }

    /// The planted bugs of messages.
    fn plant(&self, received: &mut Flat) -> Result<(), TorchError> {
        let all = 0..received.len();
        if active(Mutation::Bf16Travel) {
            let cut = |values: &mut [f32]| values.iter_mut().for_each(|value| *value = cut_to_bf16(*value));
            received.edit(all.clone(), cut)?;
        }
        if active_in(Mutation::LostMessage, 3) && self.rank + 1 == self.held.len() {
            received.overwrite(all, |values| values.fill(0.0))?;
        }
        Ok(())
    }

    /// Adds all ranks' subtrees of this rank's shard along the tree: its own in place, the others' as [`Exchange::swap`]
    /// received them. The sum ends in the gradient.
    pub fn add_up(
        &self,
        sums: &mut PartialSums,
        mine: Range<usize>,
        received: &mut Flat,
    ) -> Result<(), TorchError> {
        match sums.home() {
            _ if mine.is_empty() => Ok(()),
            Home::Host => {
                let others = self.others() * mine.len();
                self.add_up_on_host(sums, mine, &mut received.as_mut_slice()[..others]);
                Ok(())
            }
            Home::Device(_) => self.add_up_on_device(sums, mine, received),
        }
    }

    fn add_up_on_host(&self, sums: &mut PartialSums, mine: Range<usize>, received: &mut [f32]) {
        let length = mine.len();
        let first: usize = self.held[..self.rank].iter().sum();
        let mut start = 0;
        while start < length {
            let end = (start + STRETCH).min(length);
            // Of every subtree the same stretch: of others' from what was received, of this rank's in place.
            let mut slots: Vec<&mut [f32]> = Vec::with_capacity(self.held.iter().sum());
            let (before, after) = received.split_at_mut(first * length);
            slots.extend(before.chunks_exact_mut(length).map(|sum| &mut sum[start..end]));
            let stretch = mine.start + start..mine.start + end;
            slots.extend(sums.held_mut().iter_mut().map(|sum| &mut sum.as_mut_slice()[stretch.clone()]));
            slots.extend(after.chunks_exact_mut(length).map(|sum| &mut sum[start..end]));
            self.merge(&mut slots);
            if self.sum_ends_elsewhere() {
                let (sums, others) = slots.split_at_mut(first);
                others[0].copy_from_slice(sums[0]);
            }
            start = end;
        }
    }

    fn add_up_on_device(
        &self,
        sums: &mut PartialSums,
        mine: Range<usize>,
        received: &Flat,
    ) -> Result<(), TorchError> {
        let first: usize = self.held[..self.rank].iter().sum();
        let places = self.places(mine.len());
        let (before, after) = places.split_at(first);
        let theirs = |place: &Range<usize>| received.view(place.clone());
        let own = sums.held().iter().map(|sum| sum.view(mine.clone()));
        let mut slots: Vec<_> =
            before.iter().map(theirs).chain(own).chain(after.iter().map(theirs)).collect();
        device::merge(&mut slots, &self.merges, self.format)?;
        if self.sum_ends_elsewhere() {
            let (sums, others) = slots.split_at_mut(first);
            others[0].f_copy_(&sums[0])?;
        }
        Ok(())
    }

    /// Whether the sum ends in another rank's subtree, and not where the gradient belongs.
    fn sum_ends_elsewhere(&self) -> bool {
        let first: usize = self.held[..self.rank].iter().sum();
        first > 0 && self.held[self.rank] > 0 && !active(Mutation::ResultNotCopied)
    }
}

/// Sends this rank's part to all others and fills in theirs; `parts[r]` is rank r's.
pub fn all_gather(comm: &dyn Comm, mut parts: Vec<RegionMut<'_>>) -> Result<(), CommError> {
    let (rank, size) = (comm.rank(), parts.len());
    let mine = parts.remove(rank);
    let others = || (0..size).filter(|&other| other != rank);
    let sends = others().map(|to| Outgoing { to, region: mine.as_region() });
    let recvs = others().zip(parts).map(|(from, region)| Incoming { from, region });
    send_and_receive(comm, "all-gather", sends, recvs)
}

/// Empty messages are not sent: shards of a small bucket may be empty.
fn send_and_receive<'s, 'r>(
    comm: &dyn Comm,
    operation: &'static str,
    sends: impl Iterator<Item = Outgoing<'s>>,
    recvs: impl Iterator<Item = Incoming<'r>>,
) -> Result<(), CommError> {
    let sends: Vec<Outgoing> = sends.filter(|send| !send.region.is_empty()).collect();
    let mut recvs: Vec<Incoming> = recvs.filter(|recv| !recv.region.is_empty()).collect();
    comm.exchange(operation, &sends, &mut recvs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::commons_in_one_process;
    use crate::grad::layout::{Layout, ParameterSpec};
    use crate::grad::shared::Places;
    use proptest::prelude::*;
    use tch::Device;

    /// Bits of a shard's sum on one of the ranks, from made-up subtrees of all.
    fn sum(exchange: &Exchange, home: Home, length: usize, value: &dyn Fn(usize, usize) -> f32) -> Vec<u32> {
        let first: usize = exchange.held[..exchange.rank].iter().sum();
        let own = exchange.held[exchange.rank];
        let subtree = |node: usize| (0..length).map(|element| value(node, element)).collect::<Vec<f32>>();
        let filled = |values: &[f32]| {
            let mut flat = Flat::zeros(home, values.len());
            flat.overwrite(0..values.len(), |place| place.copy_from_slice(values)).unwrap();
            flat
        };
        let mut sums = PartialSums::of((first..first + own).map(|node| filled(&subtree(node))).collect());
        let nodes = (0..exchange.held.iter().sum()).filter(|node| !(first..first + own).contains(node));
        // Longer than needed, as it is after a larger bucket.
        let mut received = filled(&[nodes.flat_map(subtree).collect(), vec![7.0; 5]].concat());
        exchange.add_up(&mut sums, 0..length, &mut received).unwrap();
        sums.gradient().read(0..length).unwrap().iter().map(|value| value.to_bits()).collect()
    }

    /// The same, each rank adding up its shard in one memory; every rank has all of it then.
    fn sums_in_common(
        leaves: usize,
        ranks: usize,
        length: usize,
        value: &dyn Fn(usize, usize) -> f32,
    ) -> Vec<u32> {
        let exchanges: Vec<Exchange> = (0..ranks).map(|rank| Exchange::new(leaves, rank, ranks)).collect();
        let spec = ParameterSpec { name: "w".into(), shape: vec![length as i64] };
        let layout = Layout::simple(vec![spec], 1 << 20);
        let places = || Places::new(&layout, exchanges[0].held.clone());
        let commons = commons_in_one_process(ranks, places().elements());
        let shared: Vec<_> = commons.into_iter().map(|commons| SharedSums::new(commons, places())).collect();
        let mut node = 0;
        for (rank, shared) in shared.iter().enumerate() {
            for mut subtree in shared.of_rank(rank, 0) {
                for (element, place) in subtree.as_mut_slice()[..length].iter_mut().enumerate() {
                    *place = value(node, element);
                }
                node += 1;
            }
        }
        for (rank, exchange) in exchanges.iter().enumerate() {
            exchange.add_up_in_common(&shared[rank], 0, &share(length, ranks, rank), Receivers::Everyone);
        }
        let bits = |rank: usize| -> Vec<u32> {
            let gradient = &shared[rank].of_rank(rank, 0)[0];
            gradient.as_slice()[..length].iter().map(|value| value.to_bits()).collect()
        };
        let expected = bits(0);
        (1..ranks).for_each(|rank| assert_eq!(bits(rank), expected));
        expected
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However the micro-batches are split, libtorch's kernels and our loops do the same additions; so do all ranks.
        #[test]
        fn homes_and_ranks_have_the_same_bits(
            leaves in 1usize..17, ranks in 1usize..7, length in 1usize..5000, seed in any::<u32>(),
        ) {
            let ranks = ranks.min(leaves);
            // Small whole numbers in units that differ: exact in 16 bits, and their sums are not.
            let value = |node: usize, element: usize| {
                let word = (seed ^ (node * 104_729 + element) as u32).wrapping_mul(2_654_435_761) >> 8;
                ((word % 255) as f32 - 127.0) * ((word % 7) as f32 - 3.0).exp2()
            };
            prop_assert_eq!(&sums_in_common(leaves, ranks, length, &value), &sum(&Exchange::new(leaves, 0, ranks), Home::Host, length, &value));
            for format in [None, Some(Format::Bf16), Some(Format::Fp16)] {
                let exchange = |rank| Exchange::new(leaves, rank, ranks).in_format(format);
                let expected = sum(&exchange(0), Home::Host, length, &value);
                for rank in 0..ranks {
                    for home in [Home::Host, Home::Device(Device::Cpu)] {
                        prop_assert_eq!(&sum(&exchange(rank), home, length, &value), &expected, "{:?} {:?}", home, format);
                    }
                }
            }
        }
    }
}
