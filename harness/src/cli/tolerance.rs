//! `lockstep-harness tolerance`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_record::{Perturbation, Perturbed, RunDir, Unit, exit};

use super::finish;
use crate::launch::{find_trainer, stop_flag};
use crate::tolerance::{
    Envelope, Plan, RUNS_DEFAULT, RUNS_MAX, RUNS_MIN, ToleranceError, earn, envelope_text, golden_values,
    write_from,
};

/// Repeats a golden run with values moved by a unit in the last place, sees how far each tensor moves at each step, and
/// writes what follows from it to GOLDEN/tolerance/. The golden run and the candidates should have record.sketches=true.
#[derive(Debug, Args)]
pub struct ToleranceArgs {
    /// Run directory of the golden run.
    golden: PathBuf,
    /// Perturbed runs that are there already, instead of new ones.
    #[arg(value_name = "PERTURBED")]
    perturbed: Vec<PathBuf>,
    /// Perturbed runs to train.
    #[arg(long, value_name = "K", default_value_t = RUNS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(RUNS_MIN as i64..=i64::from(RUNS_MAX)))]
    runs: u32,
    /// What is moved: `gradients`, for candidates that add in another order; `all`, for another library or processor.
    #[arg(long, value_name = "WHAT", default_value = "gradients", value_parser = what)]
    perturb: Perturbed,
    /// In which format's last place: fp32, bf16 or fp16, for candidates whose gradients travel in 16 bits.
    #[arg(long, value_name = "UNIT", default_value = "fp32", value_parser = unit)]
    unit: Unit,
    /// The trainer's program [default: $LOCKSTEP_TRAINER, or `lockstep` beside this program]
    #[arg(long, value_name = "PATH")]
    trainer: Option<PathBuf>,
    /// Seconds that one run may take.
    #[arg(long, value_name = "S", default_value_t = 3600)]
    timeout: u64,
    /// Keep the perturbed runs in GOLDEN/tolerance/runs.
    #[arg(long)]
    keep: bool,
}

fn what(text: &str) -> Result<Perturbed, String> {
    let perturbation: Result<Perturbation, _> = format!("{text}:0").parse();
    perturbation.map(|perturbation| perturbation.of).map_err(|_| "give gradients or all".into())
}

fn unit(text: &str) -> Result<Unit, String> {
    let perturbation: Result<Perturbation, _> = format!("all:0:{text}").parse();
    perturbation.map(|perturbation| perturbation.unit).map_err(|_| "give fp32, bf16 or fp16".into())
}

impl ToleranceArgs {
    pub fn run(self, out: &mut dyn Write, errors: &mut dyn Write) -> i32 {
        let described = self.make(errors).and_then(|envelope| self.describe(&envelope));
        match described {
            Ok(text) => finish(write!(out, "{text}"), exit::OK),
            Err(error) => {
                let _ = writeln!(errors, "error: {error}");
                error.exit_code()
            }
        }
    }

    fn make(&self, errors: &mut dyn Write) -> Result<Envelope, ToleranceError> {
        if !self.perturbed.is_empty() {
            return write_from(&self.golden, &self.perturbed);
        }
        let (trainer, stop) = (find_trainer(self.trainer.as_deref())?, stop_flag(&self.golden)?);
        let plan = Plan {
            trainer: &trainer,
            runs: self.runs,
            perturbed: self.perturb,
            unit: self.unit,
            timeout: Duration::from_secs(self.timeout),
            keep: self.keep,
            stop: &stop,
        };
        let mut progress = |line: &str| {
            let _ = writeln!(errors, "{line}");
        };
        earn(&self.golden, &plan, &mut Vec::new(), &mut progress)
    }

    fn describe(&self, envelope: &Envelope) -> Result<String, ToleranceError> {
        let golden = RunDir::new(&self.golden);
        let values = golden_values(&golden)?;
        let text = envelope_text(envelope, &|step, series| values.get(&step)?.get(&series).copied());
        Ok(format!("{text}\nwrote {}\n", golden.tolerance().join("envelope.json").display()))
    }
}
