//! Digests of tensors that come out the same however the tensor was sharded.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use twox_hash::XxHash3_128;

/// Elements in one block. Shards, norms and digests are all made of whole blocks of this many elements,
/// counted from the start of each tensor.
pub const BLOCK_ELEMENTS: usize = 1024;

/// Bytes in one block of fp32 elements.
pub const BLOCK_BYTES: usize = BLOCK_ELEMENTS * 4;

/// A 128-bit hash, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub u128);

impl std::fmt::Display for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

impl std::str::FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("`{text}` is not a digest of 32 hexadecimal digits"));
        }
        u128::from_str_radix(text, 16).map(Digest).map_err(|e| e.to_string())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// XXH3-128 (seed 0) of each block of `bytes`: `block_bytes` each, the last one shorter if it must be.
/// `bytes` are the tensor's elements in row-major order, little endian, without any padding.
pub fn block_digests(bytes: &[u8], block_bytes: usize) -> Vec<Digest> {
    bytes.chunks(block_bytes).map(block_digest).collect()
}

/// XXH3-128 (seed 0) of one block.
pub fn block_digest(block: &[u8]) -> Digest {
    Digest(XxHash3_128::oneshot(block))
}

/// The digest of a tensor from the digests of its blocks in order: XXH3-128 (seed 0) of their concatenation,
/// each as 16 little-endian bytes. So ranks that hold different blocks of one tensor can still name its
/// digest, and it does not depend on how many ranks there are.
pub fn tensor_digest(blocks: impl IntoIterator<Item = Digest>) -> Digest {
    let mut digester = TensorDigester::default();
    digester.add(blocks);
    digester.finish()
}

/// [`tensor_digest`] of blocks that come little by little.
#[derive(Clone, Default)]
pub struct TensorDigester(XxHash3_128);

impl TensorDigester {
    /// Adds the digests of the next blocks.
    pub fn add(&mut self, blocks: impl IntoIterator<Item = Digest>) {
        for block in blocks {
            self.0.write(&block.0.to_le_bytes());
        }
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.finish_128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tensor_has_one_digest_however_it_is_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..9000), cut in 0usize..10,
        ) {
            let whole = tensor_digest(block_digests(&bytes, 1000));
            let (left, right) = bytes.split_at((cut * 1000).min(bytes.len()));
            let parts = block_digests(left, 1000).into_iter().chain(block_digests(right, 1000));
            prop_assert_eq!(tensor_digest(parts), whole);
        }

        #[test]
        fn text_round_trip(value: u128) {
            prop_assert_eq!(Digest(value).to_string().parse::<Digest>().unwrap(), Digest(value));
        }
    }

    #[test]
    fn one_flipped_bit_changes_the_digest() {
        let mut bytes = vec![0u8; 5000];
        let before = tensor_digest(block_digests(&bytes, BLOCK_BYTES));
        bytes[4999] ^= 1;
        assert_ne!(tensor_digest(block_digests(&bytes, BLOCK_BYTES)), before);
    }

    /// Pinned so that a Python writer of the record can be checked against the same numbers:
    /// `xxhash.xxh3_128(xxhash.xxh3_128(b"lockstep").intdigest().to_bytes(16, "little")).hexdigest()`.
    #[test]
    fn the_definition_is_pinned() {
        let expected = Digest(XxHash3_128::oneshot(&XxHash3_128::oneshot(b"lockstep").to_le_bytes()));
        assert_eq!(tensor_digest(block_digests(b"lockstep", BLOCK_BYTES)), expected);
    }

    #[test]
    fn malformed_digests_are_refused() {
        for text in ["", "12", "+0000000000000000000000000000000", "zz000000000000000000000000000000"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
