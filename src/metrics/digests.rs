//! Digests of tensors, gathered from all ranks into the lines of `digests.jsonl`.

use std::collections::BTreeMap;
use std::ops::Range;

use lockstep_record::{
    BLOCK_BYTES, Digest, DigestLine, Phase, Real, block_digests, rank_ranges, tensor_digest,
};

use crate::comm::{Comm, CommError};
use crate::grad::flat::{Flat, bytes};
use crate::grad::layout::Layout;
use crate::grad::norm::tensor_square_sums;

/// A tensor's digest and its norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint {
    digest: Digest,
    /// Bits of the norm, so that fingerprints can be compared.
    norm: u64,
}

/// Bytes of a digest and a double on the wire.
const ENTRY: usize = 24;

impl Fingerprint {
    pub fn of(elements: &[f32]) -> Self {
        let blocks = block_digests(bytes(elements), BLOCK_BYTES);
        Self::from_blocks(blocks, &tensor_square_sums(elements))
    }

    /// Of a single number: its bytes, and its size as the norm.
    fn of_number(number: f64) -> Self {
        let blocks = block_digests(&number.to_le_bytes(), BLOCK_BYTES);
        Self { digest: tensor_digest(blocks), norm: number.abs().to_bits() }
    }

    fn from_blocks(blocks: Vec<Digest>, square_sums: &[f64]) -> Self {
        let square_sum = square_sums.iter().fold(0.0, |sum, square_sum| sum + square_sum);
        Self { digest: tensor_digest(blocks), norm: square_sum.sqrt().to_bits() }
    }

    fn line(&self, step: u64, phase: Phase, tensor: String) -> DigestLine {
        let norm = Real(f64::from_bits(self.norm));
        DigestLine {
            step,
            phase,
            tensor,
            micro_batch: None,
            digest: self.digest,
            norm,
            ranks: vec![],
            sharded: false,
        }
    }
}

/// The parameters that lie in buffers: where a bucket's buffer is empty, its parameters are frozen and have no such
/// tensor.
fn present<'b>(layout: &Layout, buffer: &dyn Fn(usize) -> &'b Flat) -> Vec<usize> {
    (0..layout.parameters.len()).filter(|&index| !buffer(layout.slots[index].bucket).is_empty()).collect()
}

/// Fingerprints of parameters in buffers that this rank holds whole.
fn fingerprints<'b>(
    layout: &Layout,
    buffer: &dyn Fn(usize) -> &'b Flat,
    parameters: &[usize],
) -> Vec<Fingerprint> {
    let slots = parameters.iter().map(|&parameter| &layout.slots[parameter]);
    slots.map(|slot| Fingerprint::of(&buffer(slot.bucket).as_slice()[slot.range()])).collect()
}

fn encode(entries: impl IntoIterator<Item = (Digest, u64)>) -> Vec<u8> {
    entries
        .into_iter()
        .flat_map(|(digest, bits)| [&digest.0.to_le_bytes()[..], &bits.to_le_bytes()].concat())
        .collect()
}

fn decode(message: &[u8]) -> impl Iterator<Item = (Digest, u64)> {
    message.as_chunks::<ENTRY>().0.iter().map(|entry| {
        let (digest, bits) = entry.split_at(16);
        let digest = digest.try_into().map(u128::from_le_bytes).unwrap_or_default();
        (Digest(digest), bits.try_into().map(u64::from_le_bytes).unwrap_or_default())
    })
}

/// Lines for tensors of which every rank has a copy: ranks with the same value share a line.
pub fn replicas<'b>(
    comm: &dyn Comm,
    layout: &Layout,
    (step, phase): (u64, Phase),
    prefix: &str,
    buffer: &dyn Fn(usize) -> &'b Flat,
) -> Result<Vec<DigestLine>, CommError> {
    let parameters = present(layout, buffer);
    let name = |parameter: &usize| (phase, format!("{prefix}{}", layout.parameters[*parameter].name));
    let names: Vec<_> = parameters.iter().map(name).collect();
    copies(comm, step, &names, &fingerprints(layout, buffer, &parameters))
}

/// Lines for numbers that every rank has computed for itself.
pub fn numbers(
    comm: &dyn Comm,
    step: u64,
    numbers: &[(Phase, &str, f64)],
) -> Result<Vec<DigestLine>, CommError> {
    let names: Vec<_> = numbers.iter().map(|&(phase, name, _)| (phase, name.to_owned())).collect();
    let mine: Vec<_> = numbers.iter().map(|&(_, _, number)| Fingerprint::of_number(number)).collect();
    copies(comm, step, &names, &mine)
}

/// Lines for what every rank has, `mine` on this one: ranks with the same value share a line.
fn copies(
    comm: &dyn Comm,
    step: u64,
    names: &[(Phase, String)],
    mine: &[Fingerprint],
) -> Result<Vec<DigestLine>, CommError> {
    let messages = comm.all_gather_bytes(&encode(mine.iter().map(|print| (print.digest, print.norm))))?;
    let ranks: Vec<Vec<_>> = messages.iter().map(|message| decode(message).collect()).collect();
    let mut lines = Vec::new();
    for (index, (phase, name)) in names.iter().enumerate() {
        let mut holders: BTreeMap<Fingerprint, Vec<u32>> = BTreeMap::new();
        for (rank, entries) in ranks.iter().enumerate() {
            if let Some(&(digest, norm)) = entries.get(index) {
                holders.entry(Fingerprint { digest, norm }).or_default().push(rank as u32);
            }
        }
        // The line of rank 0 comes first.
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort_by_key(|(_, ranks)| ranks[0]);
        for (print, ranks) in holders {
            let line = print.line(step, *phase, name.clone());
            lines.push(DigestLine { ranks: rank_ranges(ranks), ..line });
        }
    }
    Ok(lines)
}

/// Lines for tensors that the ranks hold together: `owned(rank)` is what a rank has of each bucket, and
/// `elements(bucket, range)` reads from what this rank has.
pub fn shards(
    comm: &dyn Comm,
    layout: &Layout,
    (step, phase): (u64, Phase),
    prefix: &str,
    owned: &dyn Fn(usize) -> Vec<Range<usize>>,
    elements: &dyn Fn(usize, Range<usize>) -> Vec<f32>,
) -> Result<Vec<DigestLine>, CommError> {
    let mut mine = Vec::new();
    for part in layout.parts(&owned(comm.rank())) {
        let values = elements(part.bucket, part.range);
        let squares = tensor_square_sums(&values);
        mine.extend(
            block_digests(bytes(&values), BLOCK_BYTES).into_iter().zip(squares.into_iter().map(f64::to_bits)),
        );
    }
    let messages = comm.all_gather_bytes(&encode(mine))?;
    // By parameter: the parts in order of offset, each with its blocks.
    let mut parts = vec![BTreeMap::new(); layout.parameters.len()];
    for (rank, message) in messages.iter().enumerate() {
        let mut blocks = decode(message);
        for part in layout.parts(&owned(rank)) {
            let count = part.range.len().div_ceil(lockstep_record::BLOCK_ELEMENTS);
            parts[part.parameter].insert(part.offset, blocks.by_ref().take(count).collect::<Vec<_>>());
        }
    }
    let everyone = rank_ranges(0..comm.size() as u32);
    let line = |(parameter, parts): (usize, BTreeMap<usize, Vec<(Digest, u64)>>)| {
        let (blocks, squares): (Vec<_>, Vec<_>) = parts.into_values().flatten().unzip();
        let squares: Vec<f64> = squares.into_iter().map(f64::from_bits).collect();
        let print = Fingerprint::from_blocks(blocks, &squares);
        let line = print.line(step, phase, format!("{prefix}{}", layout.parameters[parameter].name));
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
    (step, phase): (u64, Phase),
    names: &[&str],
    mine: &[Vec<Fingerprint>],
    first: &dyn Fn(usize) -> usize,
) -> Result<Vec<DigestLine>, CommError> {
    let messages =
        comm.all_gather_bytes(&encode(mine.iter().flatten().map(|print| (print.digest, print.norm))))?;
    let mut lines = Vec::new();
    for (rank, message) in messages.iter().enumerate() {
        for (index, (digest, norm)) in decode(message).enumerate() {
            let (micro_batch, name) = (first(rank) + index / names.len(), names[index % names.len()]);
            let line = Fingerprint { digest, norm }.line(step, phase, name.into());
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
    use crate::grad::layout::ParameterSpec;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[i64]| ParameterSpec { name: name.into(), shape: shape.into() };
        let specs = vec![spec("a", &[70, 50]), spec("b", &[30])];
        Layout::simple(specs, 1 << 20)
    }

    #[test]
    fn shards_have_the_digest_of_the_whole() {
        let layout = layout();
        let mut buffers = flat::zeros(&layout);
        for flat in &mut buffers {
            flat.as_mut_slice().iter_mut().enumerate().for_each(|(i, value)| *value = i as f32 * 0.37);
        }
        let at = (4, Phase::Optimizer);
        let whole = replicas(&SoloComm, &layout, at, "m/", &|bucket| &buffers[bucket]).unwrap();
        let all = |_: usize| buffers.iter().map(|flat| 0..flat.len()).collect();
        let elements = |bucket: usize, range: Range<usize>| buffers[bucket].as_slice()[range].to_vec();
        let together = shards(&SoloComm, &layout, at, "m/", &all, &elements).unwrap();
        assert_eq!(whole, together);
        assert_eq!(whole[1].tensor, "m/b");
        assert_eq!(whole[1].ranks, [(0, 0)]);
    }
}
