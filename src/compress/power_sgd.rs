//! PowerSGD (Vogels, Karimireddy and Jaggi 2019, "PowerSGD: practical low-rank gradient compression"; PyTorch's
//! `powerSGD_hook`): instead of a matrix its projection on r directions travels.
//!
//! Of a matrix `M_i = gradient + residual` on each rank i, with directions Q that all ranks share:
//! `P = orthonormalised Σ M_i·Q`, then `Q = Σ M_iᵀ·P`, and `P·Qᵀ` is the step's gradient. Rank i keeps
//! `M_i − P·(M_iᵀ·P)ᵀ`, so residuals add up to what the sum has lost. Q is where the next step begins. The sums run over
//! the ranks along the tree, in the same order every time.

use std::ops::Range;

use super::matrix::{add_product, orthonormalise, times, transposed_times};
use crate::comm::{Comm, CommError};
use crate::grad::accumulate::PartialSums;
use crate::grad::exchange::Exchange;
use crate::grad::flat::{Flat, add};
use crate::grad::home::Home;
use crate::grad::layout::Layout;
use crate::mutate::{Mutation, active};
use crate::partition::share;
use crate::random::Stream;
use crate::strategy::{Setting, Strategy};

pub struct PowerSgd {
    inner: Box<dyn Strategy>,
    seed: u64,
    world_size: usize,
    /// One sum a rank.
    exchange: Exchange,
    buckets: Vec<Bucket>,
}

/// A bucket with matrices to compress, or without: then nothing of it is.
struct Bucket {
    matrices: Vec<Matrix>,
    /// Other parameters of the bucket: they travel as they are, in the first message.
    others: Vec<Range<usize>>,
    /// Of all matrices P, then the other parameters.
    first: PartialSums,
    /// Of all matrices Q. It stays for the next step.
    second: PartialSums,
    /// What has not been sent, over the whole bucket. While a bucket is reduced: that and its gradient.
    residual: Vec<f32>,
}

/// A parameter that travels as two thin factors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Matrix {
    parameter: u32,
    columns: usize,
    /// Its elements in the bucket, those of P in the first message, those of Q in the second.
    elements: Range<usize>,
    p: Range<usize>,
    q: Range<usize>,
    /// How often directions have been drawn.
    draws: u32,
}

impl Matrix {
    /// Replaces directions in which nothing was found, so that their place is not lost for ever. Without any from an
    /// earlier step all are drawn.
    fn refresh(&mut self, q: &mut [f32], seed: u64) {
        if q.iter().any(|value| !value.is_finite()) || active(Mutation::FreshDirections) {
            q.fill(0.0);
        }
        let vanished = orthonormalise(q, self.columns);
        if vanished.is_empty() {
            return;
        }
        let mut fresh = vec![0.0; q.len()];
        Stream::power_sgd(seed, self.parameter, self.draws).fill_normal(0.0, 1.0, &mut fresh);
        self.draws += 1;
        for index in vanished {
            let place = index * self.columns..(index + 1) * self.columns;
            q[place.clone()].copy_from_slice(&fresh[place]);
        }
        orthonormalise(q, self.columns);
    }
}

impl Bucket {
    /// Compresses a parameter of n rows and m columns (all dimensions but the first, as PyTorch flattens them) if
    /// rank·(n + m) < n·m.
    fn plan(layout: &Layout, bucket: usize, rank: usize) -> Self {
        let (mut matrices, mut others) = (Vec::new(), Vec::new());
        let (mut p_end, mut q_end) = (0, 0);
        for &parameter in &layout.buckets[bucket].parameters {
            let (elements, spec) = (layout.slots[parameter].range(), &layout.parameters[parameter]);
            let rows = spec.shape.first().map_or(1, |&rows| rows.max(1) as usize);
            let columns = elements.len() / rows;
            if rank * (rows + columns) >= elements.len() {
                others.push(elements);
                continue;
            }
            let (p, q) = (p_end..p_end + rank * rows, q_end..q_end + rank * columns);
            (p_end, q_end) = (p.end, q.end);
            matrices.push(Matrix { parameter: parameter as u32, columns, elements, p, q, draws: 0 });
        }
        let compresses = !matrices.is_empty();
        let buffer = |elements: usize| {
            PartialSums::whole(Flat::zeros(Home::Host, if compresses { elements } else { 0 }))
        };
        let residual = if compresses { layout.buckets[bucket].elements } else { 0 };
        Self {
            first: buffer(p_end + others.iter().map(Range::len).sum::<usize>()),
            second: buffer(q_end),
            residual: vec![0.0; residual],
            matrices,
            others,
        }
    }

    /// Fills the first message from this rank's gradient, which moves into the residual.
    fn project(&mut self, gradient: &[f32], seed: u64) {
        let first = self.first.gradient_mut().as_mut_slice();
        let directions = self.second.gradient_mut().as_mut_slice();
        for matrix in &mut self.matrices {
            let (elements, q) = (matrix.elements.clone(), &mut directions[matrix.q.clone()]);
            matrix.refresh(q, seed);
            let whole = &mut self.residual[elements.clone()];
            add(whole, &gradient[elements]);
            times(whole, q, &mut first[matrix.p.clone()], matrix.columns);
        }
        let mut rest = self.matrices.last().map_or(0, |matrix| matrix.p.end);
        for range in &self.others {
            first[rest..rest + range.len()].copy_from_slice(&gradient[range.clone()]);
            rest += range.len();
        }
    }

    /// Fills the second message, and leaves in the residual what it does not say.
    fn project_back(&mut self) {
        let first = self.first.gradient_mut().as_mut_slice();
        let second = self.second.gradient_mut().as_mut_slice();
        for Matrix { columns, elements, p, q, .. } in &self.matrices {
            let whole = &mut self.residual[elements.clone()];
            let (p, q) = (&mut first[p.clone()], &mut second[q.clone()]);
            orthonormalise(p, whole.len() / columns);
            transposed_times(whole, p, q, *columns);
            add_product(whole, -1.0, p, q, *columns);
            forget(whole);
        }
    }

    /// The step's gradient from both messages, once they are sums over all ranks.
    fn rebuild(&self, gradient: &mut [f32]) {
        let (first, second) = (self.first.gradient().as_slice(), self.second.gradient().as_slice());
        for Matrix { columns, elements, p, q, .. } in &self.matrices {
            let whole = &mut gradient[elements.clone()];
            whole.fill(0.0);
            add_product(whole, 1.0, &first[p.clone()], &second[q.clone()], *columns);
        }
        let mut rest = self.matrices.last().map_or(0, |matrix| matrix.p.end);
        for range in &self.others {
            gradient[range.clone()].copy_from_slice(&first[rest..rest + range.len()]);
            rest += range.len();
        }
    }
}

/// A residual that is not finite would spoil later steps, too; this one ends without it, since its norm is not finite.
fn forget(residual: &mut [f32]) {
    let forget_all = active(Mutation::ForgetResiduals);
    residual.iter_mut().filter(|value| forget_all || !value.is_finite()).for_each(|value| *value = 0.0);
}

impl PowerSgd {
    pub fn new(inner: Box<dyn Strategy>, rank: usize, seed: u64, setting: &Setting) -> Self {
        let Setting { layout, world_size, .. } = *setting;
        let buckets = 0..layout.buckets.len();
        Self {
            inner,
            seed,
            world_size,
            exchange: Exchange::new(world_size, setting.rank, world_size),
            buckets: buckets.map(|bucket| Bucket::plan(layout, bucket, rank)).collect(),
        }
    }
}

/// Sums a message over all ranks.
fn sum(
    comm: &dyn Comm,
    exchange: &mut Exchange,
    bucket: usize,
    world_size: usize,
    message: &mut PartialSums,
) -> Result<(), CommError> {
    let elements = message.gradient().len();
    let shards: Vec<_> = (0..world_size).map(|rank| share(elements, world_size, rank)).collect();
    exchange.all_reduce(comm, bucket, message, (&shards, &shards))
}

impl Strategy for PowerSgd {
    fn reduce(&mut self, comm: &dyn Comm, index: usize, sums: &mut PartialSums) -> Result<(), CommError> {
        let Self { inner, seed, world_size, exchange, buckets } = self;
        let bucket = &mut buckets[index];
        if bucket.matrices.is_empty() {
            return inner.reduce(comm, index, sums);
        }
        sums.add_up()?;
        let all = 0..sums.gradient().len();
        bucket.project(&sums.gradient().read(all.clone())?, *seed);
        sum(comm, exchange, index, *world_size, &mut bucket.first)?;
        bucket.project_back();
        sum(comm, exchange, index, *world_size, &mut bucket.second)?;
        Ok(sums.gradient_mut().edit(all, |gradient| bucket.rebuild(gradient))?)
    }

    fn publishes(&self) -> bool {
        self.inner.publishes()
    }

    fn publish(&mut self, comm: &dyn Comm, bucket: usize, parameters: &mut Flat) -> Result<(), CommError> {
        self.inner.publish(comm, bucket, parameters)
    }
}

#[cfg(test)]
#[path = "power_sgd_tests.rs"]
mod tests;
