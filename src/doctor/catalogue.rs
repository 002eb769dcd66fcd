//! Every kind of finding, with its remedy: the table in `docs/doctor.md` and the tests go by it.

use super::finding::Kind;
use super::finding::Severity::{Error, Note, Warning};

macro_rules! catalogue {
    ($($name:ident: $severity:ident $id:literal, $when:literal, $remedy:literal;)*) => {
        $(pub const $name: Kind = Kind { id: $id, severity: $severity, when: $when, remedy: $remedy };)*
        /// All of them, in the order of the documentation.
        #[cfg(test)]
        pub const ALL: &[&Kind] = &[$(&$name),*];
    };
}

catalogue! {
    MPI_START: Error "mpi.start",
        "MPI did not start: it ended the process, crashed, or took too long",
        "read what MPI printed above; start with the mpirun of the MPI that the program was built with, under Slurm with \
         `srun --mpi=pmix`; look at the findings below, and at variables `OMPI_MCA_*`";
    MPI_WORLD: Error "mpi.world",
        "the launcher started more ranks than the world has, typically a world of one in each process",
        "start it with the mpirun of the MPI that it was built with, under Slurm with `srun --mpi=pmix`; in a container, use \
         the same MPI inside and outside; unset a variable that is left over from elsewhere";
    MPI_LIBRARY: Error "mpi.library",
        "ranks run different MPI libraries",
        "use one MPI everywhere: the same image or module on all hosts";
    MPI_THREADS: Warning "mpi.threads",
        "MPI gives less than the thread level `multiple`",
        "use an MPI that is built with MPI_THREAD_MULTIPLE, and parallel.mpi_threads: multiple; until then overlap or the \
         questions after a time-out are missing";
    MPI_LAUNCHER: Error "mpi.launcher",
        "the launcher speaks another protocol (PMI, PMIx) than the MPI library",
        "Open MPI wants PMIx (`srun --mpi=pmix`, or its own mpirun), MPICH wants PMI (`srun --mpi=pmi2`, or its own mpiexec); \
         `srun --mpi=list` shows what Slurm has";
    PMIX_VERSION: Warning "pmix.version",
        "the PMIx of the launcher and that of this process have different major versions",
        "use the same PMIx major version in the image as on the host; versions from 3 on mostly understand one another, 1 and \
         2 do not";
    SCHEDULER_RANK: Error "scheduler.rank",
        "the launcher numbers this process otherwise than MPI does",
        "variables of another launch are left in the environment: start from a clean shell, and do not nest launchers";
    SCHEDULER_STALE: Warning "scheduler.stale",
        "variables of a scheduler's step without its job, or of a job that they contradict",
        "unset `SLURM_*` or `PBS_*` that a shell inside a job left behind (`env -u`), or log in anew";
    SCHEDULER_NODEFILE: Warning "scheduler.nodefile",
        "PBS_NODEFILE names a file that cannot be read",
        "bind the folder of the file into the container, or unset PBS_NODEFILE if this is no job";
    SCHEDULER_TASKS: Warning "scheduler.tasks",
        "the world is larger than the job's tasks",
        "ask the scheduler for as many tasks as there are ranks, or start fewer ranks";
    SCHEDULER_NODES: Warning "scheduler.nodes",
        "some of the job's nodes have no rank",
        "start a rank on each node (`srun`, `mpirun --map-by ppr:K:node`), or ask for fewer nodes";
    SCHEDULER_ALONE: Note "scheduler.alone",
        "one process without a launcher in a job of several tasks",
        "start it with `srun --mpi=pmix` or mpirun to have all of the job's tasks";
    TORCH_VERSION: Error "torch.version",
        "ranks run different libtorch versions",
        "use one libtorch everywhere: the same image, or the same folder on all hosts";
    CUDA_DRIVER: Error "cuda.driver",
        "the driver is too old for the CUDA that libtorch was built for",
        "update the driver (CUDA 13 needs 580 or newer, CUDA 12 needs 525), or use a libtorch for an older CUDA";
    CUDA_HIDDEN: Warning "cuda.hidden",
        "the kernel has NVIDIA's driver, but its libraries are not found here",
        "start the container with the driver's libraries: `apptainer exec --nv`, `docker run --gpus all`; outside, install \
         the driver's user-space libraries (libnvidia-ml.so.1, libcuda.so.1)";
    CUDA_CPU_BUILD: Note "cuda.cpu_build",
        "there are GPUs, but libtorch has no CUDA half",
        "use a CUDA image or a CUDA build of libtorch to train on the GPUs";
    GPU_NONE: Warning "gpu.none",
        "the host has GPUs, but this rank sees none",
        "set CUDA_VISIBLE_DEVICES or leave it unset; ask the scheduler for GPUs (`--gpus-per-node`), with `--gpu-bind=none`";
    GPU_UNKNOWN: Error "gpu.unknown",
        "CUDA_VISIBLE_DEVICES names a GPU that is not there",
        "correct CUDA_VISIBLE_DEVICES: numbers count from 0 and end before the number of GPUs; a wrong one hides all that \
         follow it";
    GPU_SHARED: Warning "gpu.shared",
        "more ranks on a host than GPUs that they see",
        "start one rank for each GPU";
    NCCL_MISSING: Warning "nccl.missing",
        "there are GPUs, but libnccl.so.2 is not found",
        "install NCCL (Debian and Ubuntu: libnccl2), or put its folder on LD_LIBRARY_PATH";
    NCCL_UNUSABLE: Error "nccl.unusable",
        "the NCCL that is found, or that LOCKSTEP_NCCL_LIBRARY names, cannot be used",
        "install NCCL 2 from 2.14 on; correct LOCKSTEP_NCCL_LIBRARY, or unset it";
    NCCL_DOUBLE: Warning "nccl.double",
        "a test double of NCCL is loaded: it moves no GPU's memory",
        "unset LOCKSTEP_NCCL_LIBRARY, unless this is a test";
    NCCL_VERSION: Error "nccl.version",
        "ranks load different NCCL versions",
        "use one NCCL everywhere: the same image, or the same LD_LIBRARY_PATH on all hosts";
    NCCL_LOG: Warning "nccl.log",
        "an NCCL log cannot be read, or has no lines of NCCL",
        "write it with NCCL_DEBUG=INFO and NCCL_DEBUG_FILE=FILE, and give its path";
    NCCL_WARNED: Warning "nccl.warned",
        "NCCL wrote warnings to its log",
        "the warning says what NCCL missed; NCCL_DEBUG_SUBSYS=INIT,NET,GRAPH adds the lines around it";
    NCCL_SOCKETS: Warning "nccl.sockets",
        "NCCL sent over TCP although the host has adapters with remote memory access",
        "bind /dev/infiniband into the container and install its libibverbs; look at NCCL_IB_DISABLE, NCCL_IB_HCA and \
         NCCL_NET; raise the memlock limit";
    NCCL_NO_P2P: Note "nccl.no_p2p",
        "GPUs of one host talked through shared memory, none directly",
        "look at `nvidia-smi topo -m` and NCCL_P2P_DISABLE; virtual machines and IOMMU settings often forbid it";
    NCCL_OTHER: Warning "nccl.other",
        "an NCCL log was written by another NCCL than the one found here",
        "make both runs load the same library: look at LD_LIBRARY_PATH";
    NETWORK_NAMED: Error "network.named",
        "a variable names a network interface that is absent, down or without address",
        "name one that the report lists as up, or unset the variable";
    NETWORK_NONE: Error "network.none",
        "several hosts, and one has no interface with an address but loopback",
        "bring an interface up; start the container with the host's network or on a network that all share";
    NETWORK_SAME_ADDRESS: Warning "network.same_address",
        "two hosts have the same address, as bridges of Docker or libvirt do: MPI may try to reach one host at the other's",
        "name the interface that joins the hosts: OMPI_MCA_btl_tcp_if_include, NCCL_SOCKET_IFNAME";
    NETWORK_APART: Warning "network.apart",
        "no IPv4 network has all hosts in it",
        "make sure that a router joins them, or name interfaces of one network: OMPI_MCA_btl_tcp_if_include";
    SHM_SMALL: Error "shm.small",
        "/dev/shm has less free space than the ranks of its host need",
        "`docker run --shm-size=1g` or `--ipc=host`; otherwise `mount -o remount,size=50% /dev/shm`; delete what dead \
         programs left there";
    SHM_ABSENT: Warning "shm.absent",
        "there is no /dev/shm",
        "mount a tmpfs there; in a container, do not disable the mount of /dev";
    SHM_LEFTOVERS: Note "shm.leftovers",
        "dead programs have left files in /dev/shm",
        "if no job of yours runs: `rm -f /dev/shm/lockstep-* /dev/shm/vader_segment.* /dev/shm/nccl-* /dev/shm/psm2_*`";
    LIMIT_MEMLOCK: Warning "limits.memlock",
        "too little memory may be locked: any limit, with InfiniBand or RoCE; less than 64 KiB without",
        "`ulimit -l unlimited`, limits.conf (memlock), LimitMEMLOCK=infinity for slurmd; `docker run --ulimit memlock=-1`";
    LIMIT_FILES: Warning "limits.files",
        "too few files may be open for this number of ranks",
        "`ulimit -n 65536`, limits.conf (nofile), LimitNOFILE for slurmd; `docker run --ulimit nofile=65536`";
    LIMIT_FILE_SIZE: Warning "limits.file_size",
        "the size of files is limited",
        "`ulimit -f unlimited`: a larger checkpoint cannot be saved";
    LIMIT_MEMORY: Warning "limits.memory",
        "the address space is limited",
        "`ulimit -v unlimited`: libraries reserve far more address space than they use";
    HUGE_PAGES: Note "memory.huge_pages",
        "transparent huge pages are switched off",
        "as root: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`; saves a few percent of a step";
    CPU_OVERSUBSCRIBED: Warning "cpu.oversubscribed",
        "the ranks of a machine have more threads than cores that they may use",
        "fewer ranks, or a smaller run.threads_per_rank (which changes bits); ask the scheduler for more cores a task";
    CPU_BOUND: Warning "cpu.bound",
        "a rank is bound to fewer cores than it has threads, while the machine has more",
        "`mpirun --bind-to none` or `--map-by slot:PE=THREADS`; Slurm: `--cpus-per-task=THREADS` for sbatch and srun";
    CPU_OMP: Warning "cpu.omp",
        "OMP_NUM_THREADS or MKL_NUM_THREADS is not run.threads_per_rank",
        "set both to run.threads_per_rank: libraries read them for threads that they start themselves, and the number of \
         threads changes bits";
    CPU_CAPABILITY: Error "cpu.capability",
        "ranks use different instruction sets, or different switches for them: the result depends on who computes what",
        "use processors of one kind, or set ATEN_CPU_CAPABILITY (`avx2`, `default`), MKL_CBWR and ONEDNN_MAX_CPU_ISA alike \
         on all ranks, to what the oldest processor has";
    CPU_SWITCHED: Note "cpu.switched",
        "a variable chooses the instruction set, which changes bits",
        "compare with runs of the same setting only";
    CLOCK_OFFSET: Warning "clock.offset",
        "clocks of hosts are more than a second apart",
        "run chrony or ntpd on all hosts; Slurm's munge refuses credentials after 5 minutes";
    CLOCK_FREE: Note "clock.free",
        "nothing keeps a host's clock right",
        "run chrony or ntpd (in a container: on the host)";
    PATH_RUNS: Error "path.runs",
        "the run directory cannot be written",
        "--set run.dir=FOLDER or LOCKSTEP_RUNS; bind the folder into the container; correct its owner or mode";
    PATH_TEMPORARY: Error "path.temporary",
        "the temporary folder cannot be written: MPI keeps its session there",
        "set TMPDIR to a folder of this host that can be written, for the launcher as well";
    PATH_CACHE: Warning "path.cache",
        "the cache cannot be written: tokenizers are learned anew",
        "--set data.cache_dir=FOLDER or LOCKSTEP_CACHE";
    PATH_FULL: Error "path.full",
        "a folder has no space left, or a quota is used up",
        "make room, or choose another file system; `df -h`, `df -i`, `quota -s`";
    PATH_LOW: Warning "path.low",
        "a folder has less than 1 GiB, or fewer than 1,000 files, left",
        "make room, or choose another file system; checkpoint.keep limits what a run holds";
    PATH_APART: Error "path.apart",
        "hosts do not see the same run directory",
        "--set run.dir to a folder that all hosts share: every rank writes its part of a checkpoint there; in containers, \
         bind the same one";
    CONTAINER_IMAGE: Error "container.image",
        "ranks run in different images",
        "start all ranks from one image: the same file, or the same digest";
}
