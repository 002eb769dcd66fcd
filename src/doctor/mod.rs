//! `lockstep doctor`: what this machine, its MPI, libraries, container and scheduler are, and what is wrong with them.
//!
//! Each rank gathers [`Facts`]; the checks are pure functions of all ranks' facts; the report prints what they find.

mod catalogue;
mod checks;
mod facts;
mod finding;
mod gather;
mod report;
mod supervise;
#[cfg(test)]
mod tests;

pub use catalogue::MPI_START;
pub use checks::examine;
pub use facts::Facts;
pub use finding::{Finding, Severity};
pub use gather::{Request, VARIABLES, gather, local};
pub use report::Report;
pub use supervise::{Examination, Outcome};
