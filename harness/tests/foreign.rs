//! Trainers that are not ours, recorded by harness/python: PyTorch and DeepSpeed really train, on one process and on several
//! over gloo, and the harness must find them equal; with a planted bug it must not.
//!
//! Needs a Python with PyTorch: `.toolchain/bin/python-peers` (`ci/setup --peers`, which adds DeepSpeed), else
//! `.toolchain/bin/python`, else LOCKSTEP_PYTHON. What is missing is named and skipped.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::harness;

/// No training here takes longer unless it hangs: importing PyTorch takes most of it.
const LIMIT: Duration = Duration::from_secs(300);

/// Trainings take turns: there are few cores.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A Python that can import `modules`; names what is missing.
fn python(modules: &str) -> Option<PathBuf> {
    let toolchain = root().join(".toolchain/bin");
    let candidates = [toolchain.join("python-peers"), toolchain.join("python")];
    let named = std::env::var_os("LOCKSTEP_PYTHON").map(PathBuf::from);
    let can = |python: &PathBuf| {
        let output = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = named.into_iter().chain(candidates).find(can);
    if found.is_none() {
        eprintln!("skipped: no Python with {modules} (ci/setup --peers)");
    }
    found
}

/// One training: an example, the bug that is planted in the library under it, and how many ranks it has.
struct Training<'a> {
    python: &'a Path,
    example: &'a str,
    bug: &'a str,
    ranks: usize,
    options: &'a [&'a str],
}

impl Training<'_> {
    /// Runs all ranks to their end; returns what they said if one fails. On a busy machine about one PyTorch DDP process in twenty aborts
    /// in gloo's threads when it has done its work and leaves (compare PyTorch #190489): then all of it is done once more, up to three times.
    fn run(&self, run_dir: &Path) -> Result<(), String> {
        for _ in 0..3 {
            match self.run_once(run_dir) {
                Err(said) if said.contains("terminate called without an active exception") => {
                    eprintln!("once more: {said}");
                    std::fs::remove_dir_all(run_dir).map_err(|error| format!("{error}: {said}"))?;
                }
                ended => return ended,
            }
        }
        self.run_once(run_dir)
    }

    fn run_once(&self, run_dir: &Path) -> Result<(), String> {
        let _turn = take_turn();
        let port = free_port();
        let mut ranks: Vec<Child> = (0..self.ranks).map(|rank| self.start(run_dir, rank, port)).collect();
        let deadline = Instant::now() + LIMIT;
        let mut codes = vec![None; ranks.len()];
        while codes.iter().any(Option::is_none) && Instant::now() < deadline {
            for (code, rank) in codes.iter_mut().zip(&mut ranks) {
                *code = code.or_else(|| rank.try_wait().unwrap());
            }
            if codes.iter().flatten().any(|status| !status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = String::new();
        for rank in &mut ranks {
            let _ = rank.kill();
            let _ = rank.wait();
            let _ = rank.stderr.take().unwrap().read_to_string(&mut said);
        }
        match codes.iter().all(|code| code.is_some_and(|status| status.success())) {
            true => Ok(()),
            false => Err(format!("{} ended with {codes:?}: {said}", self.example)),
        }
    }

    fn start(&self, run_dir: &Path, rank: usize, port: u16) -> Child {
        let mut command = Command::new(self.python);
        command.arg("-B").arg(root().join("harness/python/tests/planted.py")).args([self.bug, self.example]);
        command.arg("--run-dir").arg(run_dir).args(self.options);
        command.env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1").env("DS_ACCELERATOR", "cpu");
        command.env("GLOO_SOCKET_IFNAME", "lo").env("TORCH_EXTENSIONS_DIR", extensions(self.python));
        // DeepSpeed compiles its op with ninja, from its own environment, if that has not been done.
        if let Some(bin) = prefix(self.python).map(|prefix| prefix.join("bin")) {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", bin.display()));
        }
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(name);
        }
        if self.ranks > 1 || self.example == "deepspeed_zero1" {
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command.env("WORLD_SIZE", self.ranks.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        }
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        quiet.spawn().expect("start Python")
    }
}

/// The folder of a Python's environment.
fn prefix(python: &Path) -> Option<PathBuf> {
    let output = Command::new(python).args(["-c", "import sys; print(sys.prefix)"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().into())
}

/// Where `ci/setup --peers` has compiled DeepSpeed's op.
fn extensions(python: &Path) -> PathBuf {
    prefix(python).map_or_else(std::env::temp_dir, |prefix| prefix.join("torch_extensions"))
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder of runs.
struct Stand {
    folder: tempfile::TempDir,
    python: PathBuf,
}

impl Stand {
    fn new(modules: &str) -> Option<Self> {
        Some(Self { python: python(modules)?, folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, name: &str, bug: &str, example: &str, ranks: usize, options: &[&str]) {
        let training = Training { python: &self.python, example, bug, ranks, options };
        training.run(Path::new(&self.path(name))).unwrap();
    }

    /// One process with the same global batch.
    fn golden(&self, micro_batches: &str) {
        self.train("golden", "none", "plain", 1, &["--micro-batches", micro_batches]);
    }

    /// Exit code and text of a comparison with the golden run.
    fn compare(&self, name: &str, options: &[&str]) -> (i32, String) {
        let (golden, candidate) = (self.path("golden"), self.path(name));
        let (code, out, errors) = harness(&[&["compare", &golden, &candidate], options].concat());
        (code, out + &errors)
    }

    fn lint(&self, name: &str) -> (i32, String) {
        let (code, out, errors) = harness(&["lint", &self.path(name), "--strict"]);
        (code, out + &errors)
    }

    fn clean(&self, name: &str) {
        let (code, text) = self.lint(name);
        assert_eq!(code, 0, "{name}: {text}");
    }
}

const EXACT: &[&str] = &[];
/// More than two ranks, or flat buffers, add in another order.
const CLOSE: &[&str] = &["--rtol", "1e-5", "--atol", "1e-6"];

/// An example on several ranks against one process: equal, and found to differ when a bug is planted.
fn example(modules: &str, name: &str, equal: &[&str], bug: &str, found: &str, lint_finds: Option<&str>) {
    let Some(stand) = Stand::new(modules) else { return };
    stand.golden("2");
    stand.clean("golden");
    stand.train("two", "none", name, 2, &["--micro-batches", "2"]);
    let (code, text) = stand.compare("two", equal);
    assert_eq!(code, 0, "{text}");
    // All that there is was compared.
    for check in
        ["sample ids", "losses", "gradient norms", "checkpoint parameters", "checkpoint optimizer state"]
    {
        let row = text.lines().find(|line| line.starts_with(check)).unwrap();
        assert!(row.contains("equal") || row.contains("within"), "{row}");
    }
    stand.clean("two");
    stand.train("planted", bug, name, 2, &["--micro-batches", "2"]);
    let (code, text) = stand.compare("planted", CLOSE);
    assert_eq!(code, 100, "{text}");
    assert!(text.contains(found), "{text}");
    let (code, text) = stand.lint("planted");
    match lint_finds {
        Some(check) => {
            assert_eq!(code, 100, "{text}");
            assert!(text.contains(&format!("error {check}: ")), "{text}");
        }
        None => assert_eq!(code, 0, "{text}"),
    }
}

const TORCH: &str = "torch, numpy, xxhash, blake3, safetensors";

#[test]
fn pytorch_ddp() {
    example(
        TORCH,
        "ddp",
        EXACT,
        "no_all_reduce",
        "First difference:\n  step 1, reduced gradient, 0.weight",
        Some("replicas"),
    );
}

#[test]
fn torch_zero_redundancy_optimizer() {
    example(
        TORCH,
        "zero_redundancy",
        EXACT,
        "no_broadcast",
        "First difference:\n  step 1, parameters, ",
        Some("replicas"),
    );
}

#[test]
fn deepspeed_zero1() {
    let modules = "deepspeed, torch, numpy, xxhash, blake3, safetensors";
    let found = "First difference:\n  step 1, reduced gradient, ";
    example(modules, "deepspeed_zero1", CLOSE, "no_reduction", found, None);
}

#[test]
fn torch_fully_shard() {
    let found = "First difference:\n  step 1, reduced gradient, ";
    example(TORCH, "fully_shard", EXACT, "no_reduce_scatter", found, None);
}

#[test]
fn torch_fully_sharded_data_parallel() {
    let found = "First difference:\n  step 1, reduced gradient, ";
    example(TORCH, "fsdp", EXACT, "no_reduce_scatter", found, None);
}

/// With three ranks, or more micro-batches than ranks, sums have another order: close, and not the same bits.
#[test]
fn more_than_two_terms_have_more_than_one_sum() {
    let Some(stand) = Stand::new(TORCH) else { return };
    stand.golden("6");
    stand.train("three", "none", "ddp", 3, &["--micro-batches", "6"]);
    let (code, text) = stand.compare("three", CLOSE);
    assert_eq!(code, 0, "{text}");
    assert_eq!(stand.compare("three", EXACT).0, 100);
    stand.clean("three");
}

/// One process against itself: any two runs have the same bits, unless gradients pile up.
#[test]
fn a_plain_loop() {
    let Some(stand) = Stand::new(TORCH) else { return };
    stand.golden("2");
    stand.train("again", "none", "plain", 1, &["--micro-batches", "2"]);
    let (code, text) = stand.compare("again", EXACT);
    assert_eq!(code, 0, "{text}");
    stand.train("planted", "no_zero_grad", "plain", 1, &["--micro-batches", "2"]);
    let (code, text) = stand.compare("planted", CLOSE);
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("First difference:\n  step 2, reduced gradient, "), "{text}");
}

/// What one run shows by itself: ranks that read the same samples, and ranks that draw the same dropout masks.
#[test]
fn lint_needs_no_golden_run() {
    let Some(stand) = Stand::new(TORCH) else { return };
    stand.train("samples", "same_samples", "ddp", 2, &["--micro-batches", "2"]);
    let (code, text) = stand.lint("samples");
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains("error samples: samples.jsonl:1: step 1, micro-batch 1, rank 1: sample "),
        "{text}"
    );
    let dropout = ["--micro-batches", "2", "--dropout", "0.2"];
    stand.train("masks", "same_masks", "ddp", 2, &dropout);
    let (code, text) = stand.lint("masks");
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains(
            "error dropout-masks: samples.jsonl:1: step 1, micro-batch 1, rank 1: its dropout masks are those of micro-batch 0 \
             of rank 0"
        ),
        "{text}"
    );
    stand.train("seeded", "own_masks", "ddp", 2, &dropout);
    stand.clean("seeded");
}

/// `pip install` into an environment of its own, without a network.
#[test]
fn the_module_installs() {
    let Some(python) = python("torch, numpy, xxhash, setuptools") else { return };
    let _turn = take_turn();
    let folder = tempfile::tempdir().unwrap();
    let (source, venv) = (folder.path().join("source"), folder.path().join("venv"));
    let run = |command: &mut Command| {
        let output = command.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{command:?}: {text}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    // Building leaves files beside the source.
    run(Command::new("cp").arg("-r").arg(root().join("harness/python")).arg(&source));
    run(Command::new(&python).args(["-m", "venv", "--without-pip"]).arg(&venv));
    let inside = venv.join("bin/python");
    let sites = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let packages = "import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))";
    let site = run(Command::new(&inside).args(["-c", sites]));
    let layer = run(Command::new(&python).args(["-c", packages]));
    std::fs::write(Path::new(&site).join("layer.pth"), layer).unwrap();
    let offline = ["--no-index", "--no-deps", "--no-build-isolation"];
    run(Command::new(&python)
        .args(["-m", "pip", "--python"])
        .arg(&inside)
        .arg("install")
        .args(offline)
        .arg(&source));
    let import = "import lockstep_record as r; print(r.__file__, r.Recorder.__name__)";
    let found = run(Command::new(&inside).args(["-c", import]).current_dir(folder.path()));
    assert!(found.starts_with(&site) && found.ends_with("Recorder"), "{found}");
}
