//! How N ranks are started: the MPI launcher's command line.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command that starts N ranks of a program: everything before the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// `{ranks}` stands for N.
    argv: Vec<String>,
}

/// What kind of `mpirun` it is: their options differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    OpenMpi,
    Other,
}

impl Launcher {
    /// The launcher that the flag, `LOCKSTEP_MPIRUN` or the plan names, in that order; else the project's own
    /// `.toolchain/bin/mpirun` above the trainer, else `mpirun` on the PATH. An error tells the remedy.
    pub fn find(flag: Option<&str>, plan: Option<&[String]>, trainer: &Path) -> Result<Self, String> {
        let environment = std::env::var("LOCKSTEP_MPIRUN").ok().filter(|value| !value.trim().is_empty());
        let named = flag.map(words).or(environment.as_deref().map(words)).or(plan.map(<[String]>::to_vec));
        let command = named.or_else(|| Some(vec![find_mpirun(trainer)?.to_string_lossy().into_owned()]));
        let Some(command) = command.filter(|command| !command.is_empty()) else {
            return Err("there is no mpirun: install Open MPI, or name a launcher in LOCKSTEP_MPIRUN".into());
        };
        if command.iter().any(|word| word.contains("{ranks}")) {
            return Ok(Self { argv: command });
        }
        // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        Ok(Self { argv: with_options(command.clone(), flavour(&command), root) })
    }

    /// The command line that runs `program` on `ranks` ranks. One rank needs no launcher.
    pub fn wrap(
        launcher: &Result<Self, String>,
        ranks: u32,
        program: Vec<String>,
    ) -> Result<Vec<String>, String> {
        if ranks == 1 {
            return Ok(program);
        }
        let argv = launcher.as_ref().map_err(String::clone)?.argv.iter();
        Ok(argv.map(|word| word.replace("{ranks}", &ranks.to_string())).chain(program).collect())
    }
}

/// A path that exists is one word, blanks and all; anything else is split at blanks.
fn words(command: &str) -> Vec<String> {
    if Path::new(command).is_file() {
        vec![command.to_owned()]
    } else {
        command.split_whitespace().map(str::to_owned).collect()
    }
}

fn find_mpirun(trainer: &Path) -> Option<PathBuf> {
    let own =
        trainer.ancestors().map(|folder| folder.join(".toolchain/bin/mpirun")).find(|path| path.is_file());
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("mpirun")).find(|candidate| candidate.is_file())
    };
    own.or_else(on_path)
}

fn flavour(command: &[String]) -> Flavour {
    let version = command.first().and_then(|program| {
        Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    });
    match version {
        Some(output) if String::from_utf8_lossy(&output.stdout).contains("Open MPI") => Flavour::OpenMpi,
        _ => Flavour::Other,
    }
}

/// Ranks may outnumber cores, and must not be bound: Open MPI would bind each with all its threads to one
/// core.
fn with_options(mut command: Vec<String>, flavour: Flavour, root: bool) -> Vec<String> {
    let options: &[&str] = match (flavour, root) {
        (Flavour::OpenMpi, true) => &["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"],
        (Flavour::OpenMpi, false) => &["--oversubscribe", "--bind-to", "none"],
        (Flavour::Other, _) => &[],
    };
    command.extend(options.iter().chain(&["-np", "{ranks}"]).map(|&word| word.to_owned()));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn one_rank_is_started_plainly() {
        let none = Err("no mpirun".to_owned());
        assert_eq!(Launcher::wrap(&none, 1, strings(&["t"])), Ok(strings(&["t"])));
        assert_eq!(Launcher::wrap(&none, 2, strings(&["t"])), Err("no mpirun".to_owned()));
    }

    #[test]
    fn open_mpi_gets_its_options_and_others_only_the_count() {
        let argv = with_options(strings(&["mpirun"]), Flavour::OpenMpi, true);
        let launcher = Ok(Launcher { argv });
        let expected = strings(&[
            "mpirun",
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
            "-np",
            "3",
            "t",
        ]);
        assert_eq!(Launcher::wrap(&launcher, 3, strings(&["t"])), Ok(expected));
        assert_eq!(
            with_options(strings(&["mpiexec"]), Flavour::Other, true),
            strings(&["mpiexec", "-np", "{ranks}"])
        );
    }

    #[test]
    fn a_launcher_with_a_place_for_the_count_is_taken_as_it_is() {
        let launcher = Launcher::find(Some("srun -n {ranks} --mpi=pmix"), None, Path::new("/t"));
        let expected = strings(&["srun", "-n", "4", "--mpi=pmix", "t"]);
        assert_eq!(Launcher::wrap(&launcher, 4, strings(&["t"])), Ok(expected));
    }
}
