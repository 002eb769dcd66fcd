//! `lockstep-harness bench`: what was typed.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lockstep_record::exit;

use super::results::Results;
use super::table::Table;
use super::{BenchError, Options, bench, chart, markdown};
use crate::report::write_whole;

/// Pairs of runs, ours and theirs in turn; or a report of what earlier benches found.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    report: Option<BenchCommand>,
    #[command(flatten)]
    run: Option<RunArgs>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Show the results in one or more folders as one table. Nothing is run.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Plan of comparisons; see harness/plans/bench.yaml.
    plan: PathBuf,
    /// Folder for bench.json, bench.md and bench.svg; results that are there already stay, unless run again.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The trainer's program [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Folder for runs and logs; it must be empty or new [default: runs/bench-PLAN-TIME]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Only comparisons whose name contains this (`*` stands for anything); may be repeated.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Command that starts N ranks, with {ranks} for N [default: $LOCKSTEP_MPIRUN or mpirun, with its
    /// options]
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
    /// Command that starts {ranks} processes over the plan's link NAME, instead of the plan's; may be
    /// repeated.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = link)]
    link: Vec<(String, Vec<String>)>,
    /// Pairs of each comparison [default: the plan's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: Option<u16>,
    /// Share of the cores that others may use during a pair that counts.
    #[arg(long, value_name = "SHARE", default_value = "0.05", value_parser = share)]
    disturbance_max: f64,
    /// Disturbed pairs of a comparison that are run once more.
    #[arg(long, value_name = "K", default_value_t = 5)]
    repeats: u16,
    /// End with 100 if an aim was missed, or too few pairs were undisturbed.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Folders with a bench.json; where two have the same comparison, the later folder's counts.
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Print the table as Markdown.
    #[arg(long)]
    markdown: bool,
    /// Put the Markdown table into this document, between `<!-- bench:begin -->` and `<!-- bench:end -->`.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Write the picture here.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn link(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, command) = text.split_once('=').ok_or("must be NAME=COMMAND")?;
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    match words.iter().any(|word| word.contains("{ranks}")) {
        true => Ok((name.to_owned(), words)),
        false => Err("its command needs `{ranks}`, the number of processes to start".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("must be a share from 0 to 1, such as 0.05".into()),
    }
}

impl BenchArgs {
    /// Does what was asked and returns the exit code.
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let done = match (self.report, self.run) {
            (Some(BenchCommand::Report(args)), _) => report(&args, out),
            (None, Some(args)) => bench(&args.options(), out, errors),
            (None, None) => Err(BenchError::Document("needs a plan, or `report` and a folder".into())),
        };
        done.unwrap_or_else(|error| {
            let _ = writeln!(errors, "error: {error}");
            error.exit_code()
        })
    }
}

impl RunArgs {
    fn options(self) -> Options {
        Options {
            plan: self.plan,
            out: self.out,
            trainer: self.trainer,
            work_dir: self.work_dir,
            only: self.only,
            launcher: self.launcher,
            links: self.link,
            pairs: self.pairs.map(usize::from),
            disturbance_max: self.disturbance_max,
            repeats: usize::from(self.repeats),
            strict: self.strict,
        }
    }
}

fn report(args: &ReportArgs, out: &mut dyn Write) -> Result<i32, BenchError> {
    let mut results = Results::new(String::new());
    for folder in &args.folders {
        let missing = || {
            format!(
                "{}: no bench.json here; `lockstep-harness bench PLAN --out DIR` writes one",
                folder.display()
            )
        };
        let found = Results::load(folder)?.ok_or_else(|| BenchError::Document(missing()))?;
        results.title = found.title;
        found.comparisons.into_iter().for_each(|finding| results.put(finding));
    }
    let markdown = markdown::table(&results);
    if let Some(path) = &args.svg {
        let svg = chart::svg(&results).map_err(std::io::Error::other);
        svg.and_then(|svg| write_whole(path, &svg)).map_err(BenchError::io(path))?;
    }
    if let Some(path) = &args.into {
        let picture = args.svg.as_deref().and_then(|svg| picture(path, svg));
        replace(path, &(picture.unwrap_or_default() + &markdown))?;
        return Ok(exit::OK);
    }
    let text = if args.markdown { markdown } else { plain(&results) };
    match write!(out, "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(BenchError::io(Path::new("standard output"))(error))
        }
        _ => Ok(exit::OK),
    }
}

/// The picture in a document beside it.
fn picture(document: &Path, svg: &Path) -> Option<String> {
    let name = svg.file_name()?.to_string_lossy();
    (document.parent() == svg.parent()).then(|| format!("![Each pair, the medians and the aims]({name})\n\n"))
}

fn plain(results: &Results) -> String {
    let names = results.comparisons.iter().map(|finding| (finding.name.as_str(), finding.link.as_str()));
    let table = Table::new(names);
    let rows = results.comparisons.iter().map(|finding| table.rows(finding));
    std::iter::once(table.head()).chain(rows).map(|line| line + "\n").collect()
}

fn replace(path: &Path, table: &str) -> Result<(), BenchError> {
    let document = std::fs::read_to_string(path).map_err(BenchError::io(path))?;
    let replaced = markdown::replace(&document, table)
        .map_err(|problem| BenchError::Document(format!("{}: {problem}", path.display())))?;
    write_whole(path, &replaced).map_err(BenchError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for text in ["nan", "-0.1", "1.1", "5%", ""] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(share("0.05"), Ok(0.05));
        assert!(link("1gbit").is_err() && link("1gbit=mpirun -np 2").is_err());
        assert_eq!(
            link("a=x -n {ranks} b=c"),
            Ok(("a".into(), ["x", "-n", "{ranks}", "b=c"].map(String::from).to_vec()))
        );
    }
}
