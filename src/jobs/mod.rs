//! Jobs for Slurm, PBS and this machine: what was asked for, the site's values and the job's own become one script.
//!
//! `catalogue` and `site` are the two files that values come from, `plan` puts them together and refuses what cannot be,
//! `render` makes the script, `scheduler` speaks to the batch system. Templates: `jobs/`, `slurm/` and `pbs/`.

mod catalogue;
mod place;
mod plan;
mod render;
mod scheduler;
mod site;
mod submit;
mod time_limit;
mod value;

#[cfg(test)]
mod render_tests;

pub use plan::{Found, Job, Request, plan};
pub use render::render;
pub use scheduler::{Kind, inside_launcher};
pub use site::Site;
pub use submit::{Refusal, prepare, run_here, submit, wait};

/// What is wrong with a request or a site file, for the user.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct JobError(pub String);

impl JobError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
