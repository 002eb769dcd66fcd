//! Digests of tensors, gathered from all ranks into the lines of `digests.jsonl`.

use std::collections::BTreeMap;
use std::ops::Range;

use lockstep_record::{
    BLOCK_BYTES, BLOCK_ELEMENTS, BlockSketch, Digest, DigestLine, Phase, Real, SKETCH_BINS, Sketch,
    block_digest, block_digests, block_sketch, rank_ranges, tensor_digest,
};

use crate::comm::{Comm, CommError};
use crate::grad::flat::{Flat, bytes};
use crate::grad::layout::{Layout, Part, Slot};
use crate::grad::norm::block_square_sum;
use crate::torch::TorchError;

/// What is recorded of one tensor, or of one block on the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint {
    digest: Digest,
    /// Bits of the norm (of a block: of the sum of squares), so that fingerprints can be compared.
    norm: u64,
    /// Likewise bits, where sketches are recorded.
    sketch: Option<[u64; SKETCH_BINS]>,
}

/// What lines are about.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub step: u64,
    pub phase: Phase,
    /// Goes before the parameters' names.
    pub prefix: &'a str,
    /// Whether the lines have sketches.
    pub sketched: bool,
}

/// Bytes on the wire: a digest and a double, and a sketch's doubles.
const ENTRY: usize = 24;
const SKETCHED_ENTRY: usize = ENTRY + 8 * SKETCH_BINS;

impl Fingerprint {
    pub fn of(elements: &[f32], sketched: bool) -> Self {
        Self::of_blocks(Self::blocks(elements, sketched))
    }

    /// One for each block of a tensor's elements.
    fn blocks(elements: &[f32], sketched: bool) -> Vec<Self> {
        // All of one block before the next: memory is read once.
        let of_block = |block: &[f32]| Self {
            digest: block_digest(bytes(block)),
            norm: block_square_sum(block).to_bits(),
            sketch: sketched.then(|| block_sketch(block).map(f64::to_bits)),
        };
        elements.chunks(BLOCK_ELEMENTS).map(of_block).collect()
    }

    /// Of a single number: its bytes, and its size as the norm.
    fn of_number(number: f64) -> Self {
        let blocks = block_digests(&number.to_le_bytes(), BLOCK_BYTES);
        Self { digest: tensor_digest(blocks), norm: number.abs().to_bits(), sketch: None }
    }

    /// Of a whole tensor from its blocks in order.
    fn of_blocks(blocks: Vec<Self>) -> Self {
        let squares = blocks.iter().fold(0.0, |sum, block| sum + f64::from_bits(block.norm));
        let sketches: Option<Vec<BlockSketch>> =
            blocks.iter().map(|block| block.sketch.map(|bins| bins.map(f64::from_bits))).collect();
        // A tensor without elements has no block that could tell whether sketches are recorded.
        let sketches = sketches.filter(|sketches| !sketches.is_empty());
        Self {
            digest: tensor_digest(blocks.into_iter().map(|block| block.digest)),
            norm: squares.sqrt().to_bits(),
            sketch: sketches.map(|sketches| Sketch::of_blocks(sketches).0.map(Real::bits)),
        }
    }

    fn line(&self, subject: &Subject, name: &str) -> DigestLine {
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

/// The parameters that lie in buffers: where a bucket's buffer is empty, its parameters are frozen and have no such
/// tensor.
fn present<'b>(layout: &Layout, buffer: &dyn Fn(usize) -> &'b Flat) -> Vec<usize> {
    (0..layout.parameters.len()).filter(|&index| !buffer(layout.slots[index].bucket).is_empty()).collect()
}

fn encode<'f>(prints: impl IntoIterator<Item = &'f Fingerprint>) -> Vec<u8> {
    let mut message = Vec::new();
    prints.into_iter().for_each(|print| print.encode(&mut message));
    message
}

fn decode(message: &[u8], sketched: bool) -> impl Iterator<Item = Fingerprint> {
    message.chunks_exact(if sketched { SKETCHED_ENTRY } else { ENTRY }).map(Fingerprint::decode)
}

/// Lines for tensors of which every rank has a copy: ranks with the same value share a line.
pub fn replicas<'b>(
    comm: &dyn Comm,
    layout: &Layout,
    subject: &Subject,
    buffer: &dyn Fn(usize) -> &'b Flat,
) -> Result<Vec<DigestLine>, CommError> {
    let parameters = present(layout, buffer);
    let slots = parameters.iter().map(|&parameter| &layout.slots[parameter]);
    let print = |slot: &Slot| {
        let elements = buffer(slot.bucket).read(slot.range())?;
        Ok(Fingerprint::of(&elements, subject.sketched))
    };
    let mine = slots.map(print).collect::<Result<Vec<_>, TorchError>>()?;
    let of = |parameter: &usize| (*subject, layout.parameters[*parameter].name.as_str());
    copies(comm, &parameters.iter().map(of).collect::<Vec<_>>(), &mine)
}

/// Lines for numbers that every rank has computed for itself.
pub fn numbers(
    comm: &dyn Comm,
    step: u64,
    numbers: &[(Phase, &str, f64)],
) -> Result<Vec<DigestLine>, CommError> {
    let subject = |phase| Subject { step, phase, prefix: "", sketched: false };
    let of: Vec<_> = numbers.iter().map(|&(phase, name, _)| (subject(phase), name)).collect();
    let mine: Vec<_> = numbers.iter().map(|&(_, _, number)| Fingerprint::of_number(number)).collect();
    copies(comm, &of, &mine)
}

/// Lines for what every rank has, `mine` on this one: ranks with the same value share a line.
fn copies(
    comm: &dyn Comm,
    of: &[(Subject, &str)],
    mine: &[Fingerprint],
) -> Result<Vec<DigestLine>, CommError> {
    let sketched = of.first().is_some_and(|(subject, _)| subject.sketched);
    let messages = comm.all_gather_bytes("gather of replicas", &encode(mine))?;
    let ranks: Vec<Vec<_>> = messages.iter().map(|message| decode(message, sketched).collect()).collect();
    let mut lines = Vec::new();
    for (index, (subject, name)) in of.iter().enumerate() {
        let mut holders: BTreeMap<Fingerprint, Vec<u32>> = BTreeMap::new();
        for (rank, prints) in ranks.iter().enumerate() {
            if let Some(&print) = prints.get(index) {
                holders.entry(print).or_default().push(rank as u32);
            }
        }
        // The line of rank 0 comes first.
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort_by_key(|(_, ranks)| ranks[0]);
        for (print, ranks) in holders {
            let line = print.line(subject, name);
            lines.push(DigestLine { ranks: rank_ranges(ranks), ..line });
        }
    }
    Ok(lines)
}

/// Lines for tensors that the ranks hold together: `owned(rank)` is what a rank has of each bucket, and this rank's
/// buffers begin at `start(bucket)`.
pub fn shards<'b>(
    comm: &dyn Comm,
    layout: &Layout,
    subject: &Subject,
    owned: &dyn Fn(usize) -> Vec<Range<usize>>,
    buffer: &dyn Fn(usize) -> &'b Flat,
    start: &dyn Fn(usize) -> usize,
) -> Result<Vec<DigestLine>, CommError> {
    let mut mine = Vec::new();
    for Part { bucket, range, .. } in layout.parts(&owned(comm.rank())) {
        let first = start(bucket);
        let elements = buffer(bucket).read(range.start - first..range.end - first)?;
        mine.extend(Fingerprint::blocks(&elements, subject.sketched));
    }
    let messages = comm.all_gather_bytes("gather of shards", &encode(&mine))?;
    // By parameter: the parts in order of offset, each with its blocks.
    let mut parts = vec![BTreeMap::new(); layout.parameters.len()];
    for (rank, message) in messages.iter().enumerate() {
        let mut blocks = decode(message, subject.sketched);
        for part in layout.parts(&owned(rank)) {
            let count = part.range.len().div_ceil(BLOCK_ELEMENTS);
            parts[part.parameter].insert(part.offset, blocks.by_ref().take(count).collect::<Vec<_>>());
        }
    }
    let everyone = rank_ranges(0..comm.size() as u32);
    let line = |(parameter, parts): (usize, BTreeMap<usize, Vec<Fingerprint>>)| {
        let print = Fingerprint::of_blocks(parts.into_values().flatten().collect());
        let line = print.line(subject, &layout.parameters[parameter].name);
        DigestLine { ranks: everyone.clone(), sharded: comm.size() > 1, ..line }
    };
    // Frozen parameters have no part.
    let held = parts.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty());
    Ok(held.map(line).collect())
}

/// Lines for what belongs to one micro-batch each; `mine` holds this rank's, one entry a name, and `first` says which
/// micro-batch each rank's first one is.
pub fn of_micro_batches(
    comm: &dyn Comm,
    subject: &Subject,
    names: &[&str],
    mine: &[Vec<Fingerprint>],
    first: &dyn Fn(usize) -> usize,
) -> Result<Vec<DigestLine>, CommError> {
    let messages = comm.all_gather_bytes("gather of local prints", &encode(mine.iter().flatten()))?;
    let mut lines = Vec::new();
    for (rank, message) in messages.iter().enumerate() {
        for (index, print) in decode(message, subject.sketched).enumerate() {
            let micro_batch = first(rank) + index / names.len();
            let line = print.line(subject, names[index % names.len()]);
            let ranks = vec![(rank as u32, rank as u32)];
            lines.push(DigestLine { micro_batch: Some(micro_batch as u32), ranks, ..line });
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::SoloComm;
    use crate::grad::flat;
    use crate::grad::home::Home;
    use crate::grad::layout::ParameterSpec;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[i64]| ParameterSpec { name: name.into(), shape: shape.into() };
        let specs = vec![spec("a", &[70, 50]), spec("b", &[30])];
        Layout::simple(specs, 1 << 20)
    }

    #[test]
    fn shards_have_the_digest_of_the_whole() {
        let layout = layout();
        let mut buffers = flat::zeros(&layout, Home::Host);
        for flat in &mut buffers {
            flat.as_mut_slice().iter_mut().enumerate().for_each(|(i, value)| *value = i as f32 * 0.37);
        }
        let all = |_: usize| buffers.iter().map(|flat| 0..flat.len()).collect();
        let buffer = |bucket: usize| &buffers[bucket];
        for sketched in [false, true] {
            let subject = Subject { step: 4, phase: Phase::Optimizer, prefix: "m/", sketched };
            let whole = replicas(&SoloComm, &layout, &subject, &buffer).unwrap();
            let together = shards(&SoloComm, &layout, &subject, &all, &buffer, &|_| 0).unwrap();
            assert_eq!(whole, together);
            assert_eq!(whole[1].tensor, "m/b");
            assert_eq!(whole[1].ranks, [(0, 0)]);
            let slot = &layout.slots[0];
            let sketch = Sketch::of(&buffers[slot.bucket].as_slice()[slot.range()]);
            assert_eq!(whole[0].sketch, sketched.then_some(sketch));
        }
    }
}
