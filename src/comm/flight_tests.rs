use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn call(channel: Channel) -> Call {
    Call { operation: "all-gather", elements: 8, bytes: 32, dtype: "f32", bucket: Some(1), channel }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Start(Channel),
    Finish(Channel, FlightState),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let channel = prop_oneof![Just(Channel::Control), Just(Channel::Data)];
    let state = prop_oneof![3 => Just(FlightState::Done), 1 => Just(FlightState::Failed)];
    let event = prop_oneof![
        channel.clone().prop_map(Event::Start),
        (channel, state).prop_map(|(channel, state)| Event::Finish(channel, state)),
    ];
    // Rounds repeat the events, so that the ring overflows often.
    (proptest::collection::vec(event, 1..40), 1usize..120).prop_map(|(events, rounds)| events.repeat(rounds))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the plainest model: a list of everything that was ever started.
    #[test]
    fn the_newest_are_kept_and_what_runs_is_never_lost(events in events()) {
        let mut recorder = FlightRecorder::default();
        let mut all: Vec<FlightLine> = Vec::new();
        let mut open: [Option<(Ticket, usize)>; 2] = [None; 2];
        let mut counts = [0u64; 2];
        for (at, event) in events.iter().enumerate() {
            let now = at as u64;
            match *event {
                Event::Start(channel) if open[channel as usize].is_none() => {
                    counts[channel as usize] += 1;
                    open[channel as usize] = Some((recorder.start(call(channel), 3, now), all.len()));
                    all.push(FlightLine {
                        sequence: counts[channel as usize], channel, operation: "all-gather".into(), bucket: Some(1),
                        step: 3, elements: 8, bytes: 32, dtype: "f32".into(), started_us: now, finished_us: None,
                        state: FlightState::Running,
                    });
                }
                Event::Finish(channel, state) => {
                    if let Some((ticket, index)) = open[channel as usize].take() {
                        recorder.finish(ticket, state, now);
                        (all[index].finished_us, all[index].state) = (Some(now), state);
                    }
                }
                Event::Start(_) => {}
            }
        }
        let newest = all.len().saturating_sub(FLIGHT_LINES_MAX);
        let mut expected: Vec<FlightLine> =
            all[..newest].iter().filter(|line| line.state == FlightState::Running).cloned().collect();
        let cut = newest + expected.len();
        expected.extend_from_slice(&all[cut..]);
        prop_assert_eq!(recorder.lines(), expected);
        let waits = recorder.doing(3, 1 << 40).waits;
        prop_assert_eq!(waits.len(), open.iter().flatten().count());
        prop_assert!(waits.is_sorted_by(|a, b| a.seconds >= b.seconds));
    }
}

#[test]
fn an_answer_says_what_ended_last_and_how_long_ago() {
    let mut recorder = FlightRecorder::default();
    assert_eq!(recorder.doing(0, 5), Doing { step: 0, waits: vec![], last: None });
    let ticket = recorder.start(call(Channel::Data), 2, 1_000_000);
    assert!((recorder.doing(2, 4_000_000).waits[0].seconds - 3.0).abs() < 1e-9);
    recorder.finish(ticket, FlightState::Done, 5_000_000);
    let doing = recorder.doing(2, 7_500_000);
    assert!(doing.waits.is_empty());
    assert!((doing.last.unwrap().seconds - 2.5).abs() < 1e-9);
}

#[test]
fn files_are_written_whole_and_an_earlier_executions_are_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    let mut recorder = FlightRecorder::default();
    recorder.start(call(Channel::Control), 1, 7);
    move_aside(&run).unwrap();
    for _ in 0..2 {
        write(&run, 3, &recorder.lines()).unwrap();
        let lines: Vec<FlightLine> =
            lockstep_record::read_lines(&run.rank_flight(3)).unwrap().map(Result::unwrap).collect();
        assert_eq!(lines, recorder.lines());
        move_aside(&run).unwrap();
        assert!(!run.flight().exists());
    }
    assert!(run.earlier_flight().join("rank-00003.jsonl").exists());
}

/// Recording must cost nothing beside a collective; the bound leaves room for a busy machine.
#[test]
fn recording_is_cheap() {
    let mut recorder = FlightRecorder::default();
    let (rounds, start) = (200_000u32, Instant::now());
    for now in 0..u64::from(rounds) {
        let ticket = recorder.start(call(Channel::Data), 1, now);
        recorder.finish(ticket, FlightState::Done, now + 1);
    }
    let each = start.elapsed() / rounds;
    println!("{} ns a collective", each.as_nanos());
    assert!(each.as_micros() < 5, "{each:?}");
}
