# shellcheck shell=bash
# Shared by the scripts of this folder: messages, limits, retries, the cache's location. Sourced, never run.

say() { printf 'setup: %s\n' "$*" >&2; }

# fail WHAT REMEDY: every failure says both.
fail() {
  printf 'setup: error: %s\n       %s\n' "$1" "$2" >&2
  exit 1
}

# limited SECONDS COMMAND...: shows the command's output only if it fails or outlasts its limit.
limited() {
  local seconds=$1 log status=0
  shift
  log=$(mktemp)
  timeout --kill-after=10 "$seconds" "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 30 "$log" >&2
    if [ "$status" -eq 124 ]; then say "no answer after $seconds s: $*"; else say "exit $status: $*"; fi
  fi
  rm -f "$log"
  return "$status"
}

# attempt TIMES COMMAND...: networks fail now and then.
attempt() {
  local times=$1 try
  shift
  for ((try = 1; try <= times; try++)); do
    if "$@"; then return 0; fi
    if [ "$try" -lt "$times" ]; then
      say "try $try of $times failed; once more in $((try * 5)) s"
      sleep "$((try * 5))"
    fi
  done
  return 1
}

# apt_install PACKAGE...: with the lists of packages that are there; only if that fails, with new ones.
apt_install() {
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends)
  say "apt-get install $*"
  limited 1200 "${install[@]}" "$@" && return 0
  say "apt-get update, then once more"
  attempt 3 limited 600 apt-get update -q && attempt 2 limited 1200 "${install[@]}" "$@"
}

# Where several mpirun come and go: Open MPI removes the folder of all sessions when the last one leaves, even while another
# makes its own in it ("A call to mkdir was unable to create the desired directory"). A folder that is not empty stays.
keep_sessions() {
  KEPT_SESSION=${TMPDIR:-/tmp}/ompi.$(uname -n).$(id -u)/kept.$$
  mkdir -p "$KEPT_SESSION"
}
give_up_sessions() { { rmdir "$KEPT_SESSION" && rmdir --ignore-fail-on-non-empty "$(dirname "$KEPT_SESSION")"; } || true; }

# The folder of everything heavy, shared by all checkouts of this user.
cache_root() {
  printf '%s\n' "${LOCKSTEP_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set it or LOCKSTEP_CACHE}/.cache}/lockstep}"
}

# free_mib FOLDER: free space of the file system under FOLDER, which need not exist yet.
free_mib() {
  local folder=$1
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  df -Pm "$folder" | awk 'NR == 2 { print $4 }'
}

is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }
