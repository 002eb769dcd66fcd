//! Judges training runs by their run records.
//!
//! [`compare`] decides whether two runs are the same run, bit for bit or within a tolerance, and names the first
//! event at which they part. [`verify`] launches a plan of runs and compares each with its golden run, and
//! [`bench`] one that compares speed and memory; [`tune`] finds a training's fastest setting; [`launch`] is what they start
//! programs with.
//! [`report`] shows what came out. The crate knows the run record (`lockstep_record`) and nothing of any
//! trainer: whoever writes the record is judged alike.

pub mod bench;
pub mod cli;
pub mod compare;
pub mod launch;
pub mod plan_file;
pub mod report;
pub mod tune;
pub mod verify;
