//! All ranks on one clock: how much rank 0's clock shows more than this one's.

use std::time::Instant;

use crate::comm::{Comm, CommError, Incoming, Outgoing, Region, RegionMut};

/// Round trips with each rank; the quickest one counts, since its two ways are the most alike.
const ROUND_TRIPS: usize = 16;
const OPERATION: &str = "question for the time";

/// One round trip, in microseconds since the local origin: asked and answered here, and what rank 0 read between.
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    asked: f64,
    there: f64,
    answered: f64,
}

/// Rank 0's clock minus this one's (Cristian 1989): off by half the quickest round trip at most.
fn offset(trips: &[RoundTrip]) -> f64 {
    let quickest = trips.iter().min_by(|a, b| (a.answered - a.asked).total_cmp(&(b.answered - b.asked)));
    quickest.map_or(0.0, |trip| trip.there - (trip.asked + trip.answered) / 2.0)
}

fn now_us(origin: Instant) -> f64 {
    origin.elapsed().as_secs_f64() * 1e6
}

/// Microseconds to add to times since `origin` to have them on rank 0's clock, since its origin. Ranks on rank 0's machine
/// read the same clock; the others ask. All ranks call it.
pub fn offset_to_rank_0(comm: &dyn Comm, origin: Instant) -> Result<f64, CommError> {
    let mine = Reading::of(origin);
    let message = [mine.machine.as_bytes(), &mine.monotonic_us.to_le_bytes()].concat();
    let all = comm.all_gather_bytes("gather of clocks", &message)?;
    let mut trips = Vec::new();
    for rank in 1..comm.size() {
        for _ in 0..ROUND_TRIPS {
            trips.extend(round_trip(comm, rank, origin)?);
        }
    }
    Ok(mine.offset_to(&all[0]).unwrap_or_else(|| offset(&trips)))
}

/// What the machine's own clock showed at the origin.
struct Reading {
    /// Differs between machines, and between two boots of one; not between containers of one.
    machine: String,
    monotonic_us: f64,
}

impl Reading {
    fn of(origin: Instant) -> Self {
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // Between two looks at the origin; the quickest of several, since a thread may be held up between them.
        let reading = |_| {
            let (before, clock, after) = (now_us(origin), monotonic_us(), now_us(origin));
            (after - before, clock - (before + after) / 2.0)
        };
        let quickest = (0..ROUND_TRIPS).map(reading).min_by(|a, b| a.0.total_cmp(&b.0));
        Self { machine, monotonic_us: quickest.map_or(0.0, |(_, reading)| reading) }
    }

    /// From this rank's reading to rank 0's, where the clock is the same.
    fn offset_to(&self, rank_0: &[u8]) -> Option<f64> {
        let (machine, monotonic_us) = rank_0.split_last_chunk::<8>()?;
        let same = !self.machine.is_empty() && machine == self.machine.as_bytes();
        same.then(|| self.monotonic_us - f64::from_le_bytes(*monotonic_us))
    }
}

/// The clock that `Instant` reads, since the machine's start.
fn monotonic_us() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in the struct; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Rank `rank` asks rank 0 for the time; the others take part without a message.
fn round_trip(comm: &dyn Comm, rank: usize, origin: Instant) -> Result<Option<RoundTrip>, CommError> {
    let (is_asked, asks) = (comm.rank() == 0, comm.rank() == rank);
    let asked = now_us(origin);
    let (mut question, mut there) = ([0u8; 1], [0u8; 8]);
    let sends = asks.then_some(Outgoing { to: 0, region: Region::Host(&[1]) });
    let recvs = is_asked.then_some(Incoming { from: rank, region: RegionMut::Host(&mut question) });
    comm.exchange(OPERATION, sends.as_slice(), recvs.into_iter().collect::<Vec<_>>().as_mut_slice())?;
    let time = now_us(origin).to_le_bytes();
    let sends = is_asked.then_some(Outgoing { to: rank, region: Region::Host(&time) });
    let recvs = asks.then_some(Incoming { from: 0, region: RegionMut::Host(&mut there) });
    comm.exchange(OPERATION, sends.as_slice(), recvs.into_iter().collect::<Vec<_>>().as_mut_slice())?;
    Ok(asks.then(|| RoundTrip { asked, there: f64::from_le_bytes(there), answered: now_us(origin) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_machine_has_one_clock() {
        let (first, pause) = (Instant::now(), std::time::Duration::from_millis(20));
        let zero = Reading::of(first);
        std::thread::sleep(pause);
        let later = Reading::of(first + pause);
        let message = [zero.machine.as_bytes(), &zero.monotonic_us.to_le_bytes()].concat();
        let offset = later.offset_to(&message).unwrap();
        assert!((offset - 20_000.0).abs() < 2_000.0, "{offset}");
        let other = [b"another machine".as_slice(), &zero.monotonic_us.to_le_bytes()].concat();
        assert_eq!(later.offset_to(&other), None);
    }

    proptest! {
        #[test]
        fn the_error_is_half_the_quickest_round_trip_at_most(
            real in -1e9f64..1e9, delays in prop::collection::vec((1f64..1e4, 1f64..1e4), 1..20),
        ) {
            let trip = |(index, &(out, back)): (usize, &(f64, f64))| {
                let asked = index as f64 * 1e5;
                RoundTrip { asked, there: asked + out + real, answered: asked + out + back }
            };
            let trips: Vec<RoundTrip> = delays.iter().enumerate().map(trip).collect();
            let quickest = delays.iter().map(|(out, back)| out + back).fold(f64::INFINITY, f64::min);
            prop_assert!((offset(&trips) - real).abs() <= quickest / 2.0 + 1e-3);
        }
    }
}
