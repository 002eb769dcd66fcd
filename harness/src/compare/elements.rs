//! One tensor of two checkpoints, element by element where its bytes differ: about as fast as it can be read.
//!
//! A few threads share a tensor, each with a window that fits into its core's cache. Bytes that are equal are hashed
//! once for both sides.

use std::num::NonZero;
use std::ops::Range;

use lockstep_record::{BLOCK_ELEMENTS, Digest, TensorDigester, TensorEntry, block_digests};

use super::CompareError;
use super::difference::{Check, Difference, Place};
use super::tensors::{TensorStream, dtype};
use super::values::{Format, Mode, Scalar, Value};

/// Bytes of each run that a thread has in memory at a time. Whole blocks of any dtype fit in.
const WINDOW_BYTES: usize = 256 << 10;
/// Windows that a thread compares before what it found is added to what was found before.
const WINDOWS_A_SHARE: usize = 32;
/// More threads would wait for memory.
const THREADS_MAX: usize = 4;

/// What two tensors are judged by.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// Element by element.
    Each(Mode),
    /// By their Euclidean distance. None where the envelope knows nothing.
    Whole { allowed: Option<f64> },
}

/// One tensor of both checkpoints, of one dtype and shape.
pub struct TensorPair<'a, P: Fn() -> Place + Sync> {
    pub judge: Judge,
    pub place: &'a P,
    /// The golden run's and the candidate's, as everything here that comes in twos.
    pub entries: [&'a TensorEntry; 2],
    pub streams: [TensorStream; 2],
}

/// What was found in a share of a tensor, and the digests of its blocks.
struct Share {
    check: Check,
    distance: Distance,
    blocks: [Vec<Digest>; 2],
}

/// How far apart the elements are that a judge of whole tensors has seen.
#[derive(Default)]
struct Distance {
    square_sum: f64,
    /// Elements whose bits differ.
    differing: u64,
    /// The farthest of them: its place and its distance.
    farthest: Option<(u64, f64)>,
}

impl Distance {
    fn note(&mut self, index: u64, golden: Scalar, candidate: Scalar) {
        let distance = (golden.to_f64() - candidate.to_f64()).abs();
        self.square_sum += distance * distance;
        self.differing += 1;
        self.note_farthest((index, distance));
    }

    fn note_farthest(&mut self, found: (u64, f64)) {
        let is_farther = |farthest: f64| found.1 > farthest || found.1.is_nan() && !farthest.is_nan();
        // A NaN is farther than anything.
        if self.farthest.is_none_or(|(_, farthest)| is_farther(farthest)) {
            self.farthest = Some(found);
        }
    }

    /// Adds what was found in later elements.
    fn absorb(&mut self, later: Self) {
        self.square_sum += later.square_sum;
        self.differing += later.differing;
        if let Some(farthest) = later.farthest {
            self.note_farthest(farthest);
        }
    }

    fn conclude(&self, check: &mut Check, allowed: Option<f64>, place: &impl Fn() -> Place) {
        let Some((element, _)) = self.farthest else { return };
        let Some(allowed) = allowed else {
            let place = place();
            let step = place.step.unwrap_or_default();
            check.note = Some(format!("{} at step {step} is not in the envelope", place.what));
            return;
        };
        check.agree_times(self.differing - 1);
        check.within(allowed, self.square_sum.sqrt(), || Place { element: Some(element), ..place() });
    }
}

impl<P: Fn() -> Place + Sync> TensorPair<'_, P> {
    /// Compares all elements, and both sides with the digests that their manifests list.
    pub fn compare(&self) -> Result<Check, CompareError> {
        let mut check = Check::new("elements");
        let Some((element_bytes, format)) = dtype(&self.entries[0].dtype) else { return Ok(check) };
        let mut digesters = [TensorDigester::default(), TensorDigester::default()];
        let mut distance = Distance::default();
        let mut workers: Vec<Worker<'_, P>> = (0..threads(self.streams[0].remaining()))
            .map(|_| Worker::new(self, element_bytes, format))
            .collect();
        let mut shares = shares(self.streams[0].remaining()).peekable();
        while shares.peek().is_some() {
            for share in side_by_side(&mut workers, &mut shares) {
                let Share { check: found, distance: apart, blocks } = share?;
                check.absorb(found);
                distance.absorb(apart);
                digesters.iter_mut().zip(blocks).for_each(|(digester, blocks)| digester.add(blocks));
            }
        }
        if let Judge::Whole { allowed } = self.judge {
            distance.conclude(&mut check, allowed, self.place);
        }
        for ((side, entry), digester) in ["golden", "candidate"].into_iter().zip(self.entries).zip(digesters)
        {
            let found = digester.finish();
            if found != entry.digest {
                let (listed, found) = (Value::Digest(entry.digest), Value::Digest(found));
                let difference = Difference::new((self.place)(), listed, found);
                check.differ(difference.with_note(format!(
                    "the {side} checkpoint is damaged: its manifest has the first, its files the second"
                )));
            }
        }
        Ok(check)
    }
}

/// As many as there is work for.
fn threads(bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let shares = bytes.div_ceil((WINDOWS_A_SHARE * WINDOW_BYTES) as u64);
    cores.min(THREADS_MAX).min(usize::try_from(shares).unwrap_or(usize::MAX)).max(1)
}

/// The bytes of a tensor in stretches of at most a share.
fn shares(total: u64) -> impl Iterator<Item = Range<u64>> {
    let size = (WINDOWS_A_SHARE * WINDOW_BYTES) as u64;
    (0..total.div_ceil(size)).map(move |index| index * size..(index.saturating_add(1) * size).min(total))
}

/// The next share of each worker, in order; the first one is compared by this thread.
fn side_by_side<P: Fn() -> Place + Sync>(
    workers: &mut [Worker<'_, P>],
    shares: &mut impl Iterator<Item = Range<u64>>,
) -> Vec<Result<Share, CompareError>> {
    let mut work = workers.iter_mut().zip(shares);
    let Some((own, first)) = work.next() else { return Vec::new() };
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        for (worker, share) in work {
            let theirs = share.clone();
            let thread = std::thread::Builder::new().spawn_scoped(scope, move || worker.compare(theirs));
            // Where memory is short this thread does it all.
            others.push(thread.map_err(|_| share));
        }
        let mut found = vec![own.compare(first)];
        for other in others {
            found.push(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(share) => own.compare(share),
            });
        }
        found
    })
}

/// What one thread has.
struct Worker<'a, P> {
    judge: Judge,
    place: &'a P,
    element_bytes: usize,
    format: Option<Format>,
    streams: [TensorStream; 2],
    windows: [Vec<u8>; 2],
}

impl<'a, P: Fn() -> Place> Worker<'a, P> {
    fn new(pair: &TensorPair<'a, P>, element_bytes: usize, format: Option<Format>) -> Self
    where
        P: Sync,
    {
        let (streams, windows) = (pair.streams.clone(), [Vec::new(), Vec::new()]);
        Self { judge: pair.judge, place: pair.place, element_bytes, format, streams, windows }
    }

    fn compare(&mut self, bytes: Range<u64>) -> Result<Share, CompareError> {
        let (check, distance) = (Check::new("elements"), Distance::default());
        let mut share = Share { check, distance, blocks: [Vec::new(), Vec::new()] };
        let block_bytes = BLOCK_ELEMENTS * self.element_bytes;
        self.streams.iter_mut().for_each(|stream| stream.seek(bytes.start));
        let mut at = bytes.start;
        while at < bytes.end {
            let length = (bytes.end - at).min(WINDOW_BYTES as u64) as usize;
            for (stream, window) in self.streams.iter_mut().zip(&mut self.windows) {
                window.resize(length, 0);
                stream.fill(window)?;
            }
            let [golden, candidate] = &self.windows;
            let digests = block_digests(golden, block_bytes);
            if golden == candidate {
                share.check.agree_times((length / self.element_bytes) as u64);
                share.blocks[1].extend(&digests);
            } else {
                self.differing(&mut share, at / self.element_bytes as u64);
                share.blocks[1].extend(block_digests(candidate, block_bytes));
            }
            share.blocks[0].extend(digests);
            at += length as u64;
        }
        Ok(share)
    }

    /// Compares windows that differ somewhere, and start at element `first`.
    fn differing(&self, share: &mut Share, first: u64) {
        match self.element_bytes {
            8 => self.elements::<8>(share, first),
            4 => self.elements::<4>(share, first),
            2 => self.elements::<2>(share, first),
            _ => self.elements::<1>(share, first),
        }
    }

    fn elements<const BYTES: usize>(&self, Share { check, distance, .. }: &mut Share, first: u64) {
        let [golden, candidate] = self.windows.each_ref().map(|window| window.as_chunks::<BYTES>().0);
        for (index, (golden, candidate)) in golden.iter().zip(candidate).enumerate() {
            if golden == candidate {
                check.agree();
                continue;
            }
            let place = || Place { element: Some(first + index as u64), ..(self.place)() };
            match self.format {
                Some(format) => {
                    let (golden, candidate) =
                        (Scalar::from_le(format, golden), Scalar::from_le(format, candidate));
                    match self.judge {
                        Judge::Whole { .. } => distance.note(first + index as u64, golden, candidate),
                        Judge::Each(mode) if check.first.is_some() => {
                            check.scalars_too(mode, golden, candidate)
                        }
                        Judge::Each(mode) => check.scalars(mode, golden, candidate, place),
                    }
                }
                None if check.first.is_some() => check.differ_too(),
                None => {
                    let bytes = |bytes: &[u8]| Value::text(format!("bytes {bytes:02x?}"));
                    check.differ(Difference::new(place(), bytes(golden), bytes(candidate)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_tile_the_tensor(total in 0u64..100_000_000) {
            let mut at = 0;
            for share in shares(total) {
                prop_assert_eq!(share.start, at);
                prop_assert!(share.end > share.start && share.start % WINDOW_BYTES as u64 == 0);
                at = share.end;
            }
            prop_assert_eq!(at, total);
        }
    }

    /// However a tensor is cut into shares, and wherever a NaN is.
    #[test]
    fn distances_of_parts_make_the_distance_of_the_whole() {
        let scalar = |value: f32| Scalar { format: Format::F32, bits: u64::from(value.to_bits()) };
        let apart = [(3, 1.0), (5, 4.0), (8, f32::NAN), (9, 2.0)];
        let note = |values: &[(u64, f32)]| {
            let mut distance = Distance::default();
            values.iter().for_each(|&(index, value)| distance.note(index, scalar(0.0), scalar(value)));
            distance
        };
        let finite = note(&apart[..2]);
        assert_eq!((finite.square_sum, finite.farthest), (17.0, Some((5, 4.0))));
        for cut in 0..=apart.len() {
            let mut joined = note(&apart[..cut]);
            joined.absorb(note(&apart[cut..]));
            assert_eq!((joined.differing, joined.farthest.map(|farthest| farthest.0)), (4, Some(8)));
            let mut check = Check::new("x");
            joined.conclude(&mut check, Some(1e9), &|| Place::run("w"));
            assert_eq!((check.compared, check.differences), (4, 1));
            assert_eq!(check.first.map(|first| first.place.element), Some(Some(8)));
        }
    }

    #[test]
    fn windows_hold_whole_blocks_of_every_dtype() {
        for element_bytes in [1, 2, 4, 8] {
            assert_eq!(WINDOW_BYTES % (BLOCK_ELEMENTS * element_bytes), 0);
        }
    }
}
