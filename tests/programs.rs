//! Whole-program tests: the real trainer, under the real mpirun where there is more than one rank.

mod bad_input;
mod bisect;
mod collectives;
mod compression;
mod doctor;
mod equality;
mod faults;
mod gradients;
mod launch;
mod launch_jobs;
mod lint;
mod nccl;
#[cfg(feature = "mutations")]
mod negative_controls;
mod overlap;
mod parsers;
mod precision;
mod resume;
mod shared_memory;
mod shortage;
mod telemetry;
mod tolerance;
mod tune;
mod vla;
mod zoo;
