# shellcheck shell=bash
# Virtual environments in the cache: made once, completed when an installation was cut short. Sourced, never run.

# Written first into every folder of the cache that is ours: `make clean-cache` removes those and no others.
CACHE_MARKER=.made-by-lockstep-setup
# Written last, with the checksum of what was installed: a folder without it is incomplete.
CACHE_STAMP=.complete

# A Python that can make virtual environments, on standard output.
find_python() {
  local candidate
  for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' \
      >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return 0
    fi
  done
  return 1
}

venv_is_complete() { # FOLDER REQUIREMENTS
  [ -f "$1/$CACHE_STAMP" ] && [ "$(cat "$1/$CACHE_STAMP")" = "$(cksum <"$2")" ] &&
    "$1/bin/python" -c 'pass' >/dev/null 2>&1
}

# ensure_venv NAME REQUIREMENTS MIB [PYTHON SITE]: prints the folder of a complete environment. With a Python and the
# folder of its packages, it is layered on those. One installation at a time, in this and in every other checkout:
# they wait for each other on a lock.
ensure_venv() {
  local python version root folder
  python=${4:-$(find_python)} || fail "no Python 3.10 to 3.14 with the modules venv and ensurepip" \
    "Install one (Debian: apt-get install python3-venv), or set LIBTORCH to a libtorch $TORCH_VERSION."
  version=$("$python" -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
  root=$(cache_root)
  folder=$root/$1-$version
  if ! venv_is_complete "$folder" "$2"; then
    mkdir -p "$root" || fail "cannot make the cache folder $root" "Set LOCKSTEP_CACHE to a folder that you can write."
    (
      flock --wait 3600 9 ||
        fail "another installation holds $root/lock for an hour" "End it (see: fuser $root/lock), then start again."
      venv_is_complete "$folder" "$2" || fill_venv "$folder" "$2" "$3" "$python" "${5:-}"
    ) 9>"$root/lock" || exit 1
  fi
  printf '%s\n' "$folder"
}

fill_venv() { # FOLDER REQUIREMENTS MIB PYTHON SITE
  local folder=$1 requirements=$2 needed=$3 free temporary
  free=$(free_mib "$folder")
  say "installing $(grep -c '==' "$requirements") packages into $folder (up to $needed MiB; $free MiB are free)"
  if [ ! -x "$folder/bin/python" ] && [ "$free" -lt "$needed" ]; then
    fail "$folder needs $needed MiB and only $free MiB are free" "Free some, or set LOCKSTEP_CACHE to another disk."
  fi
  if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$folder"
  fi
  mkdir -p "$folder"
  rm -rf "$folder/$CACHE_STAMP" "$folder"/tmp.*
  touch "$folder/$CACHE_MARKER"
  if [ ! -x "$folder/bin/pip" ]; then
    limited 300 "$4" -m venv "$folder" ||
      fail "$4 -m venv $folder failed" "The lines above say why; remove $folder and start again."
  fi
  # pip takes what lies there as installed.
  [ -z "$5" ] || printf '%s\n' "$5" >"$(echo "$folder"/lib/python3.*/site-packages)/layer.pth"
  # pip unpacks gigabytes in TMPDIR, and /tmp is small on many machines.
  temporary=$(mktemp -d "$folder/tmp.XXXXXX")
  TMPDIR=$temporary attempt 3 limited 3600 "$folder/bin/python" -m pip install --disable-pip-version-check \
    --quiet --only-binary :all: --requirement "$requirements" ||
    fail "pip could not install $requirements into $folder" \
      "Check the network (or PIP_INDEX_URL, PIP_PROXY), then start again: it goes on where it stopped."
  rm -rf "$temporary"
  cksum <"$requirements" >"$folder/$CACHE_STAMP"
}
