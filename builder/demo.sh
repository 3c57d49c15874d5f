#!/usr/bin/env bash
# Transcribe a recording with the real worker on this machine:
#   bash builder/demo.sh [file-or-URL] [--language NAME]
# Sets up its own environment on the first run. The models are the tiny checkpoints, unless
# MODEL_NAME and ALIGNER_NAME name others.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/builder/demo.py" "$@"
