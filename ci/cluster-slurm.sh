# shellcheck shell=bash
# Slurm on the hosts of ci/cluster, which sources this: slurmctld as `head`, a slurmd on each host, and one munged with
# a key of its own for all of them. What it writes lies under $STATE, what it starts runs in the cluster's namespaces:
# so `down` need not know of it.

SLURM=$STATE/slurm
# What each host says it has, whatever the machine has: so that job scripts for real nodes start here.
SLURM_CPUS=8
SLURM_START_LIMIT_S=30
SLURM_PACKAGES=(slurm-wlm munge slurm-wlm-torque)

install_slurm() {
  # shellcheck source=ci/lib.sh
  source "$CHECKOUT/ci/lib.sh"
  say() { printf 'cluster: %s\n' "$*" >&2; }
  is_root || { say "apt-get needs root: sudo ci/cluster install" && exit 101; }
  has apt-get || { say "no apt-get here: install your system's packages of Slurm (with PMIx) and munge" && exit 101; }
  apt_install "${SLURM_PACKAGES[@]}" || exit 1
}

require_slurm() {
  local tool
  for tool in munged slurmctld slurmd scontrol sinfo srun; do
    command -v "$tool" >/dev/null ||
      fail 101 "$tool is not installed" "ci/cluster install (Debian: apt-get install ${SLURM_PACKAGES[*]})"
  done
}

# proctrack, task and accounting that need no cgroups, since hosts share the machine's. A requeued job waits until its
# old credentials have expired, so they live for seconds only; a dead host is noticed after SlurmdTimeout.
slurm_conf() { # HOSTS
  local memory_mib
  memory_mib=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' /proc/meminfo)
  cat <<END
ClusterName=lockstep
MailProg=/bin/true
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SLURM/munge.socket,cred_expire=5
StateSaveLocation=$SLURM/state
SlurmdSpoolDir=$STATE/local
SlurmctldPidFile=$SLURM/slurmctld.pid
SlurmdPidFile=$STATE/local/slurmd.pid
SlurmctldLogFile=$SLURM/slurmctld.log
SlurmdLogFile=$SLURM/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$SLURM/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=pmix
ReturnToService=2
SlurmdTimeout=5
MessageTimeout=5
TreeWidth=64
SchedulerParameters=bf_interval=2,sched_interval=5
KillWait=5
MinJobAge=3600
NodeName=n[1-$1] CPUs=$SLURM_CPUS RealMemory=$memory_mib
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
END
}

# By default ranks meet in a ring. In Slurm 22.05 one may leave it before another has arrived: once in some dozen worlds a
# rank then got its first message in the middle of MPI_Init, and died of it. 0 of 100 did with a tree.
mpi_conf() { echo 'PMIxCollFence=tree'; }

# Starts a daemon in the background that outlives this script, and inherits no lock.
daemon() { # OUTPUT COMMAND [ARGUMENT]...
  setsid "${@:2}" </dev/null >"$1" 2>&1 9>&- &
}

start_munged() {
  local waited
  (umask 077 && head -c 1024 /dev/urandom >"$SLURM/munge.key")
  daemon "$SLURM/munged.out" nsenter --net="/run/netns/${PREFIX}head" munged --foreground \
    --key-file="$SLURM/munge.key" --socket="$SLURM/munge.socket" --pid-file="$SLURM/munged.pid" \
    --seed-file="$SLURM/munge.seed"
  for ((waited = 0; waited < STEP_LIMIT_S * 20; waited++)); do
    if [ -S "$SLURM/munge.socket" ]; then return 0; fi
    sleep 0.05
  done
  fail 1 "munged did not start: $(tail -n 1 "$SLURM/munged.out")" "ci/cluster down, then start again."
}

start_slurmd() { # HOST
  daemon "$SLURM/slurmd-$1.out" "$CHECKOUT/ci/cluster" enter "$1" slurmd -D -N "$1"
}

idle_hosts() {
  (on_head timeout 5 sinfo --noheader --Node --states=idle --format=%N) 2>/dev/null | sort -u | grep -c . || true
}

slurm_up() { # HOSTS
  local host begin=$SECONDS
  # Other users submit jobs, too. The key is made under a mask of its own.
  umask 022
  chmod 755 "$STATE"
  mkdir -p "$SLURM/state"
  slurm_conf "$1" >"$SLURM/slurm.conf"
  mpi_conf >"$SLURM/mpi.conf"
  # Debian's torque commands bring it: PBS_JOBID and the like in every job.
  echo 'optional spank_pbs.so' >"$SLURM/plugstack.conf"
  export SLURM_CONF=$SLURM/slurm.conf
  start_munged
  daemon "$SLURM/slurmctld.out" "$CHECKOUT/ci/cluster" head slurmctld -D
  (on_head timeout 10 srun --mpi=list) 2>&1 | grep -qw pmix ||
    fail 101 "this Slurm has no PMIx: srun could not start MPI programs" "Install its plugin mpi/pmix."
  for host in $(hosts); do start_slurmd "$host"; done
  while [ "$(idle_hosts)" -ne "$1" ]; do
    [ $((SECONDS - begin)) -lt "$SLURM_START_LIMIT_S" ] ||
      fail 1 "Slurm is not ready after $SLURM_START_LIMIT_S s: $(slurm_complaint)" "ci/cluster down, then start again."
    sleep 0.2
  done
}

# The last error that a daemon wrote.
slurm_complaint() { cat "$SLURM"/*.out "$SLURM"/*.log 2>/dev/null | grep -E 'error|fatal' | grep -v 'state file' | tail -n 1; }

# Any program as `head`, with Slurm's commands at hand: as this user, or as another one.
slurm_client() { # [--user USER] [--] COMMAND [ARGUMENT]...
  local user=''
  if [ "${1:-}" = --user ]; then
    user=${2:-}
    id "$user" >/dev/null 2>&1 || usage "slurm: there is no user '$user'"
    shift 2
  fi
  if [ "${1:-}" = -- ]; then shift; fi
  [ $# -gt 0 ] || usage "slurm: no command, such as srun, sbatch, squeue or qsub"
  [ -e "$SLURM/slurm.conf" ] || fail 2 "no Slurm runs in this cluster" "ci/cluster down, then ci/cluster up N --slurm"
  command -v "$1" >/dev/null || fail 101 "$1 is not installed" "Slurm's and PBS's own commands: ci/cluster install"
  export SLURM_CONF=$SLURM/slurm.conf OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  if [ -z "$user" ]; then on_head "$@"; fi
  on_head setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups \
    env USER="$user" LOGNAME="$user" HOME="$(getent passwd "$user" | cut -d : -f 6)" "$@"
}
