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
/// The trainer that the harness starts.
pub const TRAINER: &str = "LOCKSTEP_TRAINER";
/// The Python that runs the harness's peers.
pub const PYTHON: &str = "LOCKSTEP_PYTHON";
/// How the set-up finds what is missing.
pub const SETUP: &str = "LOCKSTEP_SETUP";
/// Which cluster of hosts on one machine is meant.
pub const CLUSTER: &str = "LOCKSTEP_CLUSTER";
/// The file of NCCL.
pub const NCCL_LIBRARY: &str = "LOCKSTEP_NCCL_LIBRARY";
/// The commit that a build is of.
pub const GIT_COMMIT: &str = "LOCKSTEP_GIT_COMMIT";
/// Digest of the container image that a run is in.
pub const IMAGE_DIGEST: &str = "LOCKSTEP_IMAGE_DIGEST";
/// The image that the cluster of containers is made of.
pub const IMAGE: &str = "LOCKSTEP_IMAGE";
/// Where Apptainer and Singularity say which file a container is.
pub const IMAGE_FILES: [&str; 2] = ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"];
/// Thread counts of the libraries under libtorch. The trainer tells libtorch `run.threads_per_rank` itself; the harness
/// and the tests also set these, for threads that a library starts on its own.
pub const THREADS: [&str; 2] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"];

/// How cuBLAS divides its memory, on which its bits depend.
pub const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Every variable. What feeds a value of the configuration is named in the YAML itself, as `${NAME}`.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: RUNS,
        meaning: "Folder of all runs: each has its record, logs and checkpoints in a folder of its own.",
        default: "`runs`",
        reader: "`run.dir` in base.yaml; the harness",
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
        default: "`lockstep` in `XDG_CACHE_HOME`",
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
        meaning: "The launcher that starts ranks, with its options.",
        default: "`mpirun`",
        reader: "the harness",
    },
    Variable {
        name: TRAINER,
        meaning: "The trainer that `lockstep-harness verify` starts.",
        default: "`lockstep` beside the harness",
        reader: "the harness",
    },
    Variable {
        name: PYTHON,
        meaning: "The Python, with PyTorch, that runs `harness/peers`.",
        default: "the set-up's own, else `python3`",
        reader: "the harness",
    },
    Variable {
        name: SETUP,
        meaning: "`wheels` makes the set-up use neither apt nor the machine's own MPI and libclang.",
        default: "`auto`",
        reader: "the set-up",
    },
    Variable {
        name: NCCL_LIBRARY,
        meaning: "The file of NCCL that is loaded, such as `/opt/nccl/lib/libnccl.so.2`.",
        default: "`libnccl.so.2` where the dynamic linker finds it, else libtorch's own",
        reader: "the trainer",
    },
    Variable {
        name: CLUSTER,
        meaning: "Name of the cluster of hosts on one machine, so that several can stand side by side.",
        default: "`lockstep`",
        reader: "`ci/cluster`",
    },
    Variable {
        name: "LOCKSTEP_WRITE_DOCS",
        meaning: "Makes the test of `docs/doctor.md` write its table of findings instead of comparing it.",
        default: "compare",
        reader: "the tests",
    },
    Variable {
        name: "LOCKSTEP_FUZZ_CASES",
        meaning: "Damaged files that the tests try for each reader.",
        default: "300",
        reader: "the tests; `make fuzz`",
    },
    Variable {
        name: "LOCKSTEP_CHROMIUM",
        meaning: "The browser that tests the report's page.",
        default: "`chromium`, or what a machine calls it",
        reader: "the tests",
    },
    Variable {
        name: "LOCKSTEP_SCREENSHOTS",
        meaning: "Folder for pictures of the report's page, taken by the test of it.",
        default: "none are taken",
        reader: "the tests",
    },
    Variable {
        name: "LOCKSTEP_BENCH_GIB",
        meaning: "Size of each of the two checkpoints whose comparison is measured, in GiB.",
        default: "1",
        reader: "`ci/bench-compare`",
    },
    Variable {
        name: GIT_COMMIT,
        meaning: "The commit that the run record names, for builds outside a git checkout.",
        default: "the checkout's",
        reader: "the build",
    },
    Variable {
        name: IMAGE_DIGEST,
        meaning: "Digest of the container image, such as `sha256:…`: the run record names it.",
        default: "that of the SIF, where Apptainer runs it",
        reader: "the trainer",
    },
    Variable {
        name: IMAGE,
        meaning: "The image that the containers of `docker/compose.yaml` run.",
        default: "`lockstep:cpu`",
        reader: "Docker's compose; `ci/test-images` sets it",
    },
    Variable {
        name: IMAGE_FILES[0],
        meaning: "The SIF that the process runs in, as Apptainer sets it: its digest goes into the run record.",
        default: "no container",
        reader: "the trainer",
    },
    Variable {
        name: IMAGE_FILES[1],
        meaning: "The same, from Singularity.",
        default: "no container",
        reader: "the trainer",
    },
    Variable {
        name: "XDG_CACHE_HOME",
        meaning: "Folder of all programs' caches.",
        default: "`${HOME}/.cache`",
        reader: "`data.cache_dir` in base.yaml; the set-up",
    },
    Variable {
        name: "HOME",
        meaning: "Home folder, in which the cache lies.",
        default: "`.`",
        reader: "`data.cache_dir` in base.yaml; the set-up",
    },
    Variable {
        name: "LIBTORCH",
        meaning: "Folder of a libtorch to build with and run on.",
        default: "the set-up's own",
        reader: "the build (`.cargo/config.toml`)",
    },
    Variable {
        name: "MPICC",
        meaning: "Compiler wrapper of the MPI to build with.",
        default: "the set-up's choice",
        reader: "the build (`.cargo/config.toml`)",
    },
    Variable {
        name: "LIBCLANG_PATH",
        meaning: "Folder of the libclang that reads MPI's headers.",
        default: "the set-up's choice",
        reader: "the build (`.cargo/config.toml`)",
    },
    Variable {
        name: THREADS[0],
        meaning: "Threads of OpenMP. The trainer tells libtorch `run.threads_per_rank`, whatever this says.",
        default: "`run.threads_per_rank`",
        reader: "libtorch; the harness sets it for what it starts",
    },
    Variable {
        name: THREADS[1],
        meaning: "Threads of MKL. The trainer tells libtorch `run.threads_per_rank`, whatever this says.",
        default: "`run.threads_per_rank`",
        reader: "libtorch",
    },
    Variable {
        name: "OMPI_COMM_WORLD_*",
        meaning: "Rank and size as Open MPI's launcher sets them: a cross-check of what MPI itself says.",
        default: "one process",
        reader: "the trainer",
    },
    Variable {
        name: "PMI_*",
        meaning: "The same, from a launcher that speaks PMI-1 or PMI-2.",
        default: "one process",
        reader: "the trainer",
    },
    Variable {
        name: "PMIX_*",
        meaning: "The same, from a launcher that speaks PMIx.",
        default: "one process",
        reader: "the trainer",
    },
    Variable {
        name: "SLURM_*",
        meaning: "The same, from Slurm's `srun`.",
        default: "one process",
        reader: "the trainer",
    },
    Variable {
        name: "OMPI_MCA_*",
        meaning: "Settings of Open MPI, such as `OMPI_MCA_btl=self,tcp`; passed through untouched.",
        default: "Open MPI's own",
        reader: "Open MPI",
    },
    Variable {
        name: "NCCL_*",
        meaning: "Settings of NCCL, such as `NCCL_SOCKET_IFNAME`; passed through untouched. Where `NCCL_DEBUG` and \
                  `NCCL_DEBUG_FILE` are unset, its log of level `INFO` goes into the run directory.",
        default: "NCCL's own",
        reader: "NCCL",
    },
    Variable {
        name: "CUDA_VISIBLE_DEVICES",
        meaning: "Which GPUs a rank sees; it takes number `local rank % visible`.",
        default: "all",
        reader: "CUDA",
    },
    Variable {
        name: CUBLAS_WORKSPACE,
        meaning: "Memory of cuBLAS. With `run.deterministic` on a GPU it is set to `:4096:8` unless it is set already.",
        default: "cuBLAS's own",
        reader: "CUDA's libraries",
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
        assert!(found >= 5);
    }

    /// Whatever follows our prefix in a text.
    fn own_names(text: &str) -> Vec<String> {
        let prefix = RUNS.strip_suffix("RUNS").unwrap();
        let end = |rest: &str| rest.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(rest.len());
        let names = text.split(prefix).skip(1).map(|rest| format!("{prefix}{}", &rest[..end(rest)]));
        names.filter(|name| name.len() > prefix.len()).collect()
    }

    fn texts_below(folder: &std::path::Path, into: &mut Vec<(std::path::PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                texts_below(&path, into);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                into.push((path, text));
            }
        }
    }

    #[test]
    fn each_variable_of_ours_in_the_sources_is_in_the_table() {
        let root = crate::config::tests::repository("");
        let mut texts = Vec::new();
        ["src", "harness", "ci", "configs"]
            .iter()
            .for_each(|folder| texts_below(&root.join(folder), &mut texts));
        let build = root.join("build.rs");
        texts.push((build.clone(), std::fs::read_to_string(build).unwrap()));
        let mut used = std::collections::BTreeSet::new();
        for (path, text) in &texts {
            for name in own_names(text) {
                let known = VARIABLES.iter().any(|variable| variable.name == name);
                assert!(known, "{} reads {name}: describe it in src/config/env.rs", path.display());
                used.insert(name);
            }
        }
        for variable in VARIABLES.iter().filter(|variable| !own_names(variable.name).is_empty()) {
            assert!(used.contains(variable.name), "nothing reads {}", variable.name);
        }
    }

    #[test]
    fn entries_are_complete_and_unique() {
        for (index, variable) in VARIABLES.iter().enumerate() {
            assert!(variable.meaning.ends_with('.') && !variable.default.is_empty(), "{}", variable.name);
            assert!(VARIABLES[..index].iter().all(|other| other.name != variable.name), "{}", variable.name);
        }
    }
}
