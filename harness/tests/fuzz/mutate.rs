//! Mutations of files: noise on the level of bytes, and changes that leave most of a structure as it was.

use proptest::prelude::*;
use proptest::sample::Index;

/// A mutated file is cut to this length.
const BYTES_MAX: usize = 1 << 18;

/// What stands in the place of a number, a name or a word: limits of types, and what is special somewhere.
const WORDS: [&str; 44] = [
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "0.5",
    "255",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1e15",
    "1e30",
    "1e308",
    "-1e308",
    "1e-320",
    "1e400",
    "NaN",
    "inf",
    "null",
    "true",
    "~",
    "[]",
    "{}",
    "\"\"",
    "[[0,4294967295]]",
    "[[4294967295,0]]",
    "\"0x7ff8000000000000\"",
    "\"0xfff0000000000000\"",
    "\"0x\"",
    "\"\\u0000\"",
    "\"\u{202e}</script>\"",
    "../../x",
    "/etc/passwd",
    "\"F64\"",
    "\"BOOL\"",
    "*a",
    "&a",
];

/// One change. Indices are of what the file has at that moment.
#[derive(Clone, Debug)]
pub enum Mutation {
    ReplaceToken(Index, Index),
    CopyToken(Index, Index),
    DeleteToken(Index),
    DeleteLine(Index),
    DuplicateLine(Index),
    SwapLines(Index, Index),
    /// So many brackets in the place of a token.
    Nest(Index, u16, bool),
    /// A token so many times over.
    Repeat(Index, u16),
    Truncate(Index),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    /// Nothing of the file is left.
    Noise(Vec<u8>),
}

/// A few changes, one after the other.
pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    use Mutation::*;
    let index = any::<Index>;
    let one = prop_oneof![
        12 => (index(), index()).prop_map(|(at, word)| ReplaceToken(at, word)),
        4 => (index(), index()).prop_map(|(from, to)| CopyToken(from, to)),
        2 => index().prop_map(DeleteToken),
        2 => index().prop_map(DeleteLine),
        2 => index().prop_map(DuplicateLine),
        2 => (index(), index()).prop_map(|(a, b)| SwapLines(a, b)),
        1 => (index(), any::<u16>(), any::<bool>()).prop_map(|(at, depth, curly)| Nest(at, depth, curly)),
        1 => (index(), any::<u16>()).prop_map(|(at, times)| Repeat(at, times)),
        1 => index().prop_map(Truncate),
        3 => (index(), any::<u8>()).prop_map(|(at, byte)| Flip(at, byte)),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Insert(at, bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Noise),
    ];
    prop::collection::vec(one, 1..5)
}

/// The file after all changes.
pub fn mutate(seed: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    mutations.iter().fold(seed.to_vec(), |bytes, mutation| {
        let mut bytes = apply(bytes, mutation);
        bytes.truncate(BYTES_MAX);
        bytes
    })
}

fn apply(mut bytes: Vec<u8>, mutation: &Mutation) -> Vec<u8> {
    match mutation {
        Mutation::Noise(noise) => return noise.clone(),
        _ if bytes.is_empty() => return bytes,
        Mutation::ReplaceToken(at, word) => {
            let word = WORDS[word.index(WORDS.len())].as_bytes();
            replace(&mut bytes, at, |_| word.to_vec());
        }
        Mutation::CopyToken(from, to) => {
            let tokens = tokens(&bytes);
            if !tokens.is_empty() {
                let copy = bytes[tokens[from.index(tokens.len())].clone()].to_vec();
                replace(&mut bytes, to, |_| copy);
            }
        }
        Mutation::DeleteToken(at) => replace(&mut bytes, at, |_| Vec::new()),
        Mutation::Nest(at, depth, curly) => {
            let bracket = if *curly { "{\"a\":" } else { "[" };
            replace(&mut bytes, at, |_| bracket.repeat(usize::from(*depth)).into_bytes());
        }
        Mutation::Repeat(at, times) => {
            let times = usize::from(*times);
            replace(&mut bytes, at, |token| token.repeat(times.min(BYTES_MAX / token.len().max(1))));
        }
        Mutation::DeleteLine(at) => lines(&mut bytes, |lines| {
            let _ = lines.remove(at.index(lines.len()));
        }),
        Mutation::DuplicateLine(at) => lines(&mut bytes, |lines| {
            let index = at.index(lines.len());
            lines.insert(index, lines[index]);
        }),
        Mutation::SwapLines(a, b) => lines(&mut bytes, |lines| {
            let places = [a, b].map(|place| place.index(lines.len()));
            lines.swap(places[0], places[1]);
        }),
        Mutation::Truncate(at) => bytes.truncate(at.index(bytes.len())),
        Mutation::Flip(at, byte) => {
            let index = at.index(bytes.len());
            bytes[index] ^= byte;
        }
        Mutation::Insert(at, noise) => {
            let index = at.index(bytes.len());
            bytes.splice(index..index, noise.iter().copied());
        }
    }
    bytes
}

/// Runs of letters and digits, such as numbers and names.
fn tokens(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(byte);
    let mut tokens: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| inside(byte)) {
        match tokens.last_mut() {
            Some(last) if last.end == index => last.end += 1,
            _ => tokens.push(index..index + 1),
        }
    }
    tokens
}

fn replace(bytes: &mut Vec<u8>, at: &Index, by: impl FnOnce(&[u8]) -> Vec<u8>) {
    let tokens = tokens(bytes);
    if !tokens.is_empty() {
        let place = tokens[at.index(tokens.len())].clone();
        let new = by(&bytes[place.clone()]);
        bytes.splice(place, new);
    }
}

fn lines(bytes: &mut Vec<u8>, change: impl FnOnce(&mut Vec<&[u8]>)) {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    change(&mut lines);
    *bytes = lines.concat();
}
