//! `parallel.check_collectives`: before data move, the ranks compare what each is about to call. Pure; the messages
//! travel by the three small exchanges of [`Peers`].

use std::collections::BTreeMap;
use std::ffi::c_int;

use super::CommError;
use super::call::{Call, Title};
use super::doing::ranks_text;

/// What must fit together in a collective's lengths, in elements.
#[derive(Clone, Copy, Debug)]
pub enum Lengths<'a> {
    /// All ranks send the same number.
    Equal,
    /// Each rank r sends `counts[r]`.
    PerRank(&'a [c_int]),
    /// This rank sends `send[r]` to each rank r, and expects `receive[r]` from it.
    Pairs { send: &'a [c_int], receive: &'a [c_int] },
}

/// The exchanges that a check needs; all ranks take part in each.
pub trait Peers {
    fn rank(&self) -> usize;
    /// Everybody's bytes, of equal length, in rank order.
    fn all_gather(&self, mine: &[u8]) -> Result<Vec<u8>, CommError>;
    /// `mine[r]` to each rank r; returns what each rank had for this one.
    fn all_to_all(&self, mine: &[c_int]) -> Result<Vec<c_int>, CommError>;
}

/// Fails on all ranks alike, with who calls what, unless all take part in the same collective with lengths that fit.
pub fn check(
    peers: &dyn Peers,
    call: &Call,
    sequence: u64,
    step: u64,
    lengths: Lengths,
) -> Result<(), CommError> {
    let equal_lengths = matches!(lengths, Lengths::Equal);
    let mine = Signature { equal_lengths, ..Signature::of(call, sequence, step) };
    let all = peers.all_gather(&mine.encode())?;
    let all: Vec<Signature> = all.as_chunks().0.iter().map(Signature::decode).collect();
    let mismatch = |message| CommError::Mismatch { message };
    if let Some(message) = different_calls(&all) {
        return Err(mismatch(message));
    }
    let (sent, expected) = match lengths {
        Lengths::Equal => return Ok(()),
        Lengths::PerRank(counts) => {
            (all.iter().map(|signature| signature.elements as c_int).collect(), counts)
        }
        Lengths::Pairs { send, receive } => (peers.all_to_all(send)?, receive),
    };
    // Only the receiver sees that the two differ, and all must know.
    let complaint = complaint(peers.rank(), &sent, expected).unwrap_or([NO_COMPLAINT; 4]);
    let complaints = peers.all_gather(complaint.map(c_int::to_le_bytes).as_flattened())?;
    match different_lengths(&mine, &complaints) {
        Some(message) => Err(mismatch(message)),
        None => Ok(()),
    }
}

/// A call on as many elements by all ranks, as [`compare`] takes it.
pub fn signature(call: &Call, sequence: u64, step: u64) -> [u8; SIGNATURE_BYTES] {
    Signature::of(call, sequence, step).encode()
}

/// Fails on all ranks alike, with who calls what, unless all signatures are of the same call.
pub fn compare(signatures: &[[u8; SIGNATURE_BYTES]]) -> Result<(), CommError> {
    if signatures.iter().all(|signature| *signature == signatures[0]) {
        return Ok(());
    }
    let all: Vec<Signature> = signatures.iter().map(Signature::decode).collect();
    different_calls(&all).map_or(Ok(()), |message| Err(CommError::Mismatch { message }))
}

const NAME_BYTES: usize = 24;
const DTYPE_BYTES: usize = 8;
pub const SIGNATURE_BYTES: usize = NAME_BYTES + DTYPE_BYTES + 5 * 8;
const NO_BUCKET: u64 = u64::MAX;

/// A call as the ranks compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    operation: String,
    dtype: String,
    bucket: Option<u64>,
    sequence: u64,
    elements: u64,
    /// Whether `elements` must be the same on all ranks.
    equal_lengths: bool,
    /// To name it: the ranks' training threads need not be in the same step.
    step: u64,
}

impl Signature {
    fn of(call: &Call, sequence: u64, step: u64) -> Self {
        Self {
            operation: call.operation.into(),
            dtype: call.dtype.into(),
            bucket: call.bucket.map(|bucket| bucket as u64),
            sequence,
            elements: call.elements as u64,
            equal_lengths: true,
            step,
        }
    }

    fn encode(&self) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        let (name, rest) = bytes.split_at_mut(NAME_BYTES);
        let (dtype, numbers) = rest.split_at_mut(DTYPE_BYTES);
        let copy = |to: &mut [u8], text: &str| {
            let length = text.len().min(to.len());
            to[..length].copy_from_slice(&text.as_bytes()[..length]);
        };
        copy(name, &self.operation);
        copy(dtype, &self.dtype);
        let bucket = self.bucket.unwrap_or(NO_BUCKET);
        let values = [bucket, self.sequence, self.elements, u64::from(self.equal_lengths), self.step];
        numbers.copy_from_slice(values.map(u64::to_le_bytes).as_flattened());
        bytes
    }

    fn decode(bytes: &[u8; SIGNATURE_BYTES]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        let (name, rest) = bytes.split_at(NAME_BYTES);
        let (dtype, numbers) = rest.split_at(DTYPE_BYTES);
        let number =
            |index: usize| numbers.as_chunks().0.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self {
            operation: text(name),
            dtype: text(dtype),
            bucket: Some(number(0)).filter(|&bucket| bucket != NO_BUCKET),
            sequence: number(1),
            elements: number(2),
            equal_lengths: number(3) == 1,
            step: number(4),
        }
    }

    fn title(&self) -> String {
        Title { operation: &self.operation, bucket: self.bucket, step: self.step }.to_string()
    }
}

/// Who calls what, if not all call the same.
fn different_calls(all: &[Signature]) -> Option<String> {
    let mut groups = BTreeMap::<_, (Vec<u32>, &Signature)>::new();
    for (rank, signature) in all.iter().enumerate() {
        let Signature { operation, dtype, bucket, sequence, elements, equal_lengths, .. } = signature;
        let length = equal_lengths.then_some(elements);
        let key = (operation, dtype, bucket, sequence, length);
        groups.entry(key).or_insert_with(|| (Vec::new(), signature)).0.push(rank as u32);
    }
    if groups.len() < 2 {
        return None;
    }
    let line = |(ranks, signature): &(Vec<u32>, &Signature)| {
        let Signature { dtype, sequence, elements, equal_lengths, .. } = signature;
        let length = if *equal_lengths { format!("{elements} ") } else { String::new() };
        format!("\n  {}: {} ({length}{dtype}, number {sequence})", ranks_text(ranks), signature.title())
    };
    let mut lines: Vec<_> = groups.into_values().collect();
    lines.sort_by_key(|(ranks, _)| ranks[0]);
    Some(format!("the ranks call different collectives:{}", lines.iter().map(line).collect::<String>()))
}

const NO_COMPLAINT: c_int = -1;

/// The first rank whose length is not what this one expects: receiver, sender, sent, expected.
fn complaint(rank: usize, sent: &[c_int], expected: &[c_int]) -> Option<[c_int; 4]> {
    let wrong = sent.iter().zip(expected).position(|(sent, expected)| sent != expected)?;
    Some([rank as c_int, wrong as c_int, sent[wrong], expected[wrong]])
}

/// The complaints of all ranks in words, if there are any.
fn different_lengths(call: &Signature, complaints: &[u8]) -> Option<String> {
    const LINES_MAX: usize = 8;
    let numbers: Vec<c_int> =
        complaints.as_chunks().0.iter().map(|&bytes| c_int::from_le_bytes(bytes)).collect();
    let complaints: Vec<&[c_int; 4]> =
        numbers.as_chunks::<4>().0.iter().filter(|[receiver, ..]| *receiver != NO_COMPLAINT).collect();
    let line = |[receiver, sender, sent, expected]: &&[c_int; 4]| {
        format!("\n  rank {sender} sends {sent} {} to rank {receiver}, which expects {expected}", call.dtype)
    };
    let lines: String = complaints.iter().take(LINES_MAX).map(line).collect();
    (!complaints.is_empty()).then(|| format!("the lengths of {} do not fit:{lines}", call.title()))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
