//! The trainer's entry: parse, dispatch, exit with the documented code.

use clap::Parser;

use lockstep::cli::{Cli, Command};
use lockstep::commands;

fn main() {
    let exit_code = match Cli::parse().command {
        Command::Train(arguments) => commands::train(&arguments),
        Command::Config { command } => commands::config(&command),
        Command::Ckpt { command } => commands::ckpt(&command),
    };
    std::process::exit(exit_code);
}
