//! Slurm's and PBS's commands: what they are asked, and what their answers mean. No command is run here.

/// Who runs the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// This machine: mpirun, here and now
    Local,
    /// sbatch
    Slurm,
    /// qsub, of Torque or OpenPBS
    Pbs,
}

/// What the scheduler says of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits, runs, or ends: as the scheduler calls it.
    Alive(String),
    /// It is over; how the scheduler calls that, and an exit code if it knows one.
    Over { how: String, code: Option<i32> },
    /// The scheduler does not know the job, or not any more.
    Unknown,
}

/// Slurm's words for a job that will not go on.
const SLURM_OVER: [&str; 9] = [
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
];

impl Kind {
    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "this machine",
            Self::Slurm => "Slurm",
            Self::Pbs => "PBS",
        }
    }

    /// Submits `job.sh` of the current folder. PBS is told on the command line, too, where its output goes: Slurm's
    /// qsub looks there only.
    pub fn submission(self, name: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Local => &["bash", "job.sh"],
            Self::Slurm => &["sbatch", "--parsable", "job.sh"],
            Self::Pbs => &["qsub", "-N", name, "-j", "oe", "-o", "job.log", "job.sh"],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// The job's id, from what a submission printed.
    pub fn job_id(self, printed: &str) -> Option<String> {
        let line = printed.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        let id = match self {
            Self::Local => return None,
            // The name of the cluster may follow.
            Self::Slurm => line.split(';').next()?,
            Self::Pbs => line,
        };
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-[]".contains(c);
        (id.starts_with(|c: char| c.is_ascii_digit()) && id.chars().all(fine)).then(|| id.to_owned())
    }

    /// Asks for a job's state.
    pub fn inquiry(self, id: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Local => &["true"],
            Self::Slurm => &["scontrol", "--oneliner", "show", "job", id],
            Self::Pbs => &["qstat", "-f", id],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// What the answer means. `None`: the scheduler could not be asked, so nothing is known.
    pub fn state(self, succeeded: bool, printed: &str, complained: &str) -> Option<State> {
        match self {
            Self::Local => None,
            _ if !succeeded => {
                let text = format!("{printed} {complained}").to_lowercase();
                let unknown = ["invalid job id", "unknown job", "has finished", "unknown"];
                // Slurm's qstat says nothing about a job that it does not know.
                let silent = self == Self::Pbs && text.trim().is_empty();
                (silent || unknown.iter().any(|words| text.contains(words))).then_some(State::Unknown)
            }
            Self::Slurm => slurm_state(printed),
            Self::Pbs => pbs_state(printed),
        }
    }
}

/// One line a task. The job is over when all tasks are; the first that failed speaks for it.
fn slurm_state(printed: &str) -> Option<State> {
    let mut over = None;
    for line in printed.lines().filter(|line| !line.trim().is_empty()) {
        let field =
            |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let (state, reason) = (field("JobState")?, field("Reason").unwrap_or("None"));
        let how = if reason == "None" { state.to_owned() } else { format!("{state} ({reason})") };
        if !SLURM_OVER.contains(&state) {
            return Some(State::Alive(how));
        }
        let code = field("ExitCode").and_then(|code| code.split(':').next()?.parse().ok());
        if over.is_none()
            || (state != "COMPLETED" && matches!(&over, Some(State::Over { code: Some(0), .. })))
        {
            over = Some(State::Over { how, code });
        }
    }
    over
}

fn pbs_state(printed: &str) -> Option<State> {
    let field = |key: &str| {
        printed.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim().to_owned())
        })
    };
    let state = field("job_state")?;
    Some(match state.as_str() {
        "C" | "F" => {
            State::Over { how: state, code: field("exit_status").and_then(|code| code.parse().ok()) }
        }
        _ => State::Alive(state),
    })
}

/// The launcher's variable that says that this process is already one of its ranks.
pub fn inside_launcher(env: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    // Slurm's steps of a batch script and of an interactive salloc have numbers of their own: they start ranks.
    const NOT_RANKS: [&str; 2] = ["4294967291", "4294967290"];
    let step = env("SLURM_STEP_ID").filter(|step| !NOT_RANKS.contains(&step.as_str()));
    ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_SIZE"]
        .into_iter()
        .find(|name| env(name).is_some())
        .or(step.map(|_| "SLURM_STEP_ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_from_what_submissions_print() {
        assert_eq!(Kind::Slurm.job_id("17;cluster\n").as_deref(), Some("17"));
        assert_eq!(Kind::Pbs.job_id("12.head.example\n").as_deref(), Some("12.head.example"));
        assert_eq!(Kind::Pbs.job_id("7[].head\n").as_deref(), Some("7[].head"));
        assert_eq!(Kind::Slurm.job_id("sbatch: error: no\n"), None);
        assert_eq!(Kind::Slurm.job_id("12 $(id)\n"), None);
        assert_eq!(Kind::Slurm.job_id(""), None);
    }

    #[test]
    fn slurms_answers() {
        let state = |text: &str| Kind::Slurm.state(true, text, "");
        let line = |state: &str, reason: &str, code: &str| {
            format!(
                "JobId=5 JobName=a b JobState={state} Reason={reason} Requeue=1 ExitCode={code} RunTime=00:00:01\n"
            )
        };
        let pending = line("PENDING", "Resources", "0:0");
        assert_eq!(state(&pending), Some(State::Alive("PENDING (Resources)".into())));
        assert_eq!(state(&line("COMPLETING", "None", "0:0")), Some(State::Alive("COMPLETING".into())));
        let failed = line("FAILED", "NonZeroExitCode", "75:0");
        let over = State::Over { how: "FAILED (NonZeroExitCode)".into(), code: Some(75) };
        assert_eq!(state(&failed), Some(over.clone()));
        // An array is over when its last task is, and one that failed is not hidden by those that did not.
        let completed = line("COMPLETED", "None", "0:0");
        assert_eq!(state(&format!("{completed}{failed}{completed}")), Some(over));
        assert_eq!(state(&format!("{failed}{pending}")), Some(State::Alive("PENDING (Resources)".into())));
        let unknown = Kind::Slurm.state(false, "", "slurm_load_jobs error: Invalid job id specified\n");
        assert_eq!(unknown, Some(State::Unknown));
        // A controller that does not answer says nothing of the job.
        assert_eq!(Kind::Slurm.state(false, "", "Unable to contact slurm controller"), None);
    }

    #[test]
    fn pbss_answers() {
        let state = |text: &str| Kind::Pbs.state(true, text, "");
        assert_eq!(state("Job Id: 1\n    job_state = R\n"), Some(State::Alive("R".into())));
        let over = State::Over { how: "C".into(), code: Some(75) };
        assert_eq!(state("Job Id: 1\n    job_state = C\n    exit_status = 75\n"), Some(over));
        assert_eq!(Kind::Pbs.state(false, "", "qstat: Unknown Job Id 1\n"), Some(State::Unknown));
        assert_eq!(Kind::Pbs.state(false, "", "qstat: cannot connect to server"), None);
    }

    #[test]
    fn a_rank_is_told_from_a_batch_script() {
        let inside = |pairs: &'static [(&str, &str)]| {
            let env = move |name: &str| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            inside_launcher(&env)
        };
        assert_eq!(inside(&[("SLURM_JOB_ID", "5")]), None);
        assert_eq!(inside(&[("SLURM_STEP_ID", "4294967290")]), None);
        assert_eq!(inside(&[("SLURM_STEP_ID", "0")]), Some("SLURM_STEP_ID"));
        assert_eq!(inside(&[("OMPI_COMM_WORLD_SIZE", "1")]), Some("OMPI_COMM_WORLD_SIZE"));
    }
}
