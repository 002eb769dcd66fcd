//! Every kind of finding is provoked, and a healthy world provokes none.

use std::collections::BTreeSet;

use lockstep_record::exit;

use super::catalogue::*;
use super::checks::examine;
use super::facts::*;
use super::finding::{Finding, Kind, Severity};
use super::report::Report;

/// Two ranks on each of two hosts, with two GPUs and nothing to complain of.
fn healthy() -> Vec<Facts> {
    (0..4).map(|rank| one(rank, 4, ["mars", "venus"][rank / 2])).collect()
}

/// A process on its own.
fn alone() -> Vec<Facts> {
    vec![Facts { backend: "solo".into(), environment: [].into(), ..one(0, 1, "mars") }]
}

fn one(rank: usize, size: usize, host: &str) -> Facts {
    let host_number = if host == "mars" { 1 } else { 2 };
    let variables = [
        ("OMPI_COMM_WORLD_SIZE", size.to_string()),
        ("OMPI_COMM_WORLD_RANK", rank.to_string()),
        ("PMIX_RANK", rank.to_string()),
        ("PMIX_VERSION", "4.2.2".into()),
    ];
    Facts {
        rank,
        size,
        backend: "mpi".into(),
        host: host.into(),
        machine: format!("boot of {host}"),
        environment: variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        mpi: Mpi {
            library: "Open MPI v4.1.4".into(),
            thread_level: Some("multiple".into()),
            pmix: Some("4.2.2rc2".into()),
        },
        torch: Torch {
            version: "2.13.0".into(),
            cuda: Some("13.0".into()),
            has_cuda_library: true,
            cpu_capability: "AVX512".into(),
        },
        gpu: Gpu { driver: Some("580.65.06".into()), driver_cuda: Some("13.0".into()), devices: Some(2) },
        nccl: Nccl {
            path: Some("/usr/lib/libnccl.so.2".into()),
            version: Some("2.29.7".into()),
            ..Nccl::default()
        },
        network: Network {
            interfaces: vec![
                interface("eth0", [10, 0, 0, host_number]),
                interface("eth1", [172, 17, 5, host_number]),
            ],
            rdma: Vec::new(),
        },
        limits: Limits {
            memlock_bytes: None,
            open_files: Some(1024),
            file_bytes: None,
            address_space_bytes: None,
            shm: Some(SharedMemory { total_bytes: 8 << 30, free_bytes: 8 << 30, ..SharedMemory::default() }),
        },
        cpu: Cpu { threads_per_rank: 2, online: 4, mask: vec![0, 1, 2, 3], usable: 4 },
        clock: Clock { ahead_s: 0.001, is_synchronised: Some(true) },
        folders: [Purpose::Runs, Purpose::Temporary, Purpose::Cache].map(folder).into(),
        pbs_hosts: None,
        container: None,
        huge_pages: Some("madvise".into()),
    }
}

fn interface(name: &str, address: [u8; 4]) -> Interface {
    Interface {
        name: name.into(),
        is_up: true,
        is_loopback: false,
        ipv4: vec![(address.into(), 24)],
        ipv6: Vec::new(),
    }
}

fn folder(purpose: Purpose) -> Folder {
    Folder {
        purpose,
        path: "/scratch".into(),
        trial: Trial::Written,
        free_bytes: Some(1 << 40),
        free_files: Some(1 << 20),
        is_shared: (purpose == Purpose::Runs).then_some(true),
    }
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.environment.insert(name.into(), value.into());
}

fn log(channels: &[(&str, usize)]) -> NcclLog {
    NcclLog {
        path: "nccl.log".into(),
        version: Some("2.29.7+cuda13.0".into()),
        channels: channels.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        ..NcclLog::default()
    }
}

fn image(digest: &str) -> Option<Container> {
    Some(Container { kind: "apptainer".into(), image: None, digest: Some(digest.into()) })
}

/// A way to make one kind of finding appear in a healthy world: a change of rank 3, or of all ranks.
enum Provocation {
    One(fn(&mut Facts)),
    All(fn(&mut Facts)),
    /// A change of a process without a launcher.
    Alone(fn(&mut Facts)),
    /// Not from facts: the examination itself failed.
    Outside,
}

use Provocation::{All, Alone, One, Outside};

fn provocations() -> Vec<(&'static Kind, Provocation)> {
    vec![
        (&MPI_START, Outside),
        (&MPI_WORLD, Alone(|facts| set(facts, "SLURM_STEP_NUM_TASKS", "4"))),
        (&MPI_WORLD, One(|facts| set(facts, "OMPI_COMM_WORLD_SIZE", "8"))),
        (&MPI_LIBRARY, One(|facts| facts.mpi.library = "Open MPI v5.0.3".into())),
        (&MPI_THREADS, All(|facts| facts.mpi.thread_level = Some("serialized".into()))),
        (&MPI_LAUNCHER, Alone(|facts| set(facts, "PMI_RANK", "0"))),
        (
            &MPI_LAUNCHER,
            Alone(|facts| {
                facts.mpi.library = "MPICH Version: 4.0.2".into();
                set(facts, "PMIX_RANK", "0");
            }),
        ),
        (&PMIX_VERSION, All(|facts| set(facts, "PMIX_VERSION", "2.1.4"))),
        (&SCHEDULER_RANK, One(|facts| set(facts, "PMIX_RANK", "1"))),
        (&SCHEDULER_STALE, One(|facts| set(facts, "SLURM_PROCID", "0"))),
        (
            &SCHEDULER_STALE,
            One(|facts| {
                set(facts, "SLURM_JOB_ID", "17");
                set(facts, "SLURM_STEP_NUM_TASKS", "2");
                set(facts, "SLURM_PROCID", "2");
            }),
        ),
        (
            &SCHEDULER_NODEFILE,
            All(|facts| {
                facts.pbs_hosts = Some(Err("PBS_NODEFILE=/var/spool/17: No such file or directory".into()));
            }),
        ),
        (
            &SCHEDULER_TASKS,
            All(|facts| {
                set(facts, "SLURM_JOB_ID", "17");
                set(facts, "SLURM_NTASKS", "2");
            }),
        ),
        (
            &SCHEDULER_TASKS,
            All(|facts| {
                set(facts, "PBS_JOBID", "17");
                facts.pbs_hosts = Some(Ok(vec!["mars".into(), "venus".into()]));
            }),
        ),
        (
            &SCHEDULER_NODES,
            All(|facts| {
                set(facts, "SLURM_JOB_ID", "17");
                set(facts, "SLURM_JOB_NUM_NODES", "3");
            }),
        ),
        (
            &SCHEDULER_ALONE,
            Alone(|facts| {
                set(facts, "SLURM_JOB_ID", "17");
                set(facts, "SLURM_NTASKS", "4");
            }),
        ),
        (&TORCH_VERSION, One(|facts| facts.torch.version = "2.12.0".into())),
        (&CUDA_DRIVER, One(|facts| facts.gpu.driver_cuda = Some("12.8".into()))),
        (
            &CUDA_HIDDEN,
            One(|facts| {
                facts.gpu = Gpu { driver: Some("580.65.06".into()), ..Gpu::default() };
            }),
        ),
        (&CUDA_CPU_BUILD, All(|facts| facts.torch.has_cuda_library = false)),
        (&GPU_NONE, One(|facts| set(facts, "CUDA_VISIBLE_DEVICES", ""))),
        (&GPU_UNKNOWN, One(|facts| set(facts, "CUDA_VISIBLE_DEVICES", "0,1,2"))),
        (&GPU_SHARED, All(|facts| set(facts, "CUDA_VISIBLE_DEVICES", "0"))),
        (&NCCL_MISSING, All(|facts| facts.nccl = Nccl::default())),
        (
            &NCCL_UNUSABLE,
            All(|facts| {
                let problem = Some("libnccl.so.2 is NCCL 3.1.0".into());
                facts.nccl = Nccl { problem, ..Nccl::default() };
            }),
        ),
        (&NCCL_DOUBLE, All(|facts| facts.nccl.double = Some("test double".into()))),
        (&NCCL_VERSION, One(|facts| facts.nccl.version = Some("2.28.3".into()))),
        (
            &NCCL_LOG,
            One(|facts| {
                facts.nccl.logs = vec![NcclLog { error: Some("no line of NCCL's in it".into()), ..log(&[]) }];
            }),
        ),
        (
            &NCCL_WARNED,
            One(|facts| {
                let warnings = vec!["Call to ibv_reg_mr failed".into()];
                facts.nccl.logs = vec![NcclLog { warnings, warning_count: 3, ..log(&[("P2P", 2)]) }];
            }),
        ),
        (
            &NCCL_SOCKETS,
            All(|facts| {
                facts.network.rdma = vec!["mlx5_0".into()];
                facts.nccl.logs = vec![log(&[("NET/Socket", 4), ("P2P", 4)])];
            }),
        ),
        (&NCCL_NO_P2P, All(|facts| facts.nccl.logs = vec![log(&[("SHM", 4)])])),
        (
            &NCCL_OTHER,
            All(|facts| {
                facts.nccl.logs =
                    vec![NcclLog { version: Some("2.19.3+cuda12.2".into()), ..log(&[("P2P", 1)]) }];
            }),
        ),
        (&NETWORK_NAMED, One(|facts| set(facts, "NCCL_SOCKET_IFNAME", "=eth"))),
        (&NETWORK_NAMED, One(|facts| set(facts, "GLOO_SOCKET_IFNAME", "eth"))),
        (&NETWORK_NAMED, One(|facts| set(facts, "OMPI_MCA_btl_tcp_if_include", "192.168.7.0/24"))),
        (
            &NETWORK_NAMED,
            One(|facts| {
                facts.network.interfaces[1].is_up = false;
                set(facts, "OMPI_MCA_oob_tcp_if_include", "eth0,eth1");
            }),
        ),
        (&NETWORK_NONE, One(|facts| facts.network.interfaces.clear())),
        (
            &NETWORK_SAME_ADDRESS,
            All(|facts| facts.network.interfaces.push(interface("docker0", [172, 17, 0, 1]))),
        ),
        (
            &NETWORK_APART,
            All(|facts| {
                let network = if facts.host == "mars" { 8 } else { 9 };
                facts.network.interfaces = vec![interface("eth0", [10, 0, network, 1])];
            }),
        ),
        (
            &SHM_SMALL,
            All(|facts| {
                facts.limits.shm =
                    Some(SharedMemory { total_bytes: 64 << 20, free_bytes: 60 << 20, ..Default::default() });
            }),
        ),
        (&SHM_ABSENT, One(|facts| facts.limits.shm = None)),
        (
            &SHM_LEFTOVERS,
            All(|facts| {
                let shm = SharedMemory { total_bytes: 8 << 30, free_bytes: 8 << 30, ..Default::default() };
                facts.limits.shm = Some(SharedMemory { leftover_files: 7, leftover_bytes: 28 << 20, ..shm });
            }),
        ),
        (&LIMIT_MEMLOCK, One(|facts| facts.limits.memlock_bytes = Some(0))),
        (
            &LIMIT_MEMLOCK,
            All(|facts| {
                facts.limits.memlock_bytes = Some(8 << 20);
                facts.network.rdma = vec!["mlx5_0".into()];
            }),
        ),
        (&LIMIT_FILES, One(|facts| facts.limits.open_files = Some(100))),
        (&LIMIT_FILE_SIZE, One(|facts| facts.limits.file_bytes = Some(1 << 20))),
        (&LIMIT_MEMORY, One(|facts| facts.limits.address_space_bytes = Some(1 << 33))),
        (&HUGE_PAGES, One(|facts| facts.huge_pages = Some("never".into()))),
        (&CPU_OVERSUBSCRIBED, All(|facts| facts.cpu.threads_per_rank = 3)),
        (&CPU_OVERSUBSCRIBED, All(|facts| facts.cpu.usable = 3)),
        (&CPU_BOUND, One(|facts| facts.cpu.mask = vec![2])),
        (&CPU_OMP, One(|facts| set(facts, "OMP_NUM_THREADS", "8"))),
        (&CPU_CAPABILITY, One(|facts| facts.torch.cpu_capability = "AVX2".into())),
        (&CPU_SWITCHED, All(|facts| set(facts, "MKL_CBWR", "COMPATIBLE"))),
        (&CLOCK_OFFSET, One(|facts| facts.clock.ahead_s = -2.5)),
        (&CLOCK_FREE, One(|facts| facts.clock.is_synchronised = Some(false))),
        (&PATH_RUNS, One(|facts| facts.folders[0].trial = refused())),
        (&PATH_TEMPORARY, One(|facts| facts.folders[1].trial = refused())),
        (&PATH_CACHE, One(|facts| facts.folders[2].trial = refused())),
        (&PATH_FULL, One(|facts| facts.folders[0].trial = Trial::Full("Disk quota exceeded".into()))),
        (&PATH_LOW, One(|facts| facts.folders[0].free_bytes = Some(100 << 20))),
        (&PATH_LOW, One(|facts| facts.folders[1].free_files = Some(12))),
        (&PATH_APART, One(|facts| facts.folders[0].is_shared = Some(false))),
        (
            &CONTAINER_IMAGE,
            All(|facts| facts.container = image(if facts.rank == 0 { "sha256:1" } else { "sha256:2" })),
        ),
    ]
}

fn refused() -> Trial {
    Trial::Refused("Read-only file system".into())
}

fn problems(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity > Severity::Ok).collect()
}

#[test]
fn a_healthy_world_has_no_finding() {
    for all in [healthy(), alone()] {
        let findings = examine(&all);
        assert_eq!(problems(&findings), Vec::<&Finding>::new());
        let report = Report::new(&all, findings);
        assert_eq!(report.exit_code(), exit::OK);
        assert!(
            report.text().ends_with("0 errors, 0 warnings, 0 notes: ready to train\n"),
            "{}",
            report.text()
        );
    }
}

#[test]
fn each_kind_is_provoked_by_itself() {
    let mut provoked = BTreeSet::new();
    for (kind, provocation) in provocations() {
        provoked.insert(kind.id);
        let mut all = if matches!(provocation, Alone(_)) { alone() } else { healthy() };
        let expected: &[usize] = match provocation {
            One(change) => {
                change(&mut all[3]);
                &[3]
            }
            All(change) | Alone(change) => {
                all.iter_mut().for_each(change);
                &[]
            }
            Outside => continue,
        };
        let findings = examine(&all);
        let problems = problems(&findings);
        assert!(
            !problems.is_empty() && problems.iter().all(|finding| finding.id == kind.id),
            "{}: {problems:#?}",
            kind.id
        );
        let finding = problems[0];
        assert_eq!((finding.severity, finding.remedy), (kind.severity, Some(kind.remedy)));
        assert!(!finding.message.contains('\n'), "{}", finding.message);
        // Whoever differs is named: as the finding's ranks, or in its text where ranks are compared.
        let report = Report::new(&all, findings.clone());
        if !expected.is_empty() {
            assert!(finding.ranks == expected || finding.message.contains("rank 3 (venus)"), "{finding:?}");
            assert!(report.text().contains("rank 3 (venus)"), "{}", report.text());
        }
        let code = if kind.severity == Severity::Error { exit::BOOTSTRAP } else { exit::OK };
        assert_eq!(report.exit_code(), code, "{}", kind.id);
    }
    let all: BTreeSet<&str> = ALL.iter().map(|kind| kind.id).collect();
    assert_eq!(provoked, all, "every kind has a provocation");
    assert_eq!(all.len(), ALL.len(), "no two kinds share a name");
}

/// Makes a rank see something.
type Change = fn(&mut Facts);

/// What must not be reported.
#[test]
fn no_false_alarms() {
    let quiet: Vec<(&str, Change)> = vec![
        ("a list that excludes", |facts| set(facts, "NCCL_SOCKET_IFNAME", "^docker,lo")),
        ("a prefix", |facts| set(facts, "NCCL_SOCKET_IFNAME", "eth")),
        ("one of two prefixes", |facts| set(facts, "NCCL_SOCKET_IFNAME", "ib,eth")),
        ("a network", |facts| set(facts, "OMPI_MCA_btl_tcp_if_include", "10.0.0.0/24")),
        ("GPUs by name", |facts| set(facts, "CUDA_VISIBLE_DEVICES", "GPU-1234,GPU-5678")),
        ("a GPU for each rank", |facts| {
            let own = (facts.rank % 2).to_string();
            set(facts, "CUDA_VISIBLE_DEVICES", &own);
        }),
        ("no GPU anywhere", |facts| {
            facts.gpu = Gpu::default();
            facts.nccl = Nccl::default();
        }),
        ("a batch script's own number", |facts| {
            set(facts, "SLURM_JOB_ID", "17");
            set(facts, "SLURM_NTASKS", "4");
            set(facts, "SLURM_PROCID", "0");
        }),
        ("a driver that is older within CUDA 13", |facts| facts.torch.cuda = Some("13.2".into())),
        ("a file system without a number of files", |facts| facts.folders[0].free_files = Some(0)),
        ("the usual limit of locked memory", |facts| facts.limits.memlock_bytes = Some(8 << 20)),
        ("no huge pages to choose", |facts| facts.huge_pages = None),
        ("threads as configured", |facts| set(facts, "OMP_NUM_THREADS", "2")),
        ("a PMIx of the same major version", |facts| set(facts, "PMIX_VERSION", "4.1.0")),
    ];
    for (name, change) in quiet {
        let mut all = healthy();
        all.iter_mut().for_each(change);
        let findings = examine(&all);
        assert_eq!(problems(&findings), Vec::<&Finding>::new(), "{name}");
    }
    // An address that both have does no harm where an interface is named.
    let mut all = healthy();
    for facts in &mut all {
        facts.network.interfaces.push(interface("docker0", [172, 17, 0, 1]));
        set(facts, "OMPI_MCA_btl_tcp_if_include", "eth0");
    }
    assert_eq!(problems(&examine(&all)), Vec::<&Finding>::new());
    // On one host the loopback is enough.
    let mut all = alone();
    all[0].network.interfaces.clear();
    assert_eq!(problems(&examine(&all)), Vec::<&Finding>::new());
}

/// Without NVML, the driver's own number decides.
#[test]
fn the_oldest_driver_for_a_cuda() {
    let with = |driver: &str| {
        let mut all = healthy();
        for facts in &mut all {
            facts.gpu = Gpu { driver: Some(driver.into()), driver_cuda: None, devices: None };
        }
        let findings = examine(&all);
        problems(&findings).iter().any(|finding| finding.id == CUDA_DRIVER.id)
    };
    assert!(with("535.104.05") && !with("580.65.06") && !with("unreadable"));
}

/// What a user with an old driver reads, whether NVML answers or not; each CUDA wants a driver of its own.
#[test]
fn a_driver_that_is_too_old_is_named_with_what_is_needed() {
    let said = |cuda: &str, driver: &str, driver_cuda: Option<&str>| {
        let mut all = healthy();
        for facts in &mut all {
            facts.torch.cuda = Some(cuda.into());
            facts.gpu.driver = Some(driver.into());
            facts.gpu.driver_cuda = driver_cuda.map(ToOwned::to_owned);
        }
        let findings = examine(&all);
        let found = findings.iter().find(|finding| finding.id == CUDA_DRIVER.id).cloned();
        if let Some(finding) = &found {
            let text = Report::new(&all, findings).text();
            assert!(text.contains(&finding.message) && text.contains(CUDA_DRIVER.remedy), "{text}");
        }
        found.map(|finding| finding.message)
    };
    let nvml = said("13.0", "535.104.05", Some("12.2")).unwrap();
    assert!(
        nvml.contains("libtorch is built for CUDA 13.0, but driver 535.104.05 runs CUDA 12.2 at most"),
        "{nvml}"
    );
    let kernel = said("13.0", "570.211.01", None).unwrap();
    assert!(
        kernel.contains("built for CUDA 13.0, which needs driver 580, but this is 570.211.01"),
        "{kernel}"
    );
    assert!(said("12.8", "520.61.05", None).unwrap().contains("which needs driver 525"));
    assert!(said("11.8", "440.33.01", None).unwrap().contains("which needs driver 450"));
    // The controls: the oldest that does, and a CUDA that nobody knows the driver of.
    assert_eq!(said("12.8", "525.60.13", None), None);
    assert_eq!(said("13.0", "580.65.06", Some("13.0")), None);
    assert_eq!(said("99.0", "580.65.06", None), None);
}

#[test]
fn facts_travel_as_json() {
    for facts in [healthy(), alone()].concat() {
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
    }
    let all = healthy();
    let json: serde_json::Value = serde_json::from_str(&Report::new(&all, examine(&all)).json()).unwrap();
    assert_eq!((json["version"].as_u64(), json["exit_code"].as_i64()), (Some(1), Some(0)));
    assert_eq!(json["ranks"].as_array().unwrap().len(), 4);
}

/// The table of the documentation is this catalogue: `LOCKSTEP_WRITE_DOCS=1 cargo test doctor` writes it.
#[test]
fn the_documentation_lists_every_kind() {
    const MARKS: [&str; 2] = ["<!-- findings: written by the tests -->\n", "<!-- end of findings -->"];
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the table's begin");
    let (table, after) = rest.split_once(MARKS[1]).expect("the table's end");
    let row = |kind: &&Kind| {
        format!("| `{}` | {} | {} | {} |\n", kind.id, kind.severity.name(), kind.when, kind.remedy)
    };
    let expected = "| finding | severity | when | remedy |\n|---|---|---|---|\n".to_owned()
        + &ALL.iter().map(row).collect::<String>();
    if std::env::var_os("LOCKSTEP_WRITE_DOCS").is_some() {
        std::fs::write(&path, [before, MARKS[0], &expected, MARKS[1], after].concat()).unwrap();
    } else {
        assert_eq!(table, expected, "run: LOCKSTEP_WRITE_DOCS=1 cargo test --lib doctor");
    }
}
