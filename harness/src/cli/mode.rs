//! What `compare` and `report` accept as equal: the options that both have.

use clap::Args;

use crate::compare::{Mode, Tolerance};
use crate::goldens::Families;

#[derive(Debug, Args)]
pub struct ModeArgs {
    /// Demand the same bits (the default).
    #[arg(long, conflicts_with_all = ["rtol", "atol", "tolerance"])]
    exact: bool,
    /// Accept what the golden run's envelope allows at each step of each tensor: see `lockstep-harness tolerance`.
    #[arg(long, value_name = "auto", conflicts_with_all = ["rtol", "atol"])]
    tolerance: Option<Auto>,
    /// Accept |candidate − golden| ≤ atol + rtol·|golden|. Digests cannot be compared then.
    #[arg(long, value_name = "R", value_parser = number)]
    rtol: Option<f64>,
    /// See --rtol; each is 0 when only the other is given.
    #[arg(long, value_name = "A", value_parser = number)]
    atol: Option<f64>,
    /// Compare with a stored golden run of another family (processor, libraries, threads) all the same.
    #[arg(long)]
    any_family: bool,
}

/// The one word that `--tolerance` takes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Auto {
    Auto,
}

/// A tolerance that would accept anything is none.
fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("must be a finite number that is not negative, such as 1e-5".into()),
    }
}

impl ModeArgs {
    pub fn mode(&self) -> Mode {
        match (self.tolerance, self.rtol, self.atol) {
            (Some(Auto::Auto), ..) => Mode::Auto,
            (None, None, None) => Mode::Exact,
            (None, rtol, atol) => Mode::Tolerance(Tolerance {
                rtol: rtol.unwrap_or(0.0),
                atol: atol.unwrap_or(0.0),
                parameter_norm_atol: None,
            }),
        }
    }

    pub fn families(&self) -> Families {
        if self.any_family { Families::Any } else { Families::Same }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_that_would_accept_anything_are_refused() {
        for text in ["nan", "inf", "-1", "", "1e400"] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(number("1e-5"), Ok(1e-5));
    }
}
