//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Data-parallel training whose result does not depend on the number of processes.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train; started as one process, or as one rank of many by mpirun or srun
    Train(Train),
    /// Start ranks: with mpirun here, or as a job of Slurm or PBS
    Launch(Launch),
    /// Look at a configuration
    Config {
        #[command(subcommand)]
        command: Config,
    },
    /// Look at checkpoints
    Ckpt {
        #[command(subcommand)]
        command: Ckpt,
    },
    /// Say what this machine, MPI, NCCL, container and scheduler are, and what is wrong: alone, or as one rank of many
    Doctor(Doctor),
    /// Find the fastest bucket size, overlap and threads on this machine: `lockstep-harness tune` with this trainer
    #[command(disable_help_flag = true)]
    Tune {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Where a configuration comes from.
#[derive(Args, Debug)]
pub struct Source {
    /// A YAML file; later ones win over earlier ones [default: the embedded base.yaml]
    #[arg(long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One value, for example optim.lr=3e-4; wins over all files
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Train {
    #[command(flatten)]
    pub source: Source,
    /// Where the run record goes [default: run.dir/run.name]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Go on from the run directory's newest good checkpoint (auto), or from this checkpoint or run directory
    #[arg(long, value_name = "auto|PATH")]
    pub resume: Option<PathBuf>,
    /// Save and stop after this step, as if the schedule went on later
    #[arg(long, value_name = "STEP", value_parser = clap::value_parser!(u64).range(1..))]
    pub stop_after: Option<u64>,
    /// Write what each thread of each rank does when to trace/ in the run directory, for Perfetto and
    /// `lockstep-harness trace`
    #[arg(long)]
    pub trace: bool,
    /// Write everything of this step to capture/ in the run directory, for `lockstep-harness bisect`: each micro-batch's
    /// gradient, the reduced one, parameters and optimizer state before and after; may be given again
    #[arg(long, value_name = "step=N", value_delimiter = ',', value_parser = captured_step)]
    pub capture: Vec<u64>,
    /// What the ranks exchange while they train. With `none` each trains on its own: wrong results, but the ceiling of
    /// what hiding communication can reach
    #[arg(long, value_enum, value_name = "WHAT", default_value = "all")]
    pub comm: Exchanged,
    /// Move values at random by at most one unit in the last place, to see how far the run moves: `gradients` (of each
    /// micro-batch) or `all` (parameters, too), the unit fp32, bf16 or fp16. For `lockstep-harness tolerance`
    #[arg(long, value_name = "WHAT:SEED[:UNIT]")]
    pub perturb: Option<lockstep_record::Perturbation>,
    /// Build everything, print what would run, and take no step
    #[arg(long)]
    pub dry_run: bool,
    /// Plant a bug, to see it caught
    #[cfg(feature = "mutations")]
    #[arg(long, value_name = "NAME")]
    pub mutate: Option<crate::mutate::Mutation>,
}

#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    pub source: Source,
    /// Print one JSON document instead
    #[arg(long)]
    pub json: bool,
    /// A file that NCCL wrote with NCCL_DEBUG=INFO; may be given again [default: what NCCL_DEBUG_FILE names]
    #[arg(long, value_name = "FILE")]
    pub nccl_log: Vec<PathBuf>,
    /// Also move data through NCCL on all ranks: sums and messages with known answers, and bandwidth by size
    #[arg(long)]
    pub nccl_test: bool,
    /// How long MPI may take to start and to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    pub limit: f64,
    /// This process examines, and another one waits for it
    #[arg(long, hide = true)]
    pub inside: bool,
}

/// `step=3`
fn captured_step(text: &str) -> Result<u64, String> {
    match text.strip_prefix("step=").map(str::parse) {
        Some(Ok(step)) if step > 0 => Ok(step),
        _ => Err("give a step that is to be captured, such as step=3".into()),
    }
}

/// A limit that a wait can have.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, such as 60".to_owned())?;
    match (0.1..=86_400.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("give 0.1 to 86400 seconds".into()),
    }
}

/// What ranks exchange while they train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Exchanged {
    /// Gradients and parameters
    All,
    /// Neither: for measurements only
    None,
}

/// Jobs: train, smoke, one-node, many-nodes, zero1, verify, gpu-acceptance, strong-scaling, weak-scaling, sensitivity, profile-nsys,
/// profile-ncu, requeue. docs/jobs.md describes them, and the site file.
#[derive(Args, Debug)]
pub struct Launch {
    #[arg(value_enum)]
    pub kind: crate::jobs::Kind,
    /// Number of ranks [default: the job's own, or one a GPU of its nodes]
    #[arg(short = 'n', long, value_name = "N")]
    pub ranks: Option<u32>,
    /// Number of nodes [default: as many as the ranks need]
    #[arg(long, value_name = "K")]
    pub nodes: Option<u32>,
    /// What is the same for all jobs of a cluster: account, queue, GPUs, modules, container
    #[arg(long, value_name = "FILE")]
    pub site: Option<PathBuf>,
    /// What kind of job it is
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub job: String,
    /// Time limit [default: the job's or the site's; here none]
    #[arg(long, value_name = "HH:MM:SS")]
    pub time: Option<String>,
    /// What the scheduler calls it [default: the name of the job]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Folder for everything of this job; that of an earlier one is gone on with [default: runs/JOB-TIME]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Wait for the end of the job, and exit with its exit code
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits, in seconds
    #[arg(long, value_name = "S", default_value_t = 86_400)]
    pub wait_limit: u64,
    /// Print the script and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// `train` and its arguments
    #[arg(last = true, value_name = "train ...")]
    pub arguments: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print every value with what set it
    Show {
        #[command(flatten)]
        source: Source,
        /// Print the resolved YAML instead
        #[arg(long)]
        yaml: bool,
    },
    /// Check that a configuration can run
    Check {
        #[command(flatten)]
        source: Source,
        /// Number of ranks that it should run on
        #[arg(long, value_name = "N", default_value_t = 1)]
        ranks: usize,
    },
    /// Print the reference of all keys and environment variables
    Schema,
}

#[derive(Debug, Subcommand)]
pub enum Ckpt {
    /// List a run's checkpoints
    Ls { run_dir: PathBuf },
    /// Check every digest of a checkpoint, or of all checkpoints of a run
    Verify { path: PathBuf },
    /// Write the model of a checkpoint as one safetensors file with GPT-2's names
    Export { checkpoint: PathBuf, file: PathBuf },
}
