# shellcheck shell=bash
# Shared by ci/test-cluster and ci/test-slurm. Sourced, never run; LOCKSTEP_CLUSTER is set.

FAILED=0

check() { # NAME COMMAND...
  local begin=$SECONDS
  if "${@:2}"; then
    printf 'ok      %s (%s s)\n' "$1" $((SECONDS - begin))
  else
    printf 'FAILED  %s (%s s)\n' "$1" $((SECONDS - begin))
    FAILED=$((FAILED + 1))
  fi
}
cluster() { timeout --kill-after=5 120 ci/cluster "$@"; }
equal() { [ "$1" = "$2" ] || { printf '        expected: %s\n        found:    %s\n' "$1" "$2" >&2 && return 1; }; }

# Without them nothing that is left would be seen.
for tool in pgrep ps ip; do
  command -v "$tool" >/dev/null || { printf '%s is not installed (Debian: apt-get install procps iproute2)\n' "$tool" >&2 && exit 101; }
done

# All of this machine that a cluster could leave changed.
traces() {
  ip netns list | grep -F "ls-$LOCKSTEP_CLUSTER-" || true
  ip -brief link | awk '{ print $1 }'
  # Not all mounts: the first namespace of a machine leaves /run/netns, and others work here, too.
  grep -E "lockstep-cluster/$LOCKSTEP_CLUSTER|/ls-$LOCKSTEP_CLUSTER-" /proc/mounts || true
  if command -v iptables-save >/dev/null; then iptables-save | grep -v '^[#:]' || true; fi
  ls -d "/run/lockstep-cluster/$LOCKSTEP_CLUSTER" "/run/lock/lockstep-cluster-$LOCKSTEP_CLUSTER" 2>/dev/null || true
  pgrep -f "lockstep-cluster/$LOCKSTEP_CLUSTER" || true
  # What was killed and not collected yet is gone for all others.
  ps -eo stat=,pid=,comm= | grep -v '^Z' | grep -E " (munged|slurmctld|slurmd|slurmstepd)$" || true
  find /sys/fs/cgroup -iname '*slurm*' 2>/dev/null | sort || true
}

need_programs() { # FOLDER
  local program
  for program in lockstep lockstep-harness; do
    [ -x "$1/$program" ] || { printf 'error: no %s: cargo build --workspace\n' "$1/$program" >&2 && exit 101; }
  done
}

summary() { # NAME
  if [ "$FAILED" -gt 0 ]; then printf '%s: %s failed\n' "$1" "$FAILED" >&2 && exit 1; fi
  printf '%s: all passed\n' "$1" >&2
}
