//! The ordered reduce-scatter: ranks swap chunks of their partial sums, and each chunk's owner adds them along the
//! tree. No arithmetic is left to the communication library.

use std::ops::Range;

use super::accumulate::Accumulator;
use super::flat;
use super::tree::{Accumulation, Merge, Node, merge_order};
use crate::comm::{Comm, CommError};
use crate::mutate::{Mutation, active};
use crate::partition::share;

/// What this rank needs to know to reduce any bucket: everybody's partial sums and the additions over them.
pub struct Exchange {
    rank: usize,
    /// Subtrees that each rank holds after its own accumulation.
    partials: Vec<Vec<Node>>,
    merges: Vec<Merge>,
    send: Vec<f32>,
    recv: Vec<f32>,
}

impl Exchange {
    /// For `micro_batches` leaves over `world_size` ranks.
    pub fn new(micro_batches: usize, rank: usize, world_size: usize) -> Self {
        let held =
            |rank| Accumulation::along_tree(share(micro_batches, world_size, rank), micro_batches).partials;
        let partials: Vec<Vec<Node>> = (0..world_size).map(held).collect();
        let all = partials.concat();
        let merges = match active(Mutation::RankOrder) {
            false => merge_order(&all, micro_batches),
            true => (1..all.len()).map(|from| Merge { into: 0, from }).collect(),
        };
        Self { rank, partials, merges, send: Vec::new(), recv: Vec::new() }
    }

    /// Returns this rank's shard of the bucket's sum over all micro-batches. `shards` are all ranks' parts.
    pub fn reduce_scatter(
        &mut self,
        comm: &dyn Comm,
        gradients: &Accumulator,
        bucket: usize,
        shards: &[Range<usize>],
    ) -> Result<&[f32], CommError> {
        comm.at_bucket(bucket);
        let mine = shards[self.rank].len();
        let held = self.partials[self.rank].len();
        let send_counts: Vec<usize> = shards.iter().map(|shard| shard.len() * held).collect();
        let recv_counts: Vec<usize> = self.partials.iter().map(|nodes| nodes.len() * mine).collect();
        self.recv.resize(recv_counts.iter().sum(), 0.0);
        let mut partials = gradients.partials(bucket);
        match partials.next() {
            // A single partial sum lies as it is sent: its chunks in the order of the ranks.
            Some(only) if held == 1 => comm.all_to_all(only, &send_counts, &mut self.recv, &recv_counts)?,
            _ => {
                self.send.clear();
                for shard in shards {
                    gradients
                        .partials(bucket)
                        .for_each(|sum| self.send.extend_from_slice(&sum[shard.clone()]));
                }
                comm.all_to_all(&self.send, &send_counts, &mut self.recv, &recv_counts)?;
            }
        }
        self.add_up(mine);
        Ok(&self.recv[..mine])
    }

    /// Adds the received partial sums, each `length` long, along the tree into the first one.
    fn add_up(&mut self, length: usize) {
        for &Merge { into, from } in &self.merges {
            let (sums, others) = self.recv.split_at_mut(from * length);
            flat::add(&mut sums[into * length..][..length], &others[..length]);
        }
    }
}
