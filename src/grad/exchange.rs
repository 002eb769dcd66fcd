//! The ordered reduce-scatter: ranks swap chunks of their partial sums, and each chunk's owner adds them along the
//! tree. No arithmetic is left to the communication library.

use std::ops::Range;

use super::accumulate::PartialSums;
use super::flat::{Element, Flat, add, bytes, bytes_mut};
use super::tree::{Accumulation, Merge, Node, merge_order};
use crate::comm::{Comm, CommError, Incoming, Outgoing};
use crate::mutate::{Mutation, active, active_in, cut_to_bf16};
use crate::partition::share;
use crate::precision::Format;

/// Elements that are added through the whole tree before the next ones: few enough to stay in the processor's cache.
const STRETCH: usize = 2048;

/// What this rank needs to know to reduce any bucket: everybody's partial sums and the additions over them.
pub struct Exchange {
    rank: usize,
    /// How many subtrees each rank holds after its own accumulation.
    held: Vec<usize>,
    /// Additions over all ranks' subtrees in leaf order; the sum ends in the first.
    merges: Vec<Merge>,
    /// The other ranks' subtrees of this rank's shard, back to back in leaf order.
    received: Vec<f32>,
    /// The format of all sums, unless it is fp32, and messages in it.
    format: Option<Format>,
    outgoing: Vec<Vec<u16>>,
    incoming: Vec<u16>,
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
            received: Vec::new(),
            format: None,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    /// Rounds each sum to a 16-bit format, which all partial sums have already. Since they have it, they travel in 16
    /// bits and lose nothing.
    pub fn in_format(self, format: Option<Format>) -> Self {
        Self { format, ..self }
    }

    /// Turns this rank's `shards[rank]` of the bucket's gradient into the sum over all micro-batches.
    pub fn reduce_scatter(
        &mut self,
        comm: &dyn Comm,
        sums: &mut PartialSums,
        shards: &[Range<usize>],
    ) -> Result<(), CommError> {
        let mut received = std::mem::take(&mut self.received);
        let held: Vec<&[f32]> = sums.held().iter().map(Flat::as_slice).collect();
        match self.format {
            None => self.swap(comm, &held, shards, &mut received)?,
            Some(format) => self.swap_narrow(comm, format, &held, shards, &mut received)?,
        }
        self.plant(&mut received);
        self.add_up(sums, shards[self.rank].clone(), &mut received);
        self.received = received;
        Ok(())
    }

    /// As [`Exchange::swap`], with messages of 16 bits.
    fn swap_narrow(
        &mut self,
        comm: &dyn Comm,
        format: Format,
        held: &[&[f32]],
        shards: &[Range<usize>],
        received: &mut Vec<f32>,
    ) -> Result<(), CommError> {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let mut incoming = std::mem::take(&mut self.incoming);
        outgoing.resize_with(held.len(), Vec::new);
        for (sum, narrow) in held.iter().zip(&mut outgoing) {
            narrow.resize(sum.len(), 0);
            format.round(sum, narrow);
        }
        let narrow: Vec<&[u16]> = outgoing.iter().map(Vec::as_slice).collect();
        self.swap(comm, &narrow, shards, &mut incoming)?;
        received.resize(incoming.len(), 0.0);
        format.widen(&incoming, received);
        (self.outgoing, self.incoming) = (outgoing, incoming);
        Ok(())
    }

    /// Brings the shards of the reduced gradient to all ranks.
    pub fn gather(
        &mut self,
        comm: &dyn Comm,
        gradient: &mut [f32],
        shards: &[Range<usize>],
    ) -> Result<(), CommError> {
        let Some(format) = self.format else { return all_gather(comm, gradient, shards) };
        self.outgoing.resize_with(self.outgoing.len().max(1), Vec::new);
        let (narrow, mine) = (&mut self.outgoing[0], shards[self.rank].clone());
        narrow.resize(gradient.len(), 0);
        format.round(&gradient[mine.clone()], &mut narrow[mine]);
        all_gather(comm, narrow, shards)?;
        format.widen(narrow, gradient);
        Ok(())
    }

    /// Sends each rank its shard of `held`, this rank's subtrees in whichever form, and receives the others' subtrees of
    /// this rank's shard, back to back in leaf order.
    pub fn swap<T: Element>(
        &self,
        comm: &dyn Comm,
        held: &[&[T]],
        shards: &[Range<usize>],
        received: &mut Vec<T>,
    ) -> Result<(), CommError> {
        let mine = shards[self.rank].clone();
        let others = |&rank: &usize| rank != self.rank;
        let count: usize = (0..shards.len()).filter(others).map(|rank| self.held[rank]).sum();
        received.resize(count * mine.len(), T::default());
        if shards.len() == 1 {
            return Ok(());
        }
        let chunks = |rank: usize| {
            let chunk = shards[rank].clone();
            held.iter().map(move |sum| Outgoing { to: rank, bytes: bytes(&sum[chunk.clone()]) })
        };
        let sends: Vec<Outgoing> = (0..shards.len()).filter(others).flat_map(chunks).collect();
        let from = (0..shards.len()).filter(others).flat_map(|rank| vec![rank; self.held[rank]]);
        let places = received.chunks_exact_mut(mine.len().max(1));
        let mut recvs: Vec<Incoming> =
            from.zip(places).map(|(from, place)| Incoming { from, bytes: bytes_mut(place) }).collect();
        comm.exchange("reduce-scatter", &nonempty(sends), &mut recvs)
    }

    /// The planted bugs of messages.
    fn plant(&self, received: &mut [f32]) {
        if active(Mutation::Bf16Travel) {
            received.iter_mut().for_each(|value| *value = cut_to_bf16(*value));
        }
        if active_in(Mutation::LostMessage, 3) && self.rank + 1 == self.held.len() {
            received.fill(0.0);
        }
    }

    /// Adds all ranks' subtrees of this rank's shard along the tree: its own in place, the others' as [`Exchange::swap`]
    /// received them. The sum ends in the gradient.
    pub fn add_up(&self, sums: &mut PartialSums, mine: Range<usize>, received: &mut [f32]) {
        let length = mine.len();
        let first: usize = self.held[..self.rank].iter().sum();
        let own = self.held[self.rank];
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
            for &Merge { into, from } in &self.merges {
                let (sums, others) = slots.split_at_mut(from);
                add(sums[into], others[0]);
                self.format.into_iter().for_each(|format| format.round_in_place(sums[into]));
            }
            if first > 0 && own > 0 && !active(Mutation::ResultNotCopied) {
                let (sums, others) = slots.split_at_mut(first);
                others[0].copy_from_slice(sums[0]);
            }
            start = end;
        }
    }
}

/// Empty messages are not sent: shards of a small bucket may be empty.
fn nonempty(sends: Vec<Outgoing>) -> Vec<Outgoing> {
    sends.into_iter().filter(|send| !send.bytes.is_empty()).collect()
}

/// Sends this rank's shard of a buffer to all others and fills in theirs, in place.
pub fn all_gather<T: Element>(
    comm: &dyn Comm,
    buffer: &mut [T],
    shards: &[Range<usize>],
) -> Result<(), CommError> {
    let (rank, mut rest) = (comm.rank(), buffer);
    let mut parts: Vec<&mut [T]> = Vec::with_capacity(shards.len());
    for shard in shards {
        let (part, tail) = rest.split_at_mut(shard.len());
        parts.push(part);
        rest = tail;
    }
    let (before, from_mine) = parts.split_at_mut(rank);
    let (mine, after) = from_mine.split_at_mut(1);
    let sends = (0..shards.len()).filter(|&to| to != rank).map(|to| Outgoing { to, bytes: bytes(mine[0]) });
    let others =
        before.iter_mut().enumerate().chain(after.iter_mut().enumerate().map(|(i, p)| (rank + 1 + i, p)));
    let mut recvs: Vec<Incoming> =
        others.map(|(from, part)| Incoming { from, bytes: bytes_mut(part) }).collect();
    recvs.retain(|recv| !recv.bytes.is_empty());
    comm.exchange("all-gather", &nonempty(sends.collect()), &mut recvs)
}
