//! `lockstep config`.

use lockstep_record::exit;

use crate::cli::{self, Source};
use crate::config::{ConfigError, Resolved, load, schema_docs, show};

/// Resolves what the command line names, without checking how values fit together.
pub fn resolve(source: &Source) -> Result<Resolved, ConfigError> {
    load(&source.files, &source.sets, &|name| std::env::var(name).ok())
}

/// Runs `lockstep config ...`.
pub fn config(command: &cli::Config) -> i32 {
    let result = match command {
        cli::Config::Show { source, yaml } => resolve(source).and_then(|resolved| print(&resolved, *yaml)),
        cli::Config::Check { source, ranks } => resolve(source).and_then(|resolved| check(&resolved, *ranks)),
        cli::Config::Schema => {
            print!("{}", schema_docs::markdown());
            Ok(())
        }
    };
    match result {
        Ok(()) => exit::OK,
        Err(error) => {
            eprintln!("lockstep: {error}");
            exit::USAGE
        }
    }
}

fn print(resolved: &Resolved, yaml: bool) -> Result<(), ConfigError> {
    match yaml {
        false => print!("{}", show::show(resolved)),
        true => print!("{}", resolved.config.to_yaml().unwrap_or_default()),
    }
    Ok(())
}

fn check(resolved: &Resolved, ranks: usize) -> Result<(), ConfigError> {
    resolved.validate()?;
    resolved.validate_world(ranks)?;
    println!("good for {ranks} rank{}", if ranks == 1 { "" } else { "s" });
    Ok(())
}
