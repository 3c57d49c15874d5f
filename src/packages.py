"""Which of the packages that the worker uses are not installed. Imports none of them, so that it can be asked first."""

from importlib.util import find_spec

# what each package of requirements.txt is imported as
MODULES = (
    "runpod", "vllm", "torch", "qwen_asr", "accelerate", "nagisa", "soynlp", "transformers", "librosa", "soundfile", "huggingface_hub",
    "httpx", "httpcore", "webrtcvad", "av", "numpy",
)  # fmt: skip


def missing_packages() -> str:
    """One sentence that names them and says what to do; "" where nothing is missing."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if not missing:
        return ""
    return f"Python does not find {', '.join(missing)}; `pip install -r requirements.txt` installs all that the worker needs."
