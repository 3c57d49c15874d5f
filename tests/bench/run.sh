#!/usr/bin/env bash
# Benchmarks, each of at least two sides in one run: bash tests/bench/run.sh [--quick] [names]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../builder/setup.sh"
cd "$ROOT"
if ! [ -d .venv/bench/matplotlib ]; then
  "$(find_python)" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .venv/bench \
    --requirement tests/bench/requirements.txt || say "matplotlib could not be installed: no plots"
fi
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true RUNPOD_LOG_LEVEL=WARN # the recordings are served on loopback
"$PYTHON" tests/bench/run.py "$@"
