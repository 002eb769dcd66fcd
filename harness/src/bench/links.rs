//! The link that runs go over: set up before the first run over it, taken down after the last, whatever
//! happens.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::plan::{LOOPBACK, Link, Plan};
use crate::launch::{Launch, Places, complaint};

/// Limit of one command of `setup` or `teardown`.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// At most one link is up at a time.
pub struct Links<'a> {
    plan: &'a Plan,
    trainer: &'a Path,
    work_dir: &'a Path,
    stop: &'a AtomicBool,
    /// Name of the link that is up, and whether its set-up succeeded.
    current: Option<(String, Result<(), String>)>,
}

impl<'a> Links<'a> {
    pub fn new(plan: &'a Plan, trainer: &'a Path, work_dir: &'a Path, stop: &'a AtomicBool) -> Self {
        Self { plan, trainer, work_dir, stop, current: None }
    }

    /// Brings the link up, and another one down. The link's launcher; None on this machine alone.
    pub fn switch_to(&mut self, name: &str) -> Result<Option<&'a [String]>, String> {
        let link = match name {
            LOOPBACK => None,
            _ => Some(self.plan.links.get(name).ok_or_else(|| format!("there is no link `{name}`"))?),
        };
        if self.current.as_ref().is_none_or(|(current, _)| current != name) {
            self.leave();
            let up = link.map_or(Ok(()), |link| self.commands(name, "setup", &link.setup, self.stop));
            self.current = Some((name.to_owned(), up));
        }
        match &self.current {
            Some((_, Err(problem))) => Err(problem.clone()),
            _ => Ok(link.map(|link| link.launcher.as_slice())),
        }
    }

    /// Runs the teardown of what is up, also after a set-up that failed half-way.
    fn leave(&mut self) {
        let Some((name, _)) = self.current.take() else { return };
        if let Some(Link { teardown, .. }) = self.plan.links.get(&name) {
            // Being told to stop must not keep the teardown from running.
            let stop = AtomicBool::new(false);
            // Its complaint is in its log; what was measured is not touched by it.
            let _ = self.commands(&name, "teardown", teardown, &stop);
        }
    }

    fn commands(
        &self,
        link: &str,
        what: &str,
        commands: &[Vec<String>],
        stop: &AtomicBool,
    ) -> Result<(), String> {
        let folder: PathBuf = self.work_dir.join(format!("link-{link}"));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for (index, command) in commands.iter().enumerate() {
            let places = Places {
                plan_dir: &self.plan.folder,
                trainer: self.trainer,
                golden: None,
                run_dir: &folder,
                ranks: 1,
            };
            let log = folder.join(format!("{what}-{}", index + 1));
            let launch = Launch {
                argv: places.fill(command),
                stdout: log.with_extension("stdout"),
                stderr: log.with_extension("stderr"),
                timeout: COMMAND_TIMEOUT,
                stop,
            };
            let (ended, record) = launch.run();
            if let Some(text) = complaint(&ended, &record) {
                return Err(format!("link `{link}`: {what}: {}: {text}", record.argv.join(" ")));
            }
        }
        Ok(())
    }
}

impl Drop for Links<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
