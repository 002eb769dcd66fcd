//! How to wait for a message without keeping a core busy: MPI libraries spin, and a core that spins computes nothing.

use std::time::Duration;

/// How eagerly a thread looks whether its messages have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It has nothing else to do: first without a break, for what takes microseconds.
    Eager,
    /// Another thread computes meanwhile: every look takes time from it.
    Patient,
}

/// Looks without a break that an eager thread takes first.
const EAGER_LOOKS: u32 = 64;
/// The first break, of an eager and of a patient thread. Breaks then grow by half each time.
const FIRST: [Duration; 2] = [Duration::from_micros(10), Duration::from_micros(50)];
/// The longest break. A link of 1 Gb/s moves 60 kB meanwhile, far less than a socket's buffer holds.
const LONGEST: [Duration; 2] = [Duration::from_micros(200), Duration::from_micros(500)];

/// The breaks between two looks.
pub struct Patience {
    pace: Pace,
    looks: u32,
    next: Duration,
}

impl Patience {
    pub fn new(pace: Pace) -> Self {
        Self { pace, looks: 0, next: FIRST[pace as usize] }
    }

    /// How long the next break is; zero for none.
    fn next(&mut self) -> Duration {
        self.looks += 1;
        if self.pace == Pace::Eager && self.looks <= EAGER_LOOKS {
            return Duration::ZERO;
        }
        let now = self.next;
        self.next = (now * 3 / 2).min(LONGEST[self.pace as usize]);
        now
    }

    /// Takes the next break. Even the shortest lets another rank run that waits for this core.
    pub fn pause(&mut self) {
        match self.next() {
            Duration::ZERO => std::thread::yield_now(),
            pause => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_grow_to_their_bound() {
        for pace in [Pace::Eager, Pace::Patient] {
            let mut patience = Patience::new(pace);
            let breaks: Vec<Duration> = (0..200).map(|_| patience.next()).collect();
            assert!(breaks.is_sorted());
            assert_eq!(breaks[0] == Duration::ZERO, pace == Pace::Eager);
            assert_eq!(breaks[199], LONGEST[pace as usize]);
        }
    }
}
