# Sourced by builder/demo.sh and tests/run.sh: sets ROOT to the checkout and PYTHON to the interpreter of a
# virtual environment in ROOT/.venv that holds exactly builder/environment.txt.
#
# Needs Linux x86-64, Python 3.11 or newer and pip; no root, no compiler. The environment is keyed by the hash of
# what it installs, so a second run starts at once and a changed pin rebuilds it.
#
# The lock is made from builder/environment.in; to change a pin, change it there and run
#   uv pip compile --universal --python-version 3.11 --override builder/overrides.txt --no-emit-index-url \
#     --no-annotate --no-header builder/environment.in -o builder/environment.txt
# which keeps every version in it that still fits.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$ROOT/.venv/bin/python
UV_VERSION=0.13.9
LIBNUMA_WHEEL=nixl-cu12==1.5.1 # 69 MB, of which one file is used: libnuma, LGPL-2.1

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
  # uv into a throw-away folder: works where Debian has split venv off Python, and installs in parallel
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

# vLLM's CPU build is linked with libnuma, which minimal systems and slim images lack; without root it comes out of a wheel.
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

exec {setup_lock}<"$ROOT/builder/setup.sh" # two scripts started together must not build it twice
flock "$setup_lock"
set_up || exit 1
find_libnuma || exit 1
exec {setup_lock}<&-

# One code path on GPU and CPU, only settings differ. These are the CPU's, with the tiny checkpoints of tests/models;
# what is already set in the environment wins.
export MODEL_NAME=${MODEL_NAME:-$ROOT/tests/models/asr}
export ALIGNER_NAME=${ALIGNER_NAME:-$ROOT/tests/models/aligner}
export DEVICE=${DEVICE:-cpu}
if [ "$MODEL_NAME" = "$ROOT/tests/models/asr" ]; then # trained on clips of up to 9.5 s
  export CHUNK_TARGET_SECONDS=${CHUNK_TARGET_SECONDS:-4.8} CHUNK_LIMIT_SECONDS=${CHUNK_LIMIT_SECONDS:-8}
fi
export MAX_NUM_SEQS=${MAX_NUM_SEQS:-8} ALIGNER_BATCH_SECONDS=${ALIGNER_BATCH_SECONDS:-32} # larger batches are no faster on a CPU
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}   # GiB
export GPU_MEMORY_UTILIZATION=${GPU_MEMORY_UTILIZATION:-0.3}    # on a CPU a share of free memory that vLLM insists on
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}
export TORCH_COMPILE_DISABLE=${TORCH_COMPILE_DISABLE:-1}     # no compiler on a bare machine, and 15 s less
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$ROOT/.venv/cache}
export RUNPOD_LOG_LEVEL=${RUNPOD_LOG_LEVEL:-INFO}
export PYTHONDONTWRITEBYTECODE=1
