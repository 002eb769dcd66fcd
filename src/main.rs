//! The trainer's entry: parse, dispatch, exit with the documented code.

use clap::Parser;

use lockstep::cli::{Cli, Command};
use lockstep::commands;

fn main() {
    let exit_code = match Cli::parse().command {
        Command::Train(arguments) => commands::train(&arguments),
        Command::Launch(arguments) => commands::launch(&arguments),
        Command::Config { command } => {
            end_quietly_when_the_reader_does();
            commands::config(&command)
        }
        Command::Ckpt { command } => {
            end_quietly_when_the_reader_does();
            commands::ckpt(&command)
        }
        Command::Tune { arguments } => commands::tune(&arguments),
    };
    std::process::exit(exit_code);
}

/// `lockstep config show | head` is no error. A training run keeps Rust's default: a lost terminal must not end it.
fn end_quietly_when_the_reader_does() {
    // SAFETY: restores the signal's default action before any other thread exists.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
