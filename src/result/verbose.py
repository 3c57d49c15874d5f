"""Transcript → OpenAI's transcription object, of `response_format=verbose_json`.

It has the fields of both granularities and all that OpenAI's own clients require.
"""

import zlib
from typing import Any

from contract.request import Request
from result.transcript import Segment, Transcript
from speech.tokens import mean_logprob

FRAMES_PER_SECOND = 100  # `seek` counts Whisper's frames of 10 ms

Output = dict[str, Any]


def verbose_json(transcript: Transcript, request: Request) -> Output:
    """The object as plain JSON values. Its segments are sentences.

    The language is "" where there is no text, because OpenAI's type allows no null.
    """
    words = transcript.words(request.punctuation)
    return {
        "task": "transcribe",
        "language": (transcript.language or "").lower(),
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [{"word": word.text, **_common(word, request)} for word in words],
        "segments": [
            {"id": i, "text": sentence.text}
            | _common(sentence, request)
            | _measures(transcript, sentence)
            for i, sentence in enumerate(transcript.sentences())
        ],
    }


def _common(segment: Segment, request: Request) -> dict[str, float]:
    fields = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
    if request.confidence and segment.confidence is not None:
        fields["confidence"] = round(segment.confidence, 3)
    if segment.channel is not None:
        fields["channel"] = segment.channel
    return fields


def _measures(transcript: Transcript, sentence: Segment) -> Output:
    """What Whisper tells of a segment, from what Qwen3-ASR tells of a sentence.

    `seek`: the start of its chunk. `no_speech_prob`: always 0, because the model has no such
    probability, and a chunk without speech has no sentence.
    """
    chunk = transcript.chunk_of(sentence)
    tokens = transcript.tokens_in(sentence.offset, sentence.end_offset)
    return {
        "seek": round(chunk.start * FRAMES_PER_SECOND),
        "temperature": chunk.temperature,
        "tokens": [token.id for token in tokens],
        "avg_logprob": _rounded(mean_logprob(tokens)),
        "compression_ratio": round(compression_ratio(sentence.text), 3),
        "no_speech_prob": 0.0,
    }


def _rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(logprob, 4)


def compression_ratio(text: str) -> float:
    """Bytes of the text as UTF-8 for each byte that zlib makes of them, as Whisper computes it."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
