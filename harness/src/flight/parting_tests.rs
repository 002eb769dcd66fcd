use proptest::prelude::*;

use super::*;

fn line(channel: Channel, sequence: u64, state: FlightState) -> FlightLine {
    FlightLine {
        sequence,
        channel,
        operation: if sequence.is_multiple_of(2) { "all-gather" } else { "all-to-all" }.into(),
        bucket: Some(sequence % 5),
        step: sequence / 10,
        elements: 8,
        bytes: 32,
        dtype: "f32".into(),
        started_us: sequence,
        finished_us: None,
        state,
    }
}

/// A world whose ranks all finished `first..last`.
fn sound(size: u32, first: u64, last: u64) -> Flight {
    let lines: Vec<FlightLine> =
        (first..last).map(|sequence| line(Channel::Data, sequence, FlightState::Done)).collect();
    Flight { world_size: size, ranks: (0..size).map(|rank| (rank, lines.clone())).collect() }
}

#[derive(Clone, Debug)]
enum Fault {
    Missing,
    Running,
    Failed,
    OtherBucket,
    OtherDtype,
    OtherOperation,
}

fn faults() -> impl Strategy<Value = Fault> {
    use Fault::{Failed, Missing, OtherBucket, OtherDtype, OtherOperation, Running};
    prop::sample::select(vec![Missing, Running, Failed, OtherBucket, OtherDtype, OtherOperation])
}

fn spoil(lines: &mut Vec<FlightLine>, index: usize, fault: &Fault) {
    match fault {
        Fault::Missing => lines.truncate(index),
        Fault::Running => lines[index].state = FlightState::Running,
        Fault::Failed => lines[index].state = FlightState::Failed,
        Fault::OtherBucket => lines[index].bucket = Some(77),
        Fault::OtherDtype => lines[index].dtype = "u8".into(),
        Fault::OtherOperation => lines[index].operation = "barrier".into(),
    }
}

proptest! {
    #[test]
    fn ranks_that_finished_the_same_do_not_part(size in 1u32..6, first in 1u64..50, count in 0u64..50) {
        let flight = sound(size, first, first + count);
        prop_assert_eq!(flight.partings(), vec![]);
    }

    /// What ranks forgot at the front of their rings, what one forgot in between, and their lengths do not matter.
    #[test]
    fn what_was_forgotten_is_no_parting(
        size in 2u32..6, forgotten in prop::collection::vec(0usize..20, 6), hole in 20usize..39,
    ) {
        let mut flight = sound(size, 1, 41);
        for (lines, forgotten) in flight.ranks.values_mut().zip(forgotten) {
            lines.drain(..forgotten);
        }
        let lines = flight.ranks.get_mut(&0).unwrap();
        let hole = hole.min(lines.len() - 2);
        lines.remove(hole);
        lines[0].elements += 1;
        prop_assert_eq!(flight.partings(), vec![]);
    }

    /// One fault of one rank is found where it is, on its channel, and the rank is named.
    #[test]
    fn the_first_fault_is_found(
        size in 2u32..6, first in 1u64..9, count in 1u64..40, fault in faults(),
        victim: prop::sample::Index, place: prop::sample::Index,
    ) {
        let mut flight = sound(size, first, first + count);
        let (victim, index) = (victim.index(size as usize) as u32, place.index(count as usize));
        spoil(flight.ranks.get_mut(&victim).unwrap(), index, &fault);
        let partings = flight.partings();
        // Where nothing is left of a rank, there is nothing before that it could be compared at.
        prop_assert_eq!(partings.len(), 1);
        prop_assert_eq!((partings[0].channel, partings[0].sequence), (Channel::Data, first + index as u64));
        let holds = |ranks: &[RankRange]| ranks.iter().any(|&(first, last)| (first..=last).contains(&victim));
        let group = partings[0].groups.iter().find(|(ranks, _)| holds(ranks)).unwrap();
        prop_assert_eq!(&group.0, &vec![(victim, victim)]);
        let ranges = partings[0].groups.iter().flat_map(|(ranks, _)| ranks);
        let mut all: Vec<u32> = ranges.flat_map(|&(first, last)| first..=last).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..size).collect::<Vec<_>>());
    }
}

/// A manifest or a file's name may claim any number of ranks.
#[test]
fn a_world_of_billions_is_told_in_ranges() {
    let mut flight = sound(3, 1, 9);
    flight.ranks.remove(&1);
    flight.world_size = u32::MAX;
    flight.ranks.get_mut(&0).unwrap()[7].state = FlightState::Running;
    let parting = &flight.partings()[0];
    let silent = parting.groups.iter().find(|(_, there)| *there == There::NoFile).unwrap();
    assert_eq!(silent.0, [(1, 1), (3, u32::MAX - 1)]);
    assert!(flight.text().contains("ranks 1, 3-4294967294: left no file"), "{}", flight.text());
}

#[test]
fn the_text_says_who_is_missing_and_what_each_did() {
    let mut flight = sound(4, 1, 413);
    flight.ranks.get_mut(&0).unwrap()[411].state = FlightState::Running;
    flight.ranks.get_mut(&3).unwrap()[411].state = FlightState::Running;
    flight.ranks.get_mut(&1).unwrap().truncate(411);
    flight.ranks.remove(&2);
    assert_eq!(
        flight.text(),
        "control: no collectives\n\
         data: the ranks part at collective 412\n  \
         ranks 0, 3: all-gather of bucket 2 (f32): running\n  \
         rank 1: never came; its last was 411, all-to-all of bucket 1 (f32): done\n  \
         rank 2: left no file: stopped, killed, or its disk was gone\n"
    );
}
