# shellcheck shell=bash
# What the machine already has: each function prints a path, or fails. Sourced, never run.

find_mpicc() {
  local candidate=${MPICC:-mpicc}
  has "$candidate" && timeout 20 "$candidate" -show >/dev/null 2>&1 && command -v "$candidate"
}

# The launcher of the same MPI: beside its compiler wrapper first, then anywhere.
find_mpirun() { # MPICC
  local candidate
  for candidate in "$(dirname "$1")"/{mpirun,mpiexec} mpirun mpiexec; do
    if has "$candidate"; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

find_libclang() {
  local folder
  if [ -n "${LIBCLANG_PATH:-}" ]; then
    printf '%s\n' "$LIBCLANG_PATH"
    return 0
  fi
  for folder in "$(llvm-config --libdir 2>/dev/null || true)" \
    $(compgen -G '/usr/lib/llvm-*/lib' | sort -rV) /usr/lib64 /usr/lib; do
    if [ -n "$folder" ] && compgen -G "$folder/libclang.so*" >/dev/null; then
      printf '%s\n' "$folder"
      return 0
    fi
  done
  return 1
}

# The compiler's own headers (stddef.h and the like), which a libclang wheel lacks.
has_builtin_headers() { # LIBCLANG
  compgen -G "$1/clang/*/include/stddef.h" >/dev/null || compgen -G "$1/../lib/clang/*/include/stddef.h" >/dev/null
}

is_libtorch() { # FOLDER
  local header
  [ -e "$1/lib/libtorch_cpu.so" ] || return 1
  for header in "$1"/include/torch/headeronly/version.h "$1"/include/torch/csrc/api/include/torch/version.h; do
    if [ -f "$header" ]; then
      [ "$(awk '$2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { printf "%s%s", dot, $3; dot = "." }' "$header")" = "$TORCH_VERSION" ]
      return
    fi
  done
  return 1
}

# LIBTORCH, then the active virtual environment. The cache's own comes after these, in ci/setup.
find_libtorch() {
  local environment torch
  if [ -n "${LIBTORCH:-}" ]; then
    printf '%s\n' "$LIBTORCH"
    return 0
  fi
  for environment in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    [ -n "$environment" ] || continue
    for torch in "$environment"/lib/python3.*/site-packages/torch; do
      if is_libtorch "$torch"; then
        printf '%s\n' "$torch"
        return 0
      fi
    done
  done
  return 1
}

# The Python of the environment in which a libtorch lies.
python_of_libtorch() { # FOLDER
  local python
  python=$(cd "$1/../../../.." 2>/dev/null && pwd)/bin/python
  [ -x "$python" ] && "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' &&
    printf '%s\n' "$python"
}
