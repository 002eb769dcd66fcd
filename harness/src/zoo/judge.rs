//! Whether the harness gave the answer that a planted bug demands. Pure.

use serde::Serialize;

use super::catalogue::Expected;
use crate::bisect::{Finding, Phase};
use crate::plan_file::matches;

/// What was seen of a run with a planted bug.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The exit code of its last launch; None if a signal or the limit ended it.
    pub exit: Option<i32>,
    /// The end of what it printed.
    pub said: String,
    /// Where the harness says that it and its golden run part.
    pub finding: Option<Finding>,
    /// The first step after which checkpoints of the two hold other bytes: it rests on no digest, and on nothing that the
    /// search for the finding does.
    pub state_differs: Option<u64>,
}

/// How good the answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// It was seen that something is wrong.
    pub caught: bool,
    /// At the step at which the bug strikes first, and no later than the state differs.
    pub on_time: bool,
    pub phase: bool,
    /// The tensor; of a run that must fail, the message and the exit code.
    pub tensor: bool,
}

impl Verdict {
    /// Everything was right.
    pub fn right(&self) -> bool {
        self.caught && self.on_time && self.phase && self.tensor
    }
}

/// The step of a finding: a run that never began has none, and would have begun with the initial state.
pub fn step_of(finding: &Finding) -> u64 {
    finding.step.unwrap_or(0)
}

pub fn judge(expected: &Expected, observed: &Observed) -> Verdict {
    let Some(finding) = &observed.finding else {
        return Verdict { caught: false, on_time: false, phase: false, tensor: false };
    };
    let step = step_of(finding);
    let tensor = match expected.phase {
        Phase::Outcome => {
            expected.exit.is_none_or(|exit| observed.exit == Some(exit))
                && expected.says.as_ref().is_none_or(|text| observed.said.contains(text))
        }
        _ => {
            let named = finding.tensor.as_deref().unwrap_or_default();
            expected.tensors.is_empty() || expected.tensors.iter().any(|pattern| is(pattern, named))
        }
    };
    Verdict {
        caught: true,
        on_time: step == expected.step && observed.state_differs.is_none_or(|first| step <= first),
        phase: finding.phase == expected.phase,
        tensor,
    }
}

/// Whether a whole name fits a pattern, in which `*` stands for anything.
fn is(pattern: &str, name: &str) -> bool {
    let (first, last) = (pattern.split('*').next(), pattern.rsplit('*').next());
    match pattern.contains('*') {
        false => pattern == name,
        true => {
            first.is_some_and(|first| name.starts_with(first))
                && last.is_some_and(|last| name.ends_with(last))
                && matches(pattern, name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected() -> Expected {
        Expected {
            step: 3,
            phase: Phase::ReducedGradient,
            tensors: vec!["h.0.*.weight".into(), "wte.weight".into()],
            exit: None,
            says: None,
        }
    }

    fn finding(step: u64, phase: Phase, tensor: &str) -> Observed {
        let finding = Finding { tensor: Some(tensor.into()), ..Finding::new(Some(step), phase) };
        Observed { exit: Some(0), finding: Some(finding), state_differs: Some(3), ..Observed::default() }
    }

    #[test]
    fn each_part_of_the_answer_is_judged_by_itself() {
        let of = |step, phase, tensor| judge(&expected(), &finding(step, phase, tensor));
        let right = of(3, Phase::ReducedGradient, "h.0.attn.c_attn.weight");
        assert!(right.right(), "{right:?}");
        assert_eq!(of(4, Phase::ReducedGradient, "wte.weight"), Verdict { on_time: false, ..right });
        assert_eq!(of(3, Phase::Norm, "wte.weight"), Verdict { phase: false, ..right });
        assert_eq!(of(3, Phase::ReducedGradient, "h.0.attn.bias"), Verdict { tensor: false, ..right });
        assert!(!judge(&expected(), &Observed::default()).caught);
    }

    /// A catalogue that names too late a step does not make a late answer right.
    #[test]
    fn no_answer_is_on_time_after_the_state_differs() {
        let mut observed = finding(3, Phase::ReducedGradient, "wte.weight");
        observed.state_differs = Some(2);
        assert!(!judge(&expected(), &observed).on_time);
        observed.state_differs = None;
        assert!(judge(&expected(), &observed).on_time);
    }

    #[test]
    fn a_run_that_must_fail_is_judged_by_its_message_and_exit_code() {
        let expected =
            Expected { phase: Phase::Outcome, exit: Some(90), says: Some("rank 1".into()), ..expected() };
        let of = |exit, said: &str| {
            judge(&expected, &Observed { exit, said: said.into(), ..finding(3, Phase::Outcome, "") }).tensor
        };
        assert!(of(Some(90), "where is rank 1?"));
        assert!(!of(Some(1), "where is rank 1?") && !of(Some(90), "where is rank 2?") && !of(None, "rank 1"));
    }

    proptest! {
        #[test]
        fn a_pattern_fits_from_end_to_end(before in "[ab]{0,3}", after in "[ab]{0,3}", between in "[ab]{0,3}") {
            let (pattern, whole) = (format!("{before}*{after}"), format!("{before}{between}{after}"));
            prop_assert!(is(&pattern, &whole) && is(&whole, &whole));
            // Something before it, or behind it, does not fit.
            let (more_before, more_behind) = (format!("c{whole}"), format!("{whole}c"));
            prop_assert!(before.is_empty() || !is(&pattern, &more_before));
            prop_assert!(after.is_empty() || !is(&pattern, &more_behind));
            prop_assert!(!is(&whole, &more_before));
        }
    }
}
