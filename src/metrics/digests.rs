//! Digests of tensors, gathered from all ranks into the lines of `digests.jsonl`.

use std::collections::BTreeMap;
use std::ops::Range;

use lockstep_record::{BLOCK_ELEMENTS, DigestLine, Phase, rank_ranges};

use super::prints::{Fingerprint, decode, encode};
use crate::comm::{Comm, CommError};
use crate::grad::layout::{Layout, ParameterSpec, Slot};

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

/// Lines for tensors of which every rank has a copy, from the blocks of whole buckets: ranks with the same value share a line.
pub fn replicas(
    comm: &dyn Comm,
    layout: &Layout,
    subject: &Subject,
    blocks: &[Vec<Fingerprint>],
) -> Result<Vec<DigestLine>, CommError> {
    // The parameters of a bucket without prints are frozen, and have no such tensor.
    let present: Vec<(&ParameterSpec, &Slot)> = layout
        .parameters
        .iter()
        .zip(&layout.slots)
        .filter(|(_, slot)| !blocks[slot.bucket].is_empty())
        .collect();
    let of: Vec<_> = present.iter().map(|(spec, _)| (*subject, spec.name.as_str())).collect();
    let print =
        |(_, slot): &(&ParameterSpec, &Slot)| Fingerprint::of_blocks(&blocks[slot.bucket][slot.blocks()]);
    let mine: Vec<_> = present.iter().map(print).collect();
    copies(comm, &of, &mine)
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

/// Lines for tensors that the ranks hold together: `owned(rank)` is what a rank has of each bucket, and `blocks` are this
/// rank's.
pub fn shards(
    comm: &dyn Comm,
    layout: &Layout,
    subject: &Subject,
    owned: &dyn Fn(usize) -> Vec<Range<usize>>,
    blocks: &[Vec<Fingerprint>],
) -> Result<Vec<DigestLine>, CommError> {
    let messages = comm.all_gather_bytes("gather of shards", &encode(blocks.iter().flatten()))?;
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
        let print = Fingerprint::of_blocks(&parts.into_values().flatten().collect::<Vec<_>>());
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
    use crate::metrics::block_prints;
    use lockstep_record::Sketch;

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
        let whole: Vec<_> = buffers.iter().map(|flat| 0..flat.len()).collect();
        for sketched in [false, true] {
            let subject = Subject { step: 4, phase: Phase::Optimizer, prefix: "m/", sketched };
            let of_bucket = |(bucket, range)| {
                block_prints(&layout, (bucket, range), &buffers[bucket], 0, sketched).unwrap()
            };
            let blocks: Vec<_> = whole.iter().enumerate().map(of_bucket).collect();
            let lines = replicas(&SoloComm, &layout, &subject, &blocks).unwrap();
            assert_eq!(lines, shards(&SoloComm, &layout, &subject, &|_| whole.clone(), &blocks).unwrap());
            assert_eq!(lines[1].tensor, "m/b");
            assert_eq!(lines[1].ranks, [(0, 0)]);
            let slot = &layout.slots[0];
            let sketch = Sketch::of(&buffers[slot.bucket].as_slice()[slot.range()]);
            assert_eq!(lines[0].sketch, sketched.then_some(sketch));
        }
    }
}
