#!/usr/bin/env bash
# Every test, in an environment that this makes itself: bash tests/run.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../builder/setup.sh"
cd "$ROOT"
TMPDIR=$(mktemp -d) # pytest keeps the folders of its last runs
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
export RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true # the recordings are served on loopback
"$PYTHON" -m pytest -c tests/pytest.ini --rootdir . -p no:cacheprovider "${@:-tests}"
