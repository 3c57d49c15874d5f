"""`verbose_json`: OpenAI's own types take it, and its figures are those of the transcript."""

import math
import zlib
from dataclasses import replace

import pytest
from contract.request import Request
from openai.types.audio import TranscriptionVerbose
from result.delivery import output_of
from result.transcript import merge
from speech.tokens import MIN_LOGPROB, Token
from speech.words import ChunkResult
from test_tokens import with_tokens
from test_trust import chunk_result

VERBOSE = Request("http://a/b", output_format="verbose_json")
ENGLISH = with_tokens(
    replace(chunk_result("One two. Three.", 0, seconds=20), temperature=0.4),
    [("One", 0.9), (" two", 0.5), (".", 0.8), (" Three.", 0.7)],
)
CHINESE = with_tokens(
    chunk_result("四。五五五五五五五五五五五五五五", 20, "Chinese", seconds=20),
    [("四", 0.5), ("。", 0.5), ("五" * 14, 0.5)],
)
NAN = replace(chunk_result("six", 40), tokens=(Token(7, MIN_LOGPROB, 0, 3),))
SILENCE = ChunkResult(44, 50, 0)


def verbose(*chunks: ChunkResult, request: Request = VERBOSE) -> dict:
    return output_of(merge(chunks, 50), request)["verbose_json"]


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("chunks", [(ENGLISH, CHINESE, NAN, SILENCE), (SILENCE,), ()], ids=len)
def test_openais_type_takes_every_transcript_strictly(chunks, confidence):
    found = verbose(*chunks, request=replace(VERBOSE, confidence=confidence))
    typed = TranscriptionVerbose.model_validate(found, strict=True)
    assert typed.text == found["text"] and len(typed.segments) == len(found["segments"])


def test_the_figures_of_a_segment_are_those_of_its_sentence():
    _, second, third, fourth = verbose(ENGLISH, CHINESE)["segments"]
    assert (second["text"], second["tokens"], second["temperature"], second["seek"]) == (
        "Three.",
        [103],
        0.4,
        0,
    )
    assert (third["text"], third["tokens"], third["temperature"], third["seek"]) == (
        "四。",
        [100, 101],
        0.0,
        2000,
    )
    data = fourth["text"].encode()
    assert fourth["compression_ratio"] == round(len(data) / len(zlib.compress(data)), 3) > 1
    assert {s["no_speech_prob"] for s in (second, third, fourth)} == {0.0}


def test_the_mean_log_probability_is_the_logarithm_of_the_confidence():
    first, *_ = verbose(ENGLISH, request=replace(VERBOSE, confidence=True))["segments"]
    assert first["avg_logprob"] == round(math.log(0.9 * 0.5 * 0.8) / 3, 4)
    assert first["confidence"] == pytest.approx(math.exp(first["avg_logprob"]), abs=0.001)


def test_words_and_segments_have_a_confidence_only_where_it_was_asked_for():
    for confidence in (False, True):
        found = verbose(ENGLISH, request=replace(VERBOSE, confidence=confidence))
        for entry in found["words"] + found["segments"]:
            assert ("confidence" in entry) == confidence
