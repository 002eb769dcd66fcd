//! The environment variables that the programs and their libraries read: one table, for the code and for
//! `docs/configuration.md`.

/// A variable, or a family of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name; a trailing `*` stands for any ending.
    pub name: &'static str,
    pub meaning: &'static str,
    /// What holds where it is unset or empty.
    pub default: &'static str,
    pub reader: &'static str,
}

/// Folder of all runs.
pub const RUNS: &str = "LOCKSTEP_RUNS";
/// The text to train on.
pub const DATA: &str = "LOCKSTEP_DATA";
/// What may be deleted and is then made anew.
pub const CACHE: &str = "LOCKSTEP_CACHE";
/// Which log messages are written.
pub const LOG: &str = "LOCKSTEP_LOG";
/// The MPI launcher.
pub const MPIRUN: &str = "LOCKSTEP_MPIRUN";
/// Thread counts that a library would otherwise choose itself: the trainer sets them to `run.threads_per_rank`.
pub const THREADS: [&str; 2] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"];

/// Every variable. A value in the configuration names its variable there; no other code reads these behind its back.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: RUNS,
        meaning: "Folder of all runs.",
        default: "`runs`",
        reader: "`run.dir` in base.yaml",
    },
    Variable {
        name: DATA,
        meaning: "The text to train on.",
        default: "`embedded:shakespeare`",
        reader: "`data.path` in base.yaml",
    },
    Variable {
        name: CACHE,
        meaning: "Folder of what can be made anew: learned tokenizers, and the toolchain of the set-up.",
        default: "`${HOME}/.cache/lockstep`",
        reader: "`data.cache_dir` in base.yaml; the set-up",
    },
    Variable {
        name: LOG,
        meaning: "Filter of log messages, such as `debug` or `lockstep=trace,info` (syntax of tracing-subscriber).",
        default: "`info`",
        reader: "the trainer",
    },
    Variable {
        name: MPIRUN,
        meaning: "The launcher that starts ranks: a program's name or its path.",
        default: "`mpirun`",
        reader: "the harness; the tests",
    },
    Variable {
        name: "HOME",
        meaning: "Home folder, in which the cache lies.",
        default: "`.`",
        reader: "`data.cache_dir` in base.yaml",
    },
    Variable {
        name: THREADS[0],
        meaning: "Threads of OpenMP. The trainer sets it from `run.threads_per_rank`: it changes bits.",
        default: "`run.threads_per_rank`",
        reader: "libtorch",
    },
    Variable {
        name: THREADS[1],
        meaning: "Threads of MKL. The trainer sets it from `run.threads_per_rank`: it changes bits.",
        default: "`run.threads_per_rank`",
        reader: "libtorch",
    },
    Variable {
        name: "OMPI_MCA_*",
        meaning: "Settings of Open MPI, such as `OMPI_MCA_btl=self,tcp`; passed through untouched.",
        default: "Open MPI's own",
        reader: "Open MPI",
    },
    Variable {
        name: "NCCL_*",
        meaning: "Settings of NCCL, such as `NCCL_DEBUG=INFO`; passed through untouched.",
        default: "NCCL's own",
        reader: "NCCL",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of all `${...}` in a text.
    fn references(text: &str) -> Vec<String> {
        let name = |part: &str| part.split([':', '}']).next().unwrap_or_default().to_owned();
        text.split("${").skip(1).map(name).collect()
    }

    #[test]
    fn each_variable_that_a_configuration_names_is_in_the_table() {
        let mut found = 0;
        for (file, text) in crate::config::source::EMBEDDED {
            for name in references(text) {
                assert!(VARIABLES.iter().any(|variable| variable.name == name), "{file}: {name}");
                found += 1;
            }
        }
        assert!(found >= 4);
    }

    #[test]
    fn entries_are_complete_and_unique() {
        for (index, variable) in VARIABLES.iter().enumerate() {
            assert!(variable.meaning.ends_with('.') && !variable.default.is_empty(), "{}", variable.name);
            assert!(VARIABLES[..index].iter().all(|other| other.name != variable.name), "{}", variable.name);
        }
    }
}
