//! All ranks on one clock: how much rank 0's clock shows more than this one's.

use std::time::Instant;

use crate::comm::{Comm, CommError, Incoming, Outgoing};

/// Round trips with each rank; the quickest one counts, since its two ways are the most alike.
const ROUND_TRIPS: usize = 16;

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

/// Microseconds to add to times since `origin` to have them on rank 0's clock, since its origin. All ranks call it.
pub fn offset_to_rank_0(comm: &dyn Comm, origin: Instant) -> Result<f64, CommError> {
    let mut mine = 0.0;
    for rank in 1..comm.size() {
        if comm.rank() == rank {
            let mut trips = Vec::new();
            for _ in 0..ROUND_TRIPS {
                trips.push(ask(comm, origin)?);
            }
            mine = offset(&trips);
        } else if comm.rank() == 0 {
            (0..ROUND_TRIPS).try_for_each(|_| answer(comm, rank, origin))?;
        }
    }
    Ok(mine)
}

fn ask(comm: &dyn Comm, origin: Instant) -> Result<RoundTrip, CommError> {
    let asked = now_us(origin);
    let mut there = [0u8; 8];
    comm.exchange(&[Outgoing { to: 0, bytes: &[1] }], &mut [])?;
    comm.exchange(&[], &mut [Incoming { from: 0, bytes: &mut there }])?;
    Ok(RoundTrip { asked, there: f64::from_le_bytes(there), answered: now_us(origin) })
}

fn answer(comm: &dyn Comm, rank: usize, origin: Instant) -> Result<(), CommError> {
    comm.exchange(&[], &mut [Incoming { from: rank, bytes: &mut [0] }])?;
    comm.exchange(&[Outgoing { to: rank, bytes: &now_us(origin).to_le_bytes() }], &mut [])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
