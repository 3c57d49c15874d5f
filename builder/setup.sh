# Sourced by builder/demo.sh and tests/run.sh. Sets ROOT to the checkout and PYTHON to the
# interpreter of a virtual environment in ROOT/.venv with exactly the packages of
# builder/environment.txt.
#
# Needs Linux x86-64, Python 3.11 or newer and pip; no root, no compiler. The environment is keyed
# by a hash of what it installs: a second run reuses it, and a changed pin rebuilds it.
#
# The lock, environment.txt, is made from builder/environment.in. To change a pin, change it there
# and run
#   uv pip compile --universal --python-version 3.11 --override builder/overrides.txt --no-emit-index-url \
#     --no-annotate --no-header builder/environment.in -o builder/environment.txt
# which keeps every version of the lock that is still allowed.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$ROOT/.venv/bin/python
UV_VERSION=0.13.9
LIBNUMA_WHEEL=nixl-cu12==1.5.1 # 69 MB, used only for one file: libnuma, LGPL-2.1

say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "Python 3.11, 3.12 or 3.13 is needed; found: $(python3 --version 2>&1)"
  return 1
}

set_up() {
  local base key bootstrap
  base=$(find_python) || return 1
  key=$({ "$base" --version && echo "uv $UV_VERSION" && cat "$ROOT/builder/environment.txt"; } | sha256sum | cut -d' ' -f1)
  [ "$(cat "$ROOT/.venv/key" 2>/dev/null)" = "$key" ] && return
  say "making the environment in .venv: about 250 packages, several GB to download; once, some minutes"
  rm -rf "$ROOT/.venv"
  bootstrap=$(mktemp -d) || return 1
  # uv in a temporary folder: it works without Debian's separate venv package, and installs in
  # parallel
  "$base" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$bootstrap" "uv==$UV_VERSION" &&
    "$bootstrap/bin/uv" venv --quiet --python "$base" "$ROOT/.venv" &&
    TMPDIR=$bootstrap "$bootstrap/bin/uv" pip install --python "$PYTHON" --no-deps --compile-bytecode --requirement "$ROOT/builder/environment.txt" 2> >(grep -v '^ + ' >&2) &&
    echo "$key" >"$ROOT/.venv/key"
  local outcome=$?
  rm -rf "$bootstrap"
  [ $outcome = 0 ] && say "environment ready" || say "the environment could not be made (see above)"
  return $outcome
}

loads() { "$PYTHON" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }

# vLLM's CPU build needs libnuma, which minimal systems and slim images lack; a wheel provides it
# without root.
find_libnuma() {
  local name=${1:-libnuma.so.1} folder=$ROOT/.venv/libnuma unpacked
  loads "$name" && return
  if [ ! -e "$folder/$name" ]; then
    say "this system has no $name, which vLLM's CPU build needs: taking it from a wheel of 69 MB"
    unpacked=$(mktemp -d) || return 1
    "${PYTHON%/*}/uv" pip install --quiet --no-cache --no-deps --python "$PYTHON" --target "$unpacked" "$LIBNUMA_WHEEL" &&
      mkdir -p "$folder" && cp "$unpacked"/nixl_cu12.libs/libnuma-*.so* "$folder/$name"
    rm -rf "$unpacked"
  fi
  export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  loads "$name" && return
  say "vLLM's CPU build needs $name: install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora, RHEL)"
  return 1
}

exec {setup_lock}<"$ROOT/builder/setup.sh" # two scripts started together must not both build the environment
flock "$setup_lock"
set_up || exit 1
find_libnuma || exit 1
exec {setup_lock}<&-

# The code is the same on GPU and CPU, only settings differ. These are for the CPU and the tiny
# checkpoints of tests/models. Variables that are already set stay.
export MODEL_NAME=${MODEL_NAME:-$ROOT/tests/models/asr}
export ALIGNER_NAME=${ALIGNER_NAME:-$ROOT/tests/models/aligner}
export DEVICE=${DEVICE:-cpu}
if [ "$MODEL_NAME" = "$ROOT/tests/models/asr" ]; then # trained on clips of up to 9.5 s
  export CHUNK_TARGET_SECONDS=${CHUNK_TARGET_SECONDS:-4.8} CHUNK_LIMIT_SECONDS=${CHUNK_LIMIT_SECONDS:-8}
fi
export MAX_NUM_SEQS=${MAX_NUM_SEQS:-8} ALIGNER_BATCH_SECONDS=${ALIGNER_BATCH_SECONDS:-32} # on a CPU larger batches are no faster
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}   # GiB
export GPU_MEMORY_UTILIZATION=${GPU_MEMORY_UTILIZATION:-0.3}    # on a CPU: share of the memory that must be free
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}
export TORCH_COMPILE_DISABLE=${TORCH_COMPILE_DISABLE:-1}     # needs no compiler, and starts 15 s faster
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$ROOT/.venv/cache}
export RUNPOD_LOG_LEVEL=${RUNPOD_LOG_LEVEL:-INFO}
export PYTHONDONTWRITEBYTECODE=1
