//! Fingerprints: what is recorded of a tensor or of a part of it, and how they travel between ranks.

use lockstep_record::{
    BLOCK_BYTES, BLOCK_ELEMENTS, BlockSketch, Digest, DigestLine, Real, SKETCH_BINS, Sketch, block_digest,
    block_digests, block_sketch, tensor_digest,
};

use super::digests::Subject;
use crate::grad::flat::bytes;
use crate::grad::norm::block_square_sum;

/// What is recorded of one tensor, or of one block on the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint {
    digest: Digest,
    /// Bits of the norm (of a block: of the sum of squares), so that fingerprints can be compared.
    norm: u64,
    /// Likewise bits, where sketches are recorded.
    sketch: Option<[u64; SKETCH_BINS]>,
}

/// Bytes on the wire: a digest and a double, and a sketch's doubles.
const ENTRY: usize = 24;
const SKETCHED_ENTRY: usize = ENTRY + 8 * SKETCH_BINS;

impl Fingerprint {
    pub fn of(elements: &[f32], sketched: bool) -> Self {
        Self::of_blocks(&Self::blocks(elements, sketched))
    }

    /// One for each block of a tensor's elements.
    pub fn blocks(elements: &[f32], sketched: bool) -> Vec<Self> {
        // All of one block before the next: memory is read once.
        let of_block = |block: &[f32]| Self {
            digest: block_digest(bytes(block)),
            norm: block_square_sum(block).to_bits(),
            sketch: sketched.then(|| block_sketch(block).map(f64::to_bits)),
        };
        elements.chunks(BLOCK_ELEMENTS).map(of_block).collect()
    }

    /// Of a single number: its bytes, and its size as the norm.
    pub fn of_number(number: f64) -> Self {
        let blocks = block_digests(&number.to_le_bytes(), BLOCK_BYTES);
        Self { digest: tensor_digest(blocks), norm: number.abs().to_bits(), sketch: None }
    }

    /// Of a whole tensor from its blocks in order.
    pub fn of_blocks(blocks: &[Self]) -> Self {
        let squares = blocks.iter().fold(0.0, |sum, block| sum + f64::from_bits(block.norm));
        let sketches: Option<Vec<BlockSketch>> =
            blocks.iter().map(|block| block.sketch.map(|bins| bins.map(f64::from_bits))).collect();
        // A tensor without elements has no block that could tell whether sketches are recorded.
        let sketches = sketches.filter(|sketches| !sketches.is_empty());
        Self {
            digest: tensor_digest(blocks.iter().map(|block| block.digest)),
            norm: squares.sqrt().to_bits(),
            sketch: sketches.map(|sketches| Sketch::of_blocks(sketches).0.map(Real::bits)),
        }
    }

    /// The line of this tensor, without its ranks.
    pub fn line(&self, subject: &Subject, name: &str) -> DigestLine {
        DigestLine {
            step: subject.step,
            phase: subject.phase,
            tensor: format!("{}{name}", subject.prefix),
            micro_batch: None,
            digest: self.digest,
            norm: Real(f64::from_bits(self.norm)),
            sketch: self.sketch.map(|bins| Sketch(bins.map(|bits| Real(f64::from_bits(bits))))),
            ranks: vec![],
            sharded: false,
        }
    }

    fn encode(&self, message: &mut Vec<u8>) {
        message.extend(self.digest.0.to_le_bytes());
        let doubles = [self.norm].into_iter().chain(self.sketch.into_iter().flatten());
        doubles.for_each(|bits| message.extend(bits.to_le_bytes()));
    }

    /// Of one entry of a message.
    fn decode(entry: &[u8]) -> Self {
        let (digest, doubles) = entry.split_at(16);
        let digest = digest.try_into().map(u128::from_le_bytes).unwrap_or_default();
        let mut doubles = doubles.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes));
        let norm = doubles.next().unwrap_or_default();
        let bins: Vec<u64> = doubles.collect();
        Self { digest: Digest(digest), norm, sketch: bins.try_into().ok() }
    }
}

/// As a message to the other ranks.
pub fn encode<'f>(prints: impl IntoIterator<Item = &'f Fingerprint>) -> Vec<u8> {
    let mut message = Vec::new();
    prints.into_iter().for_each(|print| print.encode(&mut message));
    message
}

/// The fingerprints in another rank's message.
pub fn decode(message: &[u8], sketched: bool) -> impl Iterator<Item = Fingerprint> {
    message.chunks_exact(if sketched { SKETCHED_ENTRY } else { ENTRY }).map(Fingerprint::decode)
}
