//! What a rank's GPU was doing at a moment.

use serde::{Deserialize, Serialize};

/// One line of `telemetry/rank-00000.jsonl`. What could not be read is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryLine {
    /// Milliseconds since 1970, by this rank's clock.
    pub unix_ms: u64,
    /// The step that this rank's training was in; 0 before the first.
    pub step: u64,
    /// Of the time since the driver's last sample: some kernel ran.
    pub utilisation_percent: Option<u32>,
    /// Likewise: memory was read or written.
    pub memory_utilisation_percent: Option<u32>,
    /// Of the whole GPU, whoever uses it.
    pub memory_used_bytes: Option<u64>,
    /// The most that any line of this execution says so far.
    pub memory_used_bytes_max: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    /// In tensors of this process.
    pub tensor_bytes: Option<u64>,
    /// The most that there ever was, between two lines as well.
    pub tensor_bytes_max: Option<u64>,
    pub power_mw: Option<u32>,
    pub temperature_c: Option<u32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
}
