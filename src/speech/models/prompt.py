"""Qwen3-ASR's prompt around a context, and its answer as language and text. Pure functions."""

TEXT_TAG = "<asr_text>"  # separates the language from the text of an answer


def parsed(raw: str, forced: str | None) -> tuple[str | None, str]:
    """(language, text) of an answer.

    The language is None without text, or where the model names none. `forced`: the language in the
    prompt; the answer is then only text. qwen-asr's parser reads the language, but not the text: it
    collapses everything that is repeated over 20 times, real laughter and chants as well.
    """
    from qwen_asr.inference.utils import parse_asr_output

    head, tag, text = raw.partition(TEXT_TAG)
    if not tag:
        head, text = "", raw
    if not text.strip():
        return None, ""
    detected, _ = parse_asr_output(f"{head}{tag}.")
    return forced or detected or None, text.strip()


def prompt_template(language: str | None) -> tuple[str, str]:
    """(text before the context, text after it) of Qwen3-ASR's chat template.

    The language stands at its end where it is forced.
    """
    before = "<|im_start|>system\n"
    user = "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    forced = f"language {language}{TEXT_TAG}" if language else ""
    return before, f"<|im_end|>\n{user}<|im_start|>assistant\n{forced}"
