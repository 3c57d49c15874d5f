"""The models that the worker runs unless its settings name others.

The image's build reads them, too.
"""

MODEL_NAME = "Qwen/Qwen3-ASR-0.6B"
ALIGNER_NAME = "Qwen/Qwen3-ForcedAligner-0.6B"
MODEL_REVISION = "main"
ALIGNER_REVISION = "main"
