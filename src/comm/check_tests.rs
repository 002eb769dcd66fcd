//! Worlds of ranks as threads, which exchange through shared memory.

use std::sync::{Barrier, Mutex};

use lockstep_record::Channel;
use proptest::prelude::*;

use super::*;

/// What all ranks put down, and a barrier between putting down and looking.
struct World {
    barrier: Barrier,
    desks: Vec<Mutex<Vec<u8>>>,
}

struct Rank<'a> {
    rank: usize,
    world: &'a World,
}

impl Rank<'_> {
    fn exchange(&self, mine: Vec<u8>) -> Vec<Vec<u8>> {
        *self.world.desks[self.rank].lock().unwrap() = mine;
        self.world.barrier.wait();
        let all = self.world.desks.iter().map(|desk| desk.lock().unwrap().clone()).collect();
        self.world.barrier.wait();
        all
    }
}

impl Peers for Rank<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn all_gather(&self, mine: &[u8]) -> Result<Vec<u8>, CommError> {
        Ok(self.exchange(mine.to_vec()).concat())
    }

    fn all_to_all(&self, mine: &[c_int]) -> Result<Vec<c_int>, CommError> {
        let all = self.exchange(mine.iter().flat_map(|count| count.to_le_bytes()).collect());
        Ok(all.iter().map(|bytes| c_int::from_le_bytes(bytes.as_chunks().0[self.rank])).collect())
    }
}

#[derive(Clone, Debug)]
enum Owned {
    Equal,
    PerRank(Vec<c_int>),
    Pairs(Vec<c_int>, Vec<c_int>),
}

/// Every rank's verdict.
fn verdicts(calls: &[(Call, Owned)]) -> Vec<Option<String>> {
    let desks = calls.iter().map(|_| Mutex::default()).collect();
    let world = World { barrier: Barrier::new(calls.len()), desks };
    std::thread::scope(|scope| {
        let world = &world;
        let start = |(rank, (call, lengths)): (usize, &'_ (Call, Owned))| {
            let (call, lengths) = (*call, lengths.clone());
            scope.spawn(move || {
                let lengths = match &lengths {
                    Owned::Equal => Lengths::Equal,
                    Owned::PerRank(counts) => Lengths::PerRank(counts),
                    Owned::Pairs(send, receive) => Lengths::Pairs { send, receive },
                };
                check(&Rank { rank, world }, &call, 7, 12, lengths).err().map(|error| error.to_string())
            })
        };
        let threads: Vec<_> = calls.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn call(operation: &'static str, elements: usize) -> Call {
    Call { operation, elements, bytes: elements * 4, dtype: "f32", bucket: Some(3), channel: Channel::Data }
}

/// An all-to-all in which rank s sends `counts[s][r]` to rank r, and all expect just that.
fn all_to_all(counts: &[Vec<c_int>]) -> Vec<(Call, Owned)> {
    let ranks = 0..counts.len();
    let rank = |rank: usize| {
        let receive = counts.iter().map(|row| row[rank]).collect();
        let elements = counts[rank].iter().sum::<c_int>() as usize;
        (call("all-to-all", elements), Owned::Pairs(counts[rank].clone(), receive))
    };
    ranks.map(rank).collect()
}

fn all_gather(counts: &[c_int]) -> Vec<(Call, Owned)> {
    let rank = |&count: &c_int| (call("all-gather", count as usize), Owned::PerRank(counts.to_vec()));
    counts.iter().map(rank).collect()
}

fn matrices() -> impl Strategy<Value = Vec<Vec<c_int>>> {
    (1usize..6).prop_flat_map(|size| {
        proptest::collection::vec(proptest::collection::vec(0..100 as c_int, size), size)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_fits_passes(counts in matrices()) {
        prop_assert!(verdicts(&all_to_all(&counts)).iter().all(Option::is_none));
        prop_assert!(verdicts(&all_gather(&counts[0])).iter().all(Option::is_none));
        let reduce = vec![(call("all-reduce", 5), Owned::Equal); counts.len()];
        prop_assert!(verdicts(&reduce).iter().all(Option::is_none));
    }

    /// One rank is wrong about one thing: all ranks fail, with the same words, which name it.
    #[test]
    fn what_does_not_fit_fails_everywhere_alike(
        counts in matrices().prop_filter("needs two ranks", |counts| counts.len() > 1),
        victim: prop::sample::Index, other: prop::sample::Index, what in 0..7,
    ) {
        let (victim, other) = (victim.index(counts.len()), other.index(counts.len()));
        let mut calls = match what {
            0..=3 => all_to_all(&counts),
            4 | 5 => all_gather(&counts[0]),
            _ => vec![(call("all-reduce", 5), Owned::Equal); counts.len()],
        };
        let (call, lengths) = &mut calls[victim];
        let named = match (what, lengths) {
            (0, _) => { call.bucket = Some(4); "bucket 4".to_owned() }
            (1, _) => { call.dtype = "bf16"; "bf16".to_owned() }
            (2, _) => { call.operation = "barrier"; "barrier of bucket 3, step 12".to_owned() }
            (3, Owned::Pairs(send, _)) => { send[other] += 1; format!("rank {victim} sends {}", send[other]) }
            (4, Owned::PerRank(counts)) => { counts[other] += 1; format!("which expects {}", counts[other]) }
            (5, _) => { call.elements += 1; format!("rank {victim} sends {}", call.elements) }
            _ => { call.elements = 6; "(6 f32, number 7)".to_owned() }
        };
        let verdicts = verdicts(&calls);
        let first = verdicts[0].clone().unwrap_or_default();
        prop_assert!(first.contains(&named), "`{}` is not in: {}", named, first);
        prop_assert!(verdicts.iter().all(|verdict| verdict.as_ref() == Some(&first)), "{:?}", verdicts);
    }

    #[test]
    fn a_signature_survives_the_wire(
        bucket in proptest::option::of(0u64..1 << 40), sequence: u64, elements: u64, step: u64,
        equal_lengths: bool,
    ) {
        let (operation, dtype) = ("gather of step reports".into(), "bf16".into());
        let signature = Signature { operation, dtype, bucket, sequence, elements, equal_lengths, step };
        prop_assert_eq!(Signature::decode(&signature.encode()), signature);
    }
}

#[test]
fn the_message_says_who_calls_what() {
    let mut calls = vec![(call("all-to-all", 8), Owned::Equal); 4];
    calls[2].0 = Call { bucket: None, ..call("barrier", 0) };
    let expected = "the ranks call different collectives:\n  ranks 0-1, 3: all-to-all of bucket 3, step 12 (8 f32, \
                    number 7)\n  rank 2: barrier, step 12 (0 f32, number 7)";
    assert!(verdicts(&calls)[0].as_ref().unwrap().contains(expected), "{:?}", verdicts(&calls)[0]);
}
