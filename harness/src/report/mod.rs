//! What came out, for people (terminal, HTML) and for programs (JSON, JUnit): [`Stream`] feeds them all.

mod cell;
mod chart;
mod comparison;
mod curves;
mod files;
mod html;
mod junit;
mod reporter;
mod runs;
mod saved;
mod sentence;
mod stream;
mod terminal;
mod text;
mod view;

pub use cell::{Cell, Outcome};
pub use chart::{Chart, Series};
pub use comparison::{comparison_json, comparison_text};
pub use curves::{Curves, Quantity, Targets, read_curves};
pub use files::report_json;
pub use html::html;
pub use junit::junit;
pub use reporter::{Reporter, all_sinks};
pub use runs::{Options, ReportError, report};
pub use saved::{SavedError, read_report};
pub use sentence::sentence;
pub use stream::{Event, Sink, Stream};
pub use terminal::{Colour, Heading, Table, Terminal};
pub use text::{Visible, create_plain_file, one_line, visible, write_whole};
pub use view::{CaseReport, CaseView, Class, LaunchView, Report};
