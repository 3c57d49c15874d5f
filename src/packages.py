"""Finds missing packages. Imports none of them, so that it can run before the imports that need them."""

from importlib.util import find_spec

# the names by which the packages of requirements.txt are imported
MODULES = (
    "runpod", "vllm", "torch", "qwen_asr", "accelerate", "nagisa", "soynlp", "transformers", "librosa", "soundfile", "huggingface_hub",
    "httpx", "httpcore", "webrtcvad", "av", "numpy",
)  # fmt: skip


def missing_packages() -> str:
    """A sentence with the missing packages and how to install them; "" if there are none."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if not missing:
        return ""
    return f"Python does not find {', '.join(missing)}; `pip install -r requirements.txt` installs all that the worker needs."
