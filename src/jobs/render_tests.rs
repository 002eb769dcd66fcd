//! Scripts: what they look like, whether shells and shellcheck take them, and whether a value can run anything.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use minijinja::Error;
use proptest::prelude::*;

use super::catalogue::catalogue;
use super::plan::tests::request;
use super::plan::{Job, Request, plan};
use super::render::{render, render_with};
use super::{Kind, Site};

const SLURM: &str = include_str!("../../slurm/site.yaml");
const TORQUE: &str = include_str!("../../pbs/site-torque.yaml");
const OPENPBS: &str = include_str!("../../pbs/site-openpbs.yaml");
/// Site, its scheduler, and its name in snapshots.
const SITES: [(&str, Kind, &str); 4] = [
    (SLURM, Kind::Slurm, "slurm"),
    (TORQUE, Kind::Pbs, "torque"),
    (OPENPBS, Kind::Pbs, "openpbs"),
    ("", Kind::Local, "local"),
];

fn script(kind: Kind, job: &str, site: &str) -> String {
    render(&plan(request(kind, job), Site::parse(site).unwrap()).unwrap()).unwrap()
}

fn jobs() -> Vec<String> {
    catalogue().unwrap().into_keys().collect()
}

#[test]
fn a_whole_script_for_each_site() {
    for (site, kind, name) in SITES {
        insta::assert_snapshot!(format!("train-{name}"), script(kind, "train", site));
    }
}

/// Of the other jobs, the lines that `train` does not have.
#[test]
fn what_is_special_about_each_job() {
    for (site, kind, name) in SITES {
        let plain = script(kind, "train", site);
        let mut text = String::new();
        for job in jobs().iter().filter(|job| *job != "train") {
            let script = script(kind, job, site);
            let special: Vec<&str> =
                script.lines().filter(|line| !plain.lines().any(|other| other == *line)).collect();
            text += &format!("===== {job}\n{}\n", special.join("\n"));
        }
        insta::assert_snapshot!(format!("jobs-{name}"), text);
    }
}

/// Schedulers read their lines up to the first command.
#[test]
fn directives_come_before_anything_else() {
    for (site, kind, name) in SITES.into_iter().take(3) {
        let prefix = if kind == Kind::Slurm { "#SBATCH" } else { "#PBS" };
        for job in jobs() {
            let script = script(kind, &job, site);
            let lines: Vec<&str> =
                script.lines().skip(1).take_while(|line| line.starts_with(prefix)).collect();
            let all = script.lines().filter(|line| line.starts_with(prefix)).count();
            assert!(lines.len() == all && all >= 6, "{name} {job}: {lines:#?}");
        }
    }
}

/// Shellcheck takes a second a script, so it sees every template once, and bash every script.
#[test]
fn bash_and_shellcheck_take_every_script() {
    let folder = tempfile::tempdir().unwrap();
    let mut to_check = Vec::new();
    for (site, kind, name) in SITES {
        for (variant, extra) in
            [("", ""), ("-launcher", "launcher: [run, '-n{ranks}', '{ranks_per_node}']\n")]
        {
            for job in jobs() {
                let file = folder.path().join(format!("{name}{variant}-{job}.sh"));
                fs::write(&file, script(kind, &job, &format!("{extra}{site}"))).unwrap();
                let checked = Command::new("bash").arg("-n").arg(&file).output().unwrap();
                assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
                if job == "train" || (kind == Kind::Slurm && variant.is_empty()) {
                    to_check.push(file);
                }
            }
        }
    }
    match Command::new("shellcheck").arg("--shell=bash").args(&to_check).output() {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(error) => eprintln!("skipped: shellcheck: {error}"),
    }
}

#[test]
fn a_launchers_words_get_the_script_s_numbers() {
    let site = "launcher: [mpiexec, -n, '{ranks}', 'x{ranks_per_node}y', 'a b']\n";
    let script = script(Kind::Pbs, "zero1", &format!("{site}gpus_per_node: 2"));
    assert!(script.contains(r#"options=(mpiexec -n "$ranks" x"$RANKS_PER_NODE"y 'a b')"#), "{script}");
}

/// Folders in which scripts run, with a program that writes down how it was called.
struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = Self { folder };
        let record = "#!/bin/bash\nprintf '%s\\0' \"$@\" \"$HOSTILE\" >>\"$RECORD\"\n";
        fs::write(sandbox.path("record"), record).unwrap();
        fs::set_permissions(sandbox.path("record"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(
            sandbox.path("modules.sh"),
            format!("module() {{ '{}' module \"$@\"; }}\n", sandbox.text("record")),
        )
        .unwrap();
        sandbox
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A job in which every value is this one, wherever it may be.
    fn job(&self, kind: Kind, value: &str) -> Result<Job, super::JobError> {
        let mut site = Site::parse("{}").unwrap();
        let owned = || vec![value.to_owned()];
        site.modules.init = Some(self.text("modules.sh"));
        site.modules.folders = owned();
        site.modules.load = owned();
        site.env.insert("HOSTILE".into(), value.to_owned());
        site.launcher = vec![self.text("record"), format!("{value}{{ranks}}{value}")];
        site.container = Some(super::site::Container {
            runtime: self.text("record"),
            image: value.to_owned(),
            options: owned(),
            binds: owned(),
        });
        site.programs.trainer = Some(value.to_owned());
        site.programs.harness = Some(value.to_owned());
        let mut request = Request { ranks: Some(2), ..request(kind, "train") };
        request.dir = self.path("job").join(value);
        request.submit_dir = self.path("submit").join(value);
        request.arguments.push(value.to_owned());
        plan(request, site)
    }

    /// Runs a script, and returns the words that were written down.
    fn run(&self, job: &Job, script: &str) -> Vec<String> {
        fs::create_dir_all(&job.dir).unwrap();
        fs::create_dir_all(&job.submit_dir).unwrap();
        fs::write(self.path("job.sh"), script).unwrap();
        let mut command = Command::new("timeout");
        command.args(["20", "bash"]).arg(self.path("job.sh")).current_dir(self.folder.path());
        for name in ["SLURM_JOB_ID", "PBS_JOBID", "PBS_ARRAYID", "PBS_ARRAY_INDEX", "SLURM_ARRAY_TASK_ID"] {
            command.env_remove(name);
        }
        let output = command.env("RECORD", self.path("words")).output().unwrap();
        assert_ne!(output.status.code(), Some(124), "the script hung");
        let words = fs::read(self.path("words")).unwrap_or_default();
        words.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    fn has_canary(&self) -> bool {
        contains(self.folder.path(), "CANARY")
    }
}

fn contains(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        entry.file_name() == name || (entry.file_type().unwrap().is_dir() && contains(&entry.path(), name))
    })
}

/// Text that a shell would act on.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = [
        "$(touch CANARY)",
        "`touch CANARY`",
        "'; touch CANARY; '",
        "\"; touch CANARY; \"",
        "; touch CANARY",
        "&& touch CANARY",
        "| touch CANARY",
        ") touch CANARY (",
        "> CANARY",
        "\ntouch CANARY\n",
        "\rtouch CANARY",
        "'",
        "\"",
        "\\",
        " ",
        "!!",
        "*",
        "~",
        "#",
        "{{ 7 }}",
        "{%",
        "$HOME",
        "${IFS}",
        "é",
        "a",
        "%s",
        "=",
        "^",
        "-x",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 1..5)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// No value runs anything, and each arrives as it was written.
    #[test]
    fn a_hostile_value_is_a_word_or_refused(value in hostile()) {
        for kind in [Kind::Local, Kind::Slurm, Kind::Pbs] {
            let sandbox = Sandbox::new();
            let Ok(job) = sandbox.job(kind, &value) else {
                // What is refused: more than one line, and a program that looks like an option.
                prop_assert!(value.contains(['\n', '\r']) || value.starts_with('-'), "{value:?}");
                continue;
            };
            let words = sandbox.run(&job, &render(&job).unwrap());
            prop_assert!(!sandbox.has_canary(), "{kind:?}: {value:?} ran");
            // Modules twice with the environment not yet set; then launcher, container and training in one call.
            let launched = format!("{value}2{value}");
            let at = words.iter().position(|word| *word == launched);
            prop_assert!(at.is_some(), "{kind:?}: {value:?} did not arrive: {words:?}");
            let arrived = &words[at.unwrap_or_default() + 1..];
            let trainer = ["exec", &value, "--bind", &value, &value, &value, "train"];
            prop_assert_eq!(&arrived[1..8], &trainer[..]);
            prop_assert!(arrived.iter().filter(|word| **word == value).count() >= 6, "{arrived:?}");
        }
    }

    /// What goes into a scheduler's line is refused unless it is harmless.
    #[test]
    fn a_hostile_directive_is_refused(value in hostile()) {
        let harmless = value.chars().all(|c| c.is_ascii_alphanumeric() || "_.:@%+,-/=".contains(c)) && !value.starts_with('-');
        for key in ["account", "queue"] {
            let mut site = Site::parse("{}").unwrap();
            let slot = if key == "account" { &mut site.account } else { &mut site.queue };
            *slot = Some(value.clone());
            prop_assert_eq!(plan(request(Kind::Slurm, "train"), site).is_ok(), harmless, "{} {:?}", key, value);
        }
        let mut site = Site::parse("{}").unwrap();
        site.directives = vec![format!("--comment={value}")];
        if let Ok(job) = plan(request(Kind::Slurm, "train"), site) {
            prop_assert!(!value.contains(['\n', '\r', '$', '`', '"', '\'', '\\', ';', '#']), "{value:?}");
            let line = format!("#SBATCH --comment={value}");
            prop_assert!(render(&job).unwrap().lines().any(|other| other == line));
        }
    }
}

/// The control: without the quoting, the same test sees a value run.
#[test]
fn without_quoting_a_value_runs() {
    let sandbox = Sandbox::new();
    let job = sandbox.job(Kind::Local, "$(touch CANARY)").unwrap();
    let unquoted: fn(&str) -> Result<String, Error> = |text| Ok(text.to_owned());
    sandbox.run(&job, &render_with(&job, unquoted).unwrap());
    assert!(sandbox.has_canary());
}
