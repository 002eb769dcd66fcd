//! Where two runs part first: the step, the phase, the tensor, the rank and the elements.
//!
//! [`bisect_records`] reads what runs write down anyway. [`bisect()`] then trains the guilty step of both once more from
//! the nearest checkpoint, with that step captured in full, and names elements and values.

mod capture;
mod checkpoints;
mod elements;
mod ending;
mod explain;
mod finding;
mod masks;
mod part;
mod records;
mod replay;
mod search;
mod segments;
mod steps;
mod text;

pub use finding::{Evidence, Finding, Phase, Seen};
pub use masks::MasksApart;
pub use records::bisect_records;
pub use search::{BisectError, Bisection, Options, bisect};
pub use text::{bisection_json, bisection_text};
