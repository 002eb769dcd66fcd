//! Whether the hosts agree on the time.

use super::or_ok;
use crate::doctor::catalogue::{CLOCK_FREE, CLOCK_OFFSET};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, distinct, each, hosts};

/// Time stamps of logs that are further apart mislead; file systems and credentials suffer later.
const OFFSET_MAX_S: f64 = 1.0;

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let offset = each(&CLOCK_OFFSET, all, |facts| {
        let (size, word) =
            (facts.clock.ahead_s.abs(), if facts.clock.ahead_s > 0.0 { "ahead of" } else { "behind" });
        (size > OFFSET_MAX_S).then(|| format!("the clock is {size:.1} s {word} rank 0's"))
    });
    let free = each(&CLOCK_FREE, all, |facts| {
        (facts.clock.is_synchronised == Some(false))
            .then(|| "the kernel's clock is not synchronised".to_owned())
    });
    or_ok([offset, free].concat(), || {
        let largest = all.iter().map(|facts| facts.clock.ahead_s.abs()).fold(0.0, f64::max);
        let synchronised = distinct(all, |facts| match facts.clock.is_synchronised {
            Some(true) => "synchronised".into(),
            _ => "unknown whether synchronised".into(),
        });
        let apart = match hosts(all).len() {
            1 => String::new(),
            _ => format!(", hosts {:.1} ms apart", largest * 1e3),
        };
        Finding::ok("clock", synchronised + &apart)
    })
}
