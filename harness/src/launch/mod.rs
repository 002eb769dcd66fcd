//! Starting programs: how N ranks are started, with which limits, where things lie, and whether what ran is
//! what was asked for. Plans that compare bits (`verify`) and plans that compare speed (`bench`) launch
//! alike.

mod mpirun;
mod places;
mod process;
mod world;

pub use mpirun::Launcher;
pub use places::{PlaceError, Places, find_trainer, make_work_dir, stop_flag, unix_s};
pub use process::{Ended, Launch, LaunchRecord, complaint, probe, tail};
pub use world::{Expected, check_world};
