//! Two tensors element by element, in constant memory: which elements differ, and the first pair of values.

use lockstep_record::{BLOCK_ELEMENTS, Digest, block_digests, tensor_digest};

use crate::compare::{CompareError, Scalar, TensorStream, Value, dtype};

/// Elements that are in memory at a time, of each tensor: whole blocks, so that digests can be made on the way.
const WINDOW_ELEMENTS: usize = 256 * BLOCK_ELEMENTS;

/// Where two tensors differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Elements {
    pub first: u64,
    pub last: u64,
    /// How many from the first to the last.
    pub differing: u64,
    /// Values of the first.
    pub golden: Value,
    pub candidate: Value,
}

/// What reading two tensors found.
pub struct Reading {
    pub elements: Option<Elements>,
    /// Digests of what was read, the golden tensor's and the candidate's.
    pub digests: [Digest; 2],
}

/// Reads two tensors of one dtype and length side by side.
pub fn compare_streams(name: &str, mut streams: [TensorStream; 2]) -> Result<Reading, CompareError> {
    let size = dtype(name).map_or(1, |(size, _)| size);
    let mut found = Search { name, size, elements: None };
    let mut buffers = [Vec::new(), Vec::new()];
    let mut blocks = [Vec::new(), Vec::new()];
    let mut element = 0;
    while streams[0].remaining() > 0 {
        let bytes = streams[0].remaining().min((WINDOW_ELEMENTS * size) as u64) as usize;
        for ((stream, buffer), blocks) in streams.iter_mut().zip(&mut buffers).zip(&mut blocks) {
            buffer.resize(bytes, 0u8);
            stream.fill(buffer)?;
            blocks.extend(block_digests(buffer, BLOCK_ELEMENTS * size));
        }
        found.window(element, &buffers[0], &buffers[1]);
        element += (bytes / size) as u64;
    }
    Ok(Reading { elements: found.elements, digests: blocks.map(tensor_digest) })
}

struct Search<'a> {
    name: &'a str,
    size: usize,
    elements: Option<Elements>,
}

impl Search<'_> {
    /// A window whose first element is number `first`.
    fn window(&mut self, first: u64, golden: &[u8], candidate: &[u8]) {
        if golden == candidate {
            return;
        }
        let pairs = golden.chunks_exact(self.size).zip(candidate.chunks_exact(self.size));
        for (index, (left, right)) in (first..).zip(pairs) {
            if left == right {
                continue;
            }
            match &mut self.elements {
                Some(elements) => {
                    elements.last = index;
                    elements.differing += 1;
                }
                None => {
                    let (golden, candidate) = (value(self.name, left), value(self.name, right));
                    self.elements =
                        Some(Elements { first: index, last: index, differing: 1, golden, candidate });
                }
            }
        }
    }
}

/// One element of a tensor.
fn value(name: &str, bytes: &[u8]) -> Value {
    match dtype(name) {
        Some((_, Some(format))) => Value::Scalar(Scalar::from_le(format, bytes)),
        _ => Value::text(format!("bytes {bytes:02x?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(golden: &[f32], candidate: &[f32], window: usize) -> Option<Elements> {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut search = Search { name: "F32", size: 4, elements: None };
        for (index, (left, right)) in golden.chunks(window).zip(candidate.chunks(window)).enumerate() {
            search.window((index * window) as u64, &bytes(left), &bytes(right));
        }
        search.elements
    }

    proptest! {
        #[test]
        fn the_range_holds_every_difference_and_ends_with_one(
            values in prop::collection::vec(any::<f32>(), 1..200),
            changed in prop::collection::btree_set(0usize..200, 0..9), window in 1usize..64,
        ) {
            let changed: Vec<usize> = changed.into_iter().filter(|&index| index < values.len()).collect();
            let mut other = values.clone();
            changed.iter().for_each(|&index| other[index] = f32::from_bits(other[index].to_bits() ^ 1));
            let found = search(&values, &other, window);
            let range = found.as_ref().map(|found| (found.first as usize, found.last as usize, found.differing as usize));
            let expected = changed.first().map(|&first| (first, changed[changed.len() - 1], changed.len()));
            prop_assert_eq!(range, expected);
        }
    }
}
