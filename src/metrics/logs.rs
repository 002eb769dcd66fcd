//! Logs: a JSON file a rank, and warnings of rank 0 on its standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use lockstep_record::RunDir;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Starts logging to `logs/rank-*.jsonl`; `LOCKSTEP_LOG` filters (default `info`). Appends on a resume.
pub fn start_logging(run: &RunDir, rank: usize) -> io::Result<()> {
    std::fs::create_dir_all(run.logs())?;
    let file: File = OpenOptions::new().create(true).append(true).open(run.rank_log(rank))?;
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("LOCKSTEP_LOG")
        .from_env_lossy();
    let json = fmt::layer().json().with_writer(Mutex::new(file)).with_filter(filter);
    // Errors are printed by whoever ends the process for them.
    let warnings = filter_fn(move |metadata| rank == 0 && *metadata.level() == tracing::Level::WARN);
    let ansi = io::stderr().is_terminal();
    let console = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .without_time()
        .with_target(false)
        .with_filter(warnings);
    // A second start in one process (a test) keeps the first logger.
    let _ = tracing_subscriber::registry().with(json).with(console).try_init();
    Ok(())
}
