//! `lockstep-harness`: compares training runs bit for bit, and proves that a trainer keeps its promise.

use clap::Parser;
use lockstep_harness::cli::Cli;
use lockstep_harness::report::Visible;

fn main() -> std::process::ExitCode {
    // A reader that goes away (`| head`) ends the program quietly, as it does other tools.
    // Messages quote what files say, and must not drive the terminal.
    let code = Cli::parse().run(&mut std::io::stdout().lock(), &mut Visible(std::io::stderr().lock()));
    std::process::ExitCode::from(u8::try_from(code).unwrap_or(1))
}
