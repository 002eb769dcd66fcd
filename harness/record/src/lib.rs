//! The run record: what a training run leaves on disk.
//!
//! The trainer writes it and the harness reads it; neither program imports the other, so this crate is all
//! that they share. A trainer that no one here wrote can write the same files. `docs/run-record.md` describes
//! them for people who do.
//!
//! ```text
//! RUN/manifest.json        what ran: configuration, versions, hosts, one segment per start or resume
//! RUN/config.yaml          the resolved configuration
//! RUN/metrics.jsonl        one line a step: loss, norms, learning rate, times
//! RUN/samples.jsonl        one line a step: the sample ids of every micro-batch
//! RUN/digests.jsonl        one line per step, phase, tensor and distinct value: hash, norm, ranks that hold it
//! RUN/logs/rank-00000.jsonl
//! RUN/telemetry/rank-00000.jsonl   what a rank's GPU was doing, of runs on GPUs
//! RUN/trace/rank-00000.json  what each thread was doing when, of runs with `--trace`
//! RUN/flight/rank-00000.jsonl   the last collectives of a rank, if the run broke
//! RUN/checkpoints/step-00000100/{manifest.json, shard-00000-of-00004.safetensors, ...}
//! RUN/capture/step-00000003/{manifest.json, ...safetensors}   one step in full, of runs with `--capture`
//! RUN/golden.json          the header of a run that was stored as a golden run
//! RUN/tolerance/           how far an approximate candidate may be from this run, made by the harness
//! RUN/report/              whatever was derived from the above
//! ```
//!
//! Step `k` is the state after `k` optimizer updates; step 0 is the initial state.

mod capture;
mod checkpoint;
mod digest;
pub mod exit;
mod files;
mod flight;
mod jsonl;
mod layout;
mod manifest;
mod real;
mod sketch;
mod steps;
mod telemetry;
mod trace;

pub use capture::{
    CaptureGroup, CaptureManifest, CapturedBucket, CapturedMicroBatch, CapturedSlot, CapturedTensor,
};
pub use checkpoint::{CheckpointFile, CheckpointManifest, LossScale, Piece, TensorEntry, TrainingState};
pub use digest::{
    BLOCK_BYTES, BLOCK_ELEMENTS, Digest, TensorDigester, block_digest, block_digests, tensor_digest,
};
pub use files::{open_plain_file, refuse_link};
pub use flight::{Channel, FLIGHT_LINES_MAX, FlightLine, FlightState};
pub use jsonl::{Lines, RecordError, read_json, read_lines, read_named_lines};
pub use layout::RunDir;
pub use manifest::{
    DataInfo, Ended, Manifest, ModelInfo, Nccl, Outcome, Perturbation, Perturbed, Processor, ProcessorKind,
    Program, RankInfo, Segment, TensorInfo, Unit,
};
pub use real::Real;
pub use sketch::{BlockSketch, SKETCH_BINS, Sketch, block_sketch};
pub use steps::{DigestLine, LossTerm, Phase, RankRange, SampleLine, Seconds, StepLine, rank_ranges};
pub use telemetry::TelemetryLine;

pub use trace::{
    COMMUNICATION_THREAD, Category, Label, LabelArgs, LabelKind, Span, SpanArgs, TRAINING_THREAD, TraceEvent,
    TraceEvents, read_trace,
};

/// Version of the record's format. A reader refuses a newer one; `docs/run-record.md` lists the changes.
pub const RECORD_VERSION: u32 = 1;
