//! What came out, for people (terminal, HTML) and for programs (JSON, JUnit).

mod cell;
mod comparison;
mod curves;
mod html;
mod junit;
mod reporter;
mod sentence;
mod table;
mod text;

pub use cell::{Cell, Outcome, Report};
pub use comparison::{comparison_json, comparison_text};
pub use curves::{Curve, read_curve};
pub use html::html;
pub use junit::junit;
pub use reporter::Reporter;
pub use sentence::sentence;
pub use text::{one_line, write_whole};
