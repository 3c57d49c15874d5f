"""How many tokens a chunk takes for audio, prompt and answer.

Knows neither vLLM nor a tokenizer.
"""

AUDIO_TOKENS_PER_SECOND = 13  # the audio encoder makes 13 tokens of 100 mel frames
CONTEXT_TOKENS = 1024  # vocabulary and context together have at most this
VOCABULARY_TOKENS = 512  # the vocabulary has at most this (about 150 names)
PROMPT_TOKENS = 64  # the rest of the prompt takes under 30
MAX_TEXT_TOKENS_PER_SECOND = 30  # fast Greek or Hindi takes up to 22
USUAL_TEXT_TOKENS_PER_SECOND = 7  # most languages take less, at a fast rate
MIN_ANSWER_TOKENS = 256  # the limit of the shortest chunk's answer


def max_request_tokens(seconds: float) -> int:
    """Tokens of a request for `seconds` of audio, with the longest context and answer."""
    return max_prompt_tokens(seconds) + max_answer_tokens(seconds)


def max_prompt_tokens(seconds: float) -> int:
    """Tokens of a prompt for `seconds` of audio, with the longest context."""
    return int(AUDIO_TOKENS_PER_SECOND * (seconds + 1)) + CONTEXT_TOKENS + PROMPT_TOKENS


def max_answer_tokens(seconds: float) -> int:
    """The limit of an answer's tokens for `seconds` of audio. It ends a loop."""
    return max(MIN_ANSWER_TOKENS, int(MAX_TEXT_TOKENS_PER_SECOND * seconds))


def usual_request_tokens(seconds: float) -> int:
    """Tokens of a request for `seconds` of audio without a context, with a usual answer."""
    tokens_per_second = AUDIO_TOKENS_PER_SECOND + USUAL_TEXT_TOKENS_PER_SECOND
    return int(tokens_per_second * seconds) + PROMPT_TOKENS
