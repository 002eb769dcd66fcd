//! Where the trainer, the work folder and what a plan's `{placeholders}` stand for are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why no run can be started.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("no trainer at {}: build it (`cargo build --release`) or name it with --trainer", .0.display())]
    NoTrainer(PathBuf),
    #[error("{} is not empty: runs are never mixed with earlier ones; name another --work-dir", .0.display())]
    WorkDirInUse(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl PlaceError {
    /// For `map_err`: the path goes into the message.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What the placeholders of a plan's commands stand for.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// `{plan_dir}`: folder of the plan's file.
    pub plan_dir: &'a Path,
    /// `{trainer}`; `{python}` is looked for from here.
    pub trainer: &'a Path,
    /// `{golden}`: the run to repeat.
    pub golden: Option<&'a Path>,
    /// `{run_dir}`: where to write.
    pub run_dir: &'a Path,
    /// `{ranks}`.
    pub ranks: u32,
}

impl Places<'_> {
    pub fn fill(&self, words: &[String]) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let places = [
            ("{golden}", self.golden.map_or(String::new(), text)),
            ("{run_dir}", text(self.run_dir)),
            ("{plan_dir}", text(self.plan_dir)),
            ("{trainer}", text(self.trainer)),
            ("{python}", find_python(self.trainer)),
            ("{ranks}", self.ranks.to_string()),
        ];
        let fill =
            |word: &String| places.iter().fold(word.clone(), |word, (name, at)| word.replace(name, at));
        words.iter().map(fill).collect()
    }
}

/// `LOCKSTEP_PYTHON`, the project's own `.toolchain/bin/python` above the trainer, or `python3` on the PATH.
fn find_python(trainer: &Path) -> String {
    let own =
        || trainer.ancestors().map(|folder| folder.join(".toolchain/bin/python")).find(|path| path.exists());
    let found = std::env::var_os("LOCKSTEP_PYTHON").map(PathBuf::from).or_else(own);
    found.unwrap_or_else(|| "python3".into()).to_string_lossy().into_owned()
}

/// The trainer that was named, or `LOCKSTEP_TRAINER`, or `lockstep` beside this program.
pub fn find_trainer(named: Option<&Path>) -> Result<PathBuf, PlaceError> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("lockstep"));
    let from_environment = || std::env::var_os("LOCKSTEP_TRAINER").map(PathBuf::from);
    let path =
        named.map(Path::to_owned).or_else(from_environment).or_else(beside).unwrap_or("lockstep".into());
    match std::fs::canonicalize(&path) {
        Ok(found) if found.is_file() => Ok(found),
        _ => Err(PlaceError::NoTrainer(path)),
    }
}

/// The folder for runs: the named one, or `runs/COMMAND-PLAN-TIME`. It must be empty or new.
pub fn make_work_dir(named: Option<&Path>, command: &str, plan: &Path) -> Result<PathBuf, PlaceError> {
    let path = named.map(Path::to_owned).unwrap_or_else(|| {
        let runs = std::env::var_os("LOCKSTEP_RUNS").map_or("runs".into(), PathBuf::from);
        let plan = plan.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        runs.join(format!("{command}-{plan}-{}", unix_s()))
    });
    std::fs::create_dir_all(&path).map_err(PlaceError::io(&path))?;
    let path = std::fs::canonicalize(&path).map_err(PlaceError::io(&path))?;
    let mut entries = std::fs::read_dir(&path).map_err(PlaceError::io(&path))?;
    if entries.next().is_some() {
        return Err(PlaceError::WorkDirInUse(path));
    }
    Ok(path)
}

/// Ctrl-C and SIGTERM must end the launched ranks too: they are in process groups of their own.
pub fn stop_flag(work_dir: &Path) -> Result<Arc<AtomicBool>, PlaceError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(PlaceError::io(work_dir))?;
    }
    Ok(flag)
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_wherever_they_stand() {
        let places = Places {
            plan_dir: Path::new("/plans"),
            trainer: Path::new("/bin/t"),
            golden: None,
            run_dir: Path::new("/r"),
            ranks: 3,
        };
        let words =
            ["{trainer}", "--to={run_dir}/x", "-n{ranks}", "{golden}", "{unknown}"].map(str::to_owned);
        assert_eq!(places.fill(&words), ["/bin/t", "--to=/r/x", "-n3", "", "{unknown}"]);
    }
}
