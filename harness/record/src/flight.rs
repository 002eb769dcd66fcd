//! The lines of `flight/rank-00000.jsonl`: the last collectives of one rank, dumped when a run breaks.

use serde::{Deserialize, Serialize};

/// Collectives that a rank remembers: a file has no more lines than this.
pub const FLIGHT_LINES_MAX: usize = 1000;

/// One collective of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlightLine {
    /// Counts this rank's collectives on this channel from 1: the ranks' collectives with one number belong together.
    pub sequence: u64,
    pub channel: Channel,
    /// Such as `all-to-all`.
    pub operation: String,
    /// The gradient bucket that it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<u64>,
    /// The step that the rank was in; 0 before the first.
    pub step: u64,
    /// Elements that this rank sends.
    pub elements: u64,
    /// Bytes that this rank sends.
    pub bytes: u64,
    /// Element type: `f32`, `u8`, `i32`, ….
    pub dtype: String,
    /// Microseconds since this rank joined the world.
    pub started_us: u64,
    /// Microseconds since this rank joined the world; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_us: Option<u64>,
    pub state: FlightState,
}

/// Which stream of collectives one belongs to: within a channel all ranks call the same ones in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Small messages between the training threads.
    Control,
    /// Gradients and parameters.
    Data,
}

impl Channel {
    pub const ALL: [Self; 2] = [Self::Control, Self::Data];
}

impl std::fmt::Display for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Control => "control",
            Self::Data => "data",
        })
    }
}

/// How far a collective had got when the file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlightState {
    Running,
    Done,
    Failed,
}

impl std::fmt::Display for FlightState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form that `docs/run-record.md` shows.
    #[test]
    fn a_line_reads_back() {
        let text = r#"{"sequence":412,"channel":"data","operation":"all-to-all","bucket":3,"step":12,"elements":65536,"bytes":262144,"dtype":"f32","started_us":8123456,"state":"running"}"#;
        let line: FlightLine = serde_json::from_str(text).unwrap();
        assert_eq!((line.bucket, line.finished_us, line.state), (Some(3), None, FlightState::Running));
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
    }
}
