//! Judges training runs by their run records.
//!
//! [`compare`] decides whether two runs are the same run, bit for bit or within a tolerance, and names the first
//! event at which they part. [`verify`] launches a plan of runs and compares each with its golden run, and
//! [`bench`] one that compares speed and memory; [`tune`] finds a training's fastest setting; [`launch`] is what they
//! start programs with. [`report`] shows what came out. [`flight`] says where the ranks of a run that broke parted,
//! [`lint`] what is wrong with one run by itself, [`goldens`] stores runs to compare others with,
//! [`tolerance`] says how far a run that cannot have the same bits may be from its golden run,
//! [`trace`] says how much of a run's communication was hidden behind computing, and [`predict`] what more ranks would bring.
//! [`zoo`] plants bugs in the trainer and judges what the rest of this crate says about them.
//! The crate knows the run record (`lockstep_record`) and nothing of any trainer: whoever writes the record is judged
//! alike.

pub mod bench;
pub mod bisect;
pub mod cli;
pub mod compare;
pub mod flight;
pub mod goldens;
pub mod launch;
pub mod lint;
mod median;
pub mod plan_file;
pub mod predict;
pub mod report;
pub mod tolerance;
pub mod trace;
pub mod tune;
pub mod verify;
pub mod zoo;

use median::median;
