//! Fingerprints of the blocks of buckets.
//!
//! A bucket's gradient and the optimizer's state are best recorded around its update, when the processor's caches have
//! them at hand: at the end of the step all of it would have to come from memory once more, which is most of what digests
//! cost. A [`Pen`] does so on whichever thread updates the bucket.

use std::ops::Range;

use super::prints::Fingerprint;
use crate::grad::flat::Flat;
use crate::grad::layout::Layout;
use crate::torch::TorchError;

/// What a [`Pen`] has seen of a bucket.
#[derive(Debug)]
pub struct BucketPrints {
    /// Before the update, and before clipping.
    pub gradient: Vec<Fingerprint>,
    /// After the update, by kind.
    pub state: Vec<Vec<Fingerprint>>,
}

/// Records a bucket around its update.
pub struct Pen {
    owned: Owned,
    state: Vec<Flat>,
}

impl Pen {
    /// Of a bucket's `owned` part. `state` are the optimizer's buffers over that part, a kind each.
    pub fn new(
        layout: &Layout,
        bucket: usize,
        owned: &Range<usize>,
        state: Vec<Flat>,
        sketched: bool,
    ) -> Self {
        Self { owned: Owned::of(layout, bucket, owned, sketched), state }
    }

    /// Does the update, which may scale the gradient first; where there is a pen, it records what comes and what is left.
    pub fn around(
        pen: Option<Self>,
        gradient: &mut Flat,
        update: impl FnOnce(&mut Flat) -> Result<(), TorchError>,
    ) -> Result<Option<BucketPrints>, TorchError> {
        let Some(Self { owned, state }) = pen else { return update(gradient).map(|()| None) };
        let before = owned.prints(gradient, 0)?;
        update(gradient)?;
        let after = state.iter().map(|state| owned.prints(state, owned.first)).collect::<Result<_, _>>()?;
        Ok(Some(BucketPrints { gradient: before, state: after }))
    }
}

/// One for each block of a bucket's owned part, from a buffer that begins at `start` in the bucket.
pub fn block_prints(
    layout: &Layout,
    (bucket, owned): (usize, &Range<usize>),
    buffer: &Flat,
    start: usize,
    sketched: bool,
) -> Result<Vec<Fingerprint>, TorchError> {
    Owned::of(layout, bucket, owned, sketched).prints(buffer, start)
}

/// The part of a bucket that a rank records.
struct Owned {
    /// Where it begins in the bucket.
    first: usize,
    /// The parameters' parts in it, without padding.
    parts: Vec<Range<usize>>,
    sketched: bool,
}

impl Owned {
    fn of(layout: &Layout, bucket: usize, owned: &Range<usize>, sketched: bool) -> Self {
        let parts = layout.parts_of(bucket, owned).map(|part| part.range).collect();
        Self { first: owned.start, parts, sketched }
    }

    fn prints(&self, buffer: &Flat, start: usize) -> Result<Vec<Fingerprint>, TorchError> {
        let mut prints = Vec::new();
        for part in &self.parts {
            let elements = buffer.read(part.start - start..part.end - start)?;
            prints.extend(Fingerprint::blocks(&elements, self.sketched));
        }
        Ok(prints)
    }
}
