"""Tokens → characters: which tokens a word, a sentence and a changed text have, and what follows
for their confidence.
"""

import asyncio
import math
from dataclasses import replace

import pytest
from contract.request import Request, parse_request
from hypothesis import example, given
from hypothesis import strategies as st
from recording.chunk import AudioChunk
from result.delivery import deliver, output_of, size_of
from result.transcript import Transcript, merge
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis
from speech.retries import transcribe_chunk
from speech.tokens import (
    MIN_LOGPROB,
    Token,
    confidence_of,
    decoded,
    mean_logprob,
    moved,
    origins_of,
    tokens_in,
)
from speech.words import ChunkResult, Word
from test_fallback import Script, chunk_of
from test_trust import chunk_result

ALPHABET = st.sampled_from("ab c.é天👍ก็\n")
TEXTS = st.text(ALPHABET, max_size=30)
LOGPROBS = st.floats(-20, 0, allow_subnormal=False)


@st.composite
def answers(draw) -> tuple[str, list[tuple[int, bytes, float]]]:
    """A text, and tokens that hold its bytes: one token may end within a character."""
    text = draw(TEXTS)
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=len(data))))
    edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    parts = [data[a:b] for a, b in zip(edges, edges[1:]) if b > a]
    return text, [(i, part, draw(LOGPROBS)) for i, part in enumerate(parts)]


def places(text: str, pieces: list[tuple[int, bytes, float]]) -> list[set[int]]:
    """The slow reference: for each token the characters that have one of its bytes."""
    of_byte = [i for i, character in enumerate(text) for _ in character.encode()]
    found, at = [], 0
    for _, data, _ in pieces:
        found.append(set(of_byte[at : at + len(data)]))
        at += len(data)
    return found


# bytes and characters


@given(answers())
def test_a_token_is_at_every_character_of_which_it_has_a_byte(answer):
    text, pieces = answer
    said, tokens = decoded(pieces)
    assert said == text
    assert [set(range(token.start, token.end)) for token in tokens] == places(text, pieces)
    assert [token.id for token in tokens] == list(range(len(pieces)))


@given(answers(), st.integers(0, 30), st.integers(1, 30))
def test_a_slice_has_the_tokens_of_its_bytes_and_no_others(answer, start, length):
    text, pieces = answer
    _, tokens = decoded(pieces)
    wanted = set(range(start, start + length))
    found = [token.id for token in tokens_in(tokens, start, start + length)]
    assert found == [i for i, place in enumerate(places(text, pieces)) if place & wanted]


@given(answers(), st.data())
def test_a_text_that_lost_characters_has_the_tokens_of_those_that_are_left(answer, data):
    text, pieces = answer
    _, tokens = decoded(pieces)
    kept = sorted(data.draw(st.sets(st.integers(0, max(0, len(text) - 1))))) if text else []
    before = {token.id: set(range(token.start, token.end)) for token in tokens}
    found = {token.id: (token.start, token.end) for token in moved(tokens, kept)}
    for token_id, place in before.items():
        new = [i for i, old in enumerate(kept) if old in place]
        assert found.get(token_id) == ((new[0], new[-1] + 1) if new else None)


@given(TEXTS)
def test_the_origins_of_a_trimmed_text_are_where_it_stood(text):
    begin = len(text) - len(text.lstrip())
    assert origins_of(text.strip(), text) == list(range(begin, begin + len(text.strip())))


@given(TEXTS.filter(str.strip), TEXTS.filter(bool))
@example("ab", "ba")
def test_every_character_has_an_origin_even_where_the_source_lacks_it(text, source):
    origins = origins_of(text, source)
    assert len(origins) == len(text) and origins == sorted(origins)
    assert all(0 <= origin < len(source) for origin in origins)


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=10))
def test_bytes_that_are_no_text_leave_every_character_with_a_token(parts):
    text, tokens = decoded([(i, part, -1.0) for i, part in enumerate(parts)])
    assert text == b"".join(parts).decode("utf-8", "replace")
    assert all(tokens_in(tokens, i, i + 1) for i in range(len(text)))


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), -1e9])
def test_a_probability_that_is_no_number_counts_as_the_lowest(logprob):
    _, (token,) = decoded([(0, b"a", logprob)])
    assert token.logprob == MIN_LOGPROB and confidence_of([token]) == 0.0


# the combination


@given(st.lists(LOGPROBS, min_size=1, max_size=9))
def test_the_confidence_is_the_geometric_mean_of_the_probabilities(logprobs):
    tokens = [Token(0, logprob, 0, 1) for logprob in logprobs]
    product = math.prod(math.exp(logprob) for logprob in logprobs)
    assert confidence_of(tokens) == pytest.approx(product ** (1 / len(logprobs)))
    assert 0 <= confidence_of(tokens) <= 1


def test_without_tokens_there_is_no_confidence():
    assert confidence_of([]) is mean_logprob([]) is None


# words and sentences


def with_tokens(result: ChunkResult, pieces: list[tuple[str, float]]) -> ChunkResult:
    """The result with tokens of these texts and probabilities, from id 100 on."""
    said = [(i, text.encode(), math.log(p)) for i, (text, p) in enumerate(pieces, 100)]
    text, tokens = decoded(said)
    assert text == result.text
    return replace(result, tokens=tuple(tokens))


PIECES = [("One", 0.9), (" thou", 0.8), ("sand", 0.2), (".", 0.5), (" Two", 1.0), ("!", 0.1)]
SPOKEN = with_tokens(chunk_result("One thousand. Two!"), PIECES)
HAN = with_tokens(chunk_result("今天好。", 4, "Chinese"), [("今天", 0.6), ("好。", 0.4)])


def confidences(segments: list[dict]) -> dict[str, float]:
    return {segment["text"]: segment["confidence"] for segment in segments}


def test_a_word_has_the_mean_of_its_tokens_with_or_without_its_punctuation():
    transcript = merge([SPOKEN], 4)
    plain = {"One": 0.9, "thousand": 0.4, "Two": 1.0}
    assert confidences(transcript.to_output()["segments"]) == plain
    punctuated = {"One": 0.9, "thousand.": 0.4, "Two!": 1.0}
    assert confidences(transcript.to_output(punctuation=True)["segments"]) == punctuated


def test_characters_of_one_token_share_its_probability():
    assert confidences(merge([HAN], 8).to_output()["segments"]) == {"今": 0.6, "天": 0.6, "好": 0.4}


def test_a_sentence_has_the_mean_of_all_its_tokens_with_the_punctuation():
    found = confidences(merge([SPOKEN], 4).to_output("sentence")["segments"])
    assert found == {
        "One thousand.": round((0.9 * 0.8 * 0.2 * 0.5) ** (1 / 4), 3),
        "Two!": round(0.1 ** (1 / 2), 3),
    }


def test_a_sentence_over_two_chunks_has_the_tokens_of_both():
    first = with_tokens(chunk_result("so it", 0, seconds=4), [("so", 0.5), (" it", 0.5)])
    empty = ChunkResult(4, 5, 0)
    second = with_tokens(chunk_result("is. Yes.", 5), [("is", 0.25), (".", 1.0), (" Yes.", 0.9)])
    found = confidences(merge([first, empty, second], 9).to_output("both")["sentences"])
    assert found == {"so it is.": 0.5, "Yes.": 0.9}


def test_without_tokens_no_segment_has_a_confidence():
    output = merge([chunk_result("One two.")], 4).to_output("both")
    assert not [s for s in output["segments"] + output["sentences"] if "confidence" in s]


def test_a_compact_result_keeps_the_confidences():
    transcript = merge([SPOKEN], 4)
    request = Request("http://a/b", confidence=True)
    size = size_of(output_of(transcript, request))
    output = asyncio.run(deliver(transcript, request, {}, size - 1, None, "job.json"))
    assert output["reduced_to"] == "compact"
    assert confidences(output["segments"]) == {"One": 0.9, "thousand": 0.4, "Two": 1.0}


# retries


def heard(text: str, finish_reason: str = "stop") -> Hypothesis:
    """An answer with tokens of three bytes, whose ids are where they begin in its bytes."""
    data = text.encode()
    pieces = [(i, data[i : i + 3], -0.1) for i in range(0, len(data), 3)]
    _, tokens = decoded(pieces)
    return Hypothesis(text, "English", finish_reason, len(tokens), tokens=tuple(tokens))


def results_of(chunk: AudioChunk, answer, align) -> list[ChunkResult]:
    models = Script(answer, align)
    return asyncio.run(transcribe_chunk(chunk, None, "", EMPTY_VOCABULARY, models))


async def spread(chunk: AudioChunk, text: str, *_: object) -> tuple[tuple[Word, ...], None]:
    return chunk_result(text, chunk.start, seconds=chunk.duration).words, None


def test_a_loop_said_once_has_the_tokens_of_what_is_left():
    answer = f"first we say {'and so I think. ' * 40}then it ends"
    (result,) = results_of(chunk_of(10), lambda *_: heard(answer, "length"), spread)
    assert result.text == "first we say and so I think. then it ends" and result.doubtful
    for said in ("first we say ", "then it ends"):
        place = answer.index(said)
        expected = [i for i in range(0, len(answer), 3) if place - 3 < i < place + len(said)]
        start = result.text.index(said)
        found = tokens_in(result.tokens, start, start + len(said))
        assert [token.id for token in found] == expected, said
    assert all(tokens_in(result.tokens, i, i + 1) for i in range(len(result.text)))


def test_both_halves_of_a_retry_have_their_own_tokens():
    def answer(chunk, context, temperature):
        return heard("no " * 2000, "length") if chunk.duration > 20 else heard("a new answer")

    results = results_of(chunk_of(30), answer, spread)
    assert [result.text for result in results] == ["a new answer"] * 2
    assert all([t.id for t in result.tokens] == [0, 3, 6, 9] for result in results)


def test_a_text_that_a_tail_repeats_loses_the_tokens_of_what_is_repeated():
    whole, tail = "one two three four", "three four five"

    async def align(chunk: AudioChunk, text: str, *_: object):
        if text != whole:
            return await spread(chunk, text)
        places = [(0, "one", 0.0, False), (4, "two", 1.0, False), (8, "three", 2.0, True)]
        places.append((14, "four", 2.5, True))
        return tuple(
            Word(said, start, start + 0.5, offset, guessed)
            for offset, said, start, guessed in places
        ), None

    def answer(chunk, context, temperature):
        return heard(whole if chunk.start == 0 and chunk.duration == 10 else tail)

    before, after = results_of(chunk_of(10), answer, align)
    assert (before.text, after.text) == ("one two", tail)
    assert [token.id for token in before.tokens] == [0, 3, 6]
    assert before.tokens[-1].end == len(before.text)
    assert [token.id for token in after.tokens] == [0, 3, 6, 9, 12]


def test_a_sampled_retry_has_its_temperature():
    def answer(chunk, context, temperature):
        return heard("said again") if temperature else heard("no " * 2000, "length")

    (result,) = results_of(chunk_of(10), answer, spread)
    assert (result.text, result.temperature) == ("said again", 0.4)
    (result,) = results_of(chunk_of(10), lambda *_: heard("said once"), spread)
    assert result.temperature == 0.0


# the request


def test_probabilities_are_asked_for_only_where_the_output_has_them():
    asked = {
        (form, confidence)
        for form in ("json", "text", "srt", "vtt", "verbose_json")
        for confidence in (False, True)
        if parse_request(
            {"audio_url": "http://a/b", "output_format": form, "confidence": confidence}
        ).needs_tokens
    }
    assert asked == {("json", True), ("verbose_json", False), ("verbose_json", True)}


def test_a_slice_of_a_transcript_of_silence_has_no_tokens():
    silent: Transcript = merge([ChunkResult(0, 4, 0)], 4)
    assert silent.tokens_in(0, 0) == []
