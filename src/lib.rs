//! lockstep: data-parallel training whose result does not depend on the number of processes, the strategy, or a
//! restart. `docs/ARCHITECTURE.md` is the map of this crate.

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod commands;
pub mod compress;
pub mod config;
pub mod data;
pub mod doctor;
pub mod files;
pub mod grad;
pub mod jobs;
pub mod launch;
pub mod metrics;
pub mod model;
pub mod mutate;
pub mod optim;
pub mod partition;
pub mod perturb;
pub mod precision;
pub mod quantity;
pub mod random;
pub mod reduce;
pub mod session;
pub mod shortage;
pub mod strategy;
pub mod telemetry;
pub mod torch;
pub mod trace;
pub mod train;
