//! Faults on demand: `NCCL_DOUBLE_FAULT=KIND@RANK:NUMBER`, so that whoever uses the library can be seen to cope.

use std::time::Duration;

/// What goes wrong. Operations are counted from 1 in each communicator; a group counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `lost@1:20`: rank 1 is gone from its 20th operation on, and the others' connections to it break.
    Lost(u64),
    /// `silent@1:20`: rank 1 does nothing any more from its 20th operation on, and nobody is told.
    Silent(u64),
    /// `error@1:20`: rank 1's network fails in its 20th operation.
    Error(u64),
    /// `wrong@1:20`: rank 1 receives one bit wrongly in its 20th operation.
    Wrong(u64),
    /// `slow@1:5`: each operation of rank 1 takes 5 ms longer.
    Slow(Duration),
}

impl Fault {
    /// The fault of this rank, if the text is one. An unknown text is an error: a fault that is not injected would pass a
    /// test.
    pub fn parse(text: &str, rank: usize) -> Result<Option<Self>, String> {
        let wrong = || format!("NCCL_DOUBLE_FAULT={text} is not KIND@RANK:NUMBER, such as lost@1:20");
        let (kind, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (of_rank, number) = rest.split_once(':').ok_or_else(wrong)?;
        let of_rank: usize = of_rank.parse().map_err(|_| wrong())?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let fault = match kind {
            "lost" => Self::Lost(number),
            "silent" => Self::Silent(number),
            "error" => Self::Error(number),
            "wrong" => Self::Wrong(number),
            "slow" => Self::Slow(Duration::from_millis(number)),
            _ => return Err(wrong()),
        };
        Ok((of_rank == rank).then_some(fault))
    }

    pub fn of_environment(rank: usize) -> Result<Option<Self>, String> {
        std::env::var("NCCL_DOUBLE_FAULT").map_or(Ok(None), |text| Self::parse(&text, rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_one_rank() {
        assert_eq!(Fault::parse("lost@1:20", 1), Ok(Some(Fault::Lost(20))));
        assert_eq!(Fault::parse("lost@1:20", 0), Ok(None));
        assert_eq!(Fault::parse("slow@0:5", 0), Ok(Some(Fault::Slow(Duration::from_millis(5)))));
        for text in ["", "lost", "lost@1", "lost@a:1", "lost@1:x", "dead@1:1"] {
            assert!(Fault::parse(text, 0).is_err(), "{text}");
        }
    }
}
