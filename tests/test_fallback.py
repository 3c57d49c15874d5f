"""The rules of the retries by themselves: faults, the retry for each, the choice of the candidate.

Both models are scripted here; test_scripted.py tests the same rules in whole jobs.
"""

import asyncio
import random
import re
import string
from dataclasses import replace

import pytest
from contract.errors import EngineDead, RecognitionError
from hypothesis import given, settings
from hypothesis import strategies as st
from material import silence
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.faults import collapsed, echoed, fault_in
from speech.models.recogniser import Hypothesis, Vocabulary
from speech.retries import Answer, defects, transcribe_chunk
from speech.tail import tail_start, words_end
from speech.words import Word

# Nothing in it is repeated.
LETTERS = "".join(random.Random(1).choices(string.ascii_lowercase, k=3000))
LOOP = "and so I think. " * 100


def chunk_of(seconds: float, *speech: tuple[float, float], start: float = 0) -> AudioChunk:
    """A chunk with speech between these seconds of it, or from its first to its last."""
    spans = tuple(
        (round(a * SAMPLE_RATE), round(b * SAMPLE_RATE)) for a, b in speech or [(0, seconds)]
    )
    return AudioChunk(0, round(start * SAMPLE_RATE), silence(seconds), spans)


def said(text: str, finish_reason: str = "stop", language: str | None = "English") -> Hypothesis:
    return Hypothesis(text, language if text else None, finish_reason, len(text) // 4)


class Script:
    """Models that are scripted, and record the calls of the recogniser.

    `recognise` returns or raises `answer(chunk, vocabulary and context, temperature)`.
    """

    with_words = True

    def __init__(self, answer, align):
        self._answer, self.asked, self.terms = answer, [], []
        self.align = align

    async def recognise(self, chunk, language, context, temperature, vocabulary):
        self.asked.append((chunk.start, chunk.end, context, temperature))
        self.terms.append(vocabulary.terms)
        answer = self._answer(
            chunk, ", ".join([*vocabulary.terms, *filter(None, [context])]), temperature
        )
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def extra_seconds(self) -> float:
        return sum(end - start for start, end, *_ in self.asked[1:])


async def spread(chunk, text, language, spectrum):
    """An `align` that spreads the words over the whole chunk, with measured times."""
    units = list(re.finditer(r"\S+", text))
    step = chunk.duration / len(units)
    return tuple(
        Word(u[0], chunk.start + i * step, chunk.start + (i + 1) * step, u.start())
        for i, u in enumerate(units)
    ), None


def run(answer, chunk, context="", align=spread, terms=()):
    script = Script(answer, align)
    vocabulary = Vocabulary(terms)
    return asyncio.run(transcribe_chunk(chunk, None, context, vocabulary, script)), script


# faults


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("ha " * 40, 20),
        ("No, no, no, no, no, no, no, no.", 4),
        ("USA! " * 12, 10),
        ("Holy, holy, holy, holy, holy, holy.", 5),
        ("very " * 6 + "good", 3),
        ("thank you " * 6, 4),
        ("1,000,000,000,000", 2),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", 8),
        ("哈" * 40, 10),
        ("谢谢" * 30, 15),
        ("Ναι, ναι, ναι, ναι, ναι, ναι, ναι.", 4),
        ("ora pro nobis. " * 30, 60),
        ("", 60),
        ("Yes.", 0.4),
    ],
)
def test_an_answer_that_ends_by_itself_at_a_speakable_rate_is_no_fault(text, seconds):
    assert fault_in(said(text), "", seconds) is None


@pytest.mark.parametrize(
    "heard, seconds, fault",
    [
        (said(LOOP, "length"), 60, "loop"),
        (said("哈" * 500, "length"), 10, "loop"),
        (said("1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "length"), 10, "cut_off"),
        (said("ha " * 500), 10, "loop"),
        (said(LETTERS[:500]), 10, "too_much"),
        (said("哈" * 300), 20, "loop"),
        (said("Thanks."), 60, "too_little"),
        (said("嗯。"), 60, "too_little"),
        (said("Thanks."), 15, None),
    ],
)
def test_each_fault_has_its_name(heard, seconds, fault):
    assert fault_in(heard, "", seconds) == fault


@pytest.mark.parametrize("letters_per_second, fault", [(30, None), (50, "too_much")])
def test_too_much_is_letters_per_second_of_the_chunk(letters_per_second, fault):
    assert fault_in(said(LETTERS[: letters_per_second * 30]), "", 30) == fault


@pytest.mark.parametrize(
    "context, text, echo",
    [
        ("Names: Tango, Whiskey.", "names tango whiskey. Alpha", True),
        (
            "a long context that ends with these last few words",
            "Ends with these last few words. Alpha",
            True,
        ),
        ("Tango", "Tango alpha bravo", False),  # a single word is probably spoken
        ("Names: Tango, Whiskey.", "Tango, Whiskey.", False),
        ("", "Alpha", False),
    ],
)
def test_an_echo_is_a_text_that_begins_like_its_context_or_with_the_end_of_it(context, text, echo):
    assert bool(echoed(context, (), text)) is echo


NAMES = ("Kubernetes", "Žižek", "Qwen", "Łukasz Nowak", "Tango")


@pytest.mark.parametrize(
    "terms, text, echo",
    [
        (NAMES, "Kubernetes, Žižek, Qwen, Łukasz Nowak, Tango.", "kubernetesžižekqwen"),
        (NAMES, "kubernetes žižek qwen and then we went on", "kubernetesžižekqwen"),  # then speech
        (NAMES, "Qwen, Łukasz Nowak, Tango", "qwenłukasznowaktango"),  # from the middle on
        (NAMES, "Łukasz Nowak, Tango.", "łukasznowaktango"),
        (("Žižek", "Lacan"), "Žižek, Lacan.", "žižeklacan"),  # all of a short list
        (("淋巴结", "臀位", "积液", "颈部"), "淋巴结 臀位 积液 颈部", "淋巴结臀位积液"),
        (("Qwen",), "Qwen.", ""),  # a single term is probably spoken
        (NAMES, "Qwen.", ""),
        (("International Business Machines",), "International Business Machines.", ""),
        (NAMES, "Kubernetes and Žižek and Qwen and Łukasz Nowak and Tango.", ""),
        (NAMES, "Tango, Qwen, Žižek, Kubernetes.", ""),  # in another order
        (NAMES, "So Kubernetes, Žižek, Qwen.", ""),
        (("AB", "CD"), "AB, CD.", ""),  # too short to tell
        (("C++", "+++", "…"), "C", ""),
        ((), "Kubernetes, Žižek, Qwen.", ""),
    ],
)
def test_an_echo_of_a_vocabulary_is_a_run_of_terms_in_the_order_of_the_list(terms, text, echo):
    assert echoed("", terms, text) == echo


@pytest.mark.parametrize(
    "text, once",
    [
        (f"Hello. {LOOP}", "Hello. and so I think."),
        ("像" * 119, "像"),
        ("Hello. " + "ha " * 500 + "Goodbye.", "Hello. ha Goodbye."),
        ("one two " * 30 + "one t", "one two"),
        ("one two three four", "one two three four"),
        ("no no no no", "no no no no"),
    ],
)
def test_a_loop_is_collapsed_to_what_it_repeats(text, once):
    assert "".join(text[i] for i in collapsed(text)) == once


# retries


def test_a_healthy_answer_costs_no_retry():
    results, script = run(lambda *_: said("one two three " * 20), chunk_of(60))
    assert len(script.asked) == 1 and [r.retries for r in results] == [()]


def test_an_answer_without_text_is_accepted():
    results, script = run(lambda *_: said(""), chunk_of(60))
    assert len(script.asked) == 1 and (results[0].text, results[0].retries, results[0].failure) == (
        "",
        (),
        None,
    )


def test_an_echoed_context_is_left_out_of_the_next_recognition():
    context = "Names: Tango, Whiskey."
    results, script = run(
        lambda c, given, t: said(given + " One two three." if given else "One two three."),
        chunk_of(6),
        context,
    )
    assert [asked[2] for asked in script.asked] == [context, ""]
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("One two three.", ("context_echo",), "mended")
    ]


ECHO = "Kubernetes, Žižek, Qwen, Łukasz Nowak, Tango."


def test_an_echoed_vocabulary_is_left_out_of_the_next_recognition():
    results, script = run(
        lambda c, given, t: said(ECHO if "Qwen" in given else "One two three four five."),
        chunk_of(6),
        terms=NAMES,
    )
    assert script.terms == [NAMES, ()]
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("One two three four five.", ("context_echo",), "mended")
    ]


def test_speech_behind_an_echoed_vocabulary_is_delivered_without_the_echo():
    speech = "One two three four five six seven."
    results, _ = run(
        lambda c, given, t: said(f"{ECHO} {speech}" if "Qwen" in given else speech),
        chunk_of(9),
        terms=NAMES,
    )
    assert [(r.text, r.outcome) for r in results] == [(speech, "mended")]


def test_terms_that_were_said_in_the_order_of_the_list_keep_their_spelling():
    """Without the vocabulary they are spelt by sound, so the first answer stands."""
    sounds = "Cubernetis, Jijek, Quen and Lucas Novak danced a tango."
    results, script = run(
        lambda c, given, t: said(f"{ECHO} Tango." if "Qwen" in given else sounds),
        chunk_of(6),
        terms=NAMES,
    )
    assert script.terms == [NAMES, ()]
    assert [(r.text, r.retries, r.doubtful) for r in results] == [(f"{ECHO} Tango.", (), False)]


@pytest.mark.parametrize(
    "text", ["Qwen.", "Qwen is by Alibaba.", "We asked Łukasz Nowak.", "Kubernetes and Žižek."]
)
def test_speech_with_terms_in_it_costs_no_retry(text):
    results, script = run(lambda *_: said(text), chunk_of(3), terms=NAMES)
    assert len(script.asked) == 1 and [(r.text, r.retries) for r in results] == [(text, ())]


def test_an_echo_is_kept_and_marked_where_the_retry_has_no_text():
    """Text that was obtained is delivered."""
    results, _ = run(
        lambda c, given, t: said(ECHO if "Qwen" in given else ""), chunk_of(6), terms=NAMES
    )
    assert [(r.text, r.retries, r.outcome) for r in results] == [(ECHO, ("context_echo",), "kept")]


@pytest.mark.parametrize("seconds", [3, 30])
def test_a_looping_echo_leaves_the_vocabulary_out_of_halves_and_another_sampling(seconds):
    results, script = run(
        lambda c, given, t: said(ECHO * 50 if "Qwen" in given else "one two"),
        chunk_of(seconds),
        terms=NAMES,
    )
    assert script.terms == [NAMES, *[()] * (2 if seconds == 30 else 1)]
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("one two", ("loop",), "mended")
    ] * len(results)


def test_halves_and_another_sampling_have_the_vocabulary_but_no_context():
    answer = lambda c, given, t: said(LOOP, "length") if c.duration > 20 else said("from here on")
    _, script = run(answer, chunk_of(30), "what went before", terms=NAMES)
    assert script.terms == [NAMES] * 3 and [asked[2] for asked in script.asked] == [
        "what went before",
        "",
        "",
    ]
    _, script = run(
        lambda c, given, t: said("Thanks."), chunk_of(60), "what went before", terms=NAMES
    )
    assert script.terms == [NAMES] * 2 and [asked[2] for asked in script.asked] == [
        "what went before",
        "",
    ]


def test_a_refused_chunk_and_a_tail_are_recognised_without_the_vocabulary():
    answers = iter([RecognitionError("refused"), said("one two")])
    _, script = run(lambda *_: next(answers), chunk_of(6), terms=NAMES)
    assert script.terms == [NAMES, ()]
    answer = lambda c, *_: said("one two three four") if c.start == 0 else said("")
    _, script = run(answer, chunk_of(40), align=until_second_ten, terms=NAMES)
    assert script.terms == [NAMES, ()]


def test_a_loop_in_a_long_chunk_is_narrowed_down_in_halves():
    def answer(chunk, context, temperature):
        return (
            said("one two " + LOOP, "length")
            if chunk.start < 5 < chunk.end
            else said(f"from {chunk.start:.0f} seconds")
        )

    results, script = run(answer, chunk_of(64))
    assert [(r.start, r.end, r.outcome) for r in results] == [
        (0, 16, "kept"),
        (16, 32, "mended"),
        (32, 64, "mended"),
    ]
    assert results[0].text == "one two and so I think." and results[2].text == "from 32 seconds"
    assert script.extra_seconds == 64 + 32 + 16 and max(asked[3] for asked in script.asked) > 0


def test_a_loop_in_a_short_chunk_is_sampled_once_more():
    results, script = run(
        lambda c, given, temperature: said("one two") if temperature else said(LOOP, "length"),
        chunk_of(15),
    )
    assert len(script.asked) == 2 and [(r.text, r.retries, r.outcome) for r in results] == [
        ("one two", ("loop",), "mended")
    ]


def test_too_little_is_sampled_once_more_and_never_halved():
    results, script = run(lambda *_: said("Thanks."), chunk_of(60))
    assert [asked[:2] for asked in script.asked] == [(0, 60)] * 2 and script.asked[1][3] > 0
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("Thanks.", ("too_little",), "kept")
    ]


def test_a_chunk_that_the_engine_refused_is_recognised_once_more():
    answers = iter([RecognitionError("refused"), said("one two")])
    results, _ = run(lambda *_: next(answers), chunk_of(6))
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("one two", ("engine_error",), "mended")
    ]


def test_the_cause_of_a_refused_chunk_is_logged_once_without_its_message(capsys):
    def refuse(*_):
        try:
            raise ValueError("prompt too long: secret words")
        except ValueError as cause:
            refused = RecognitionError("refused")
            refused.__cause__ = cause
        return refused

    _, script = run(refuse, chunk_of(6, start=3), context="secret context")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "refused" in line]
    assert len(script.asked) == 2
    assert (
        "the chunk at 3.000 s was refused: ValueError at " in line and "test_fallback.py:" in line
    )
    assert "secret" not in line


def test_a_dead_engine_ends_the_recognition_of_the_other_half():
    ended = []

    class Halves(Script):
        async def recognise(self, chunk, *others):
            if chunk.start == 0 and chunk.duration < 60:
                await asyncio.sleep(0)
                raise EngineDead("dead")
            if chunk.start:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append("second half")
            return await super().recognise(chunk, *others)

    async def job():
        script = Halves(lambda *_: said(LOOP, "length"), spread)
        with pytest.raises(EngineDead):
            await transcribe_chunk(chunk_of(60), None, "", Vocabulary(), script)
        assert ended == ["second half"]

    asyncio.run(asyncio.wait_for(job(), 30))


def test_a_timeout_fails_the_chunk_without_a_retry():
    results, script = run(lambda *_: TimeoutError(), chunk_of(6))
    assert len(script.asked) == 1 and [(r.failure, r.text) for r in results] == [("timeout", "")]


def test_a_dead_engine_is_raised():
    with pytest.raises(EngineDead):
        run(lambda *_: EngineDead("dead"), chunk_of(60))


# the choice of the candidate


def test_a_second_attempt_never_replaces_a_better_first_one():
    def answer(chunk, context, temperature):
        return (
            said("Well. " + LOOP, "length") if chunk.duration == 60 else RecognitionError("refused")
        )

    results, _ = run(answer, chunk_of(60))
    assert [(r.text, r.outcome, r.failure) for r in results] == [
        ("Well. and so I think.", "kept", None)
    ]


def test_a_faulty_text_is_better_than_no_text():
    results, _ = run(
        lambda c, *_: said("Thanks. " + LOOP, "length") if c.duration == 60 else said(""),
        chunk_of(60),
    )
    assert [(r.text, r.retries, r.outcome) for r in results] == [
        ("Thanks. and so I think.", ("loop",), "kept")
    ]


def test_candidates_compare_by_unanswered_seconds_then_by_text_then_by_faulty_seconds():
    short, long = chunk_of(10), chunk_of(50)
    worst_last = [
        (Answer(short, "a"), Answer(long, "b")),
        (Answer(short, "a", fault="loop"), Answer(long, "b")),
        (Answer(short, "a"), Answer(long, "b", fault="loop")),
        (Answer(short), Answer(long)),
        (Answer(short, fault="timeout"), Answer(long, "b")),
        (Answer(short, "a"), Answer(long, fault="engine_error")),
    ]
    worst_first = worst_last[::-1]
    assert sorted(worst_first, key=defects) == worst_last


ANY_ANSWER = st.sampled_from(
    [
        said("one two three"),
        said(""),
        said(LOOP, "length"),
        said(LETTERS),
        said("abc", "length"),
        RecognitionError("no"),
        TimeoutError(),
    ]
)


@given(st.floats(0.1, 180), st.data())
@settings(max_examples=300)
def test_whatever_the_engine_answers_the_results_tile_the_chunk_and_cost_at_most_twice_its_audio(
    seconds, data
):
    """And where any answer had text, a text is delivered."""
    texts = []

    def answer(chunk, context, temperature):
        heard = data.draw(ANY_ANSWER)
        texts.extend([heard.text] if isinstance(heard, Hypothesis) and heard.text else [])
        return heard

    chunk = chunk_of(seconds)
    results, script = run(answer, chunk)
    assert [r.start for r in results] == [chunk.start, *(r.end for r in results[:-1])] and results[
        -1
    ].end == chunk.end
    assert script.extra_seconds <= 2 * chunk.duration + 1e-6
    assert any(r.text for r in results) or not texts
    assert all(r.retries for r in results if r.doubtful and r.failure is None)


# the tail


async def until_second_ten(chunk, text, language, spectrum):
    """An `align` whose last word ends at second 10 of the recording, in a chunk that begins before
    that.
    """
    return await spread(
        chunk.split(10 * SAMPLE_RATE)[0] if chunk.start < 10 < chunk.end else chunk,
        text,
        language,
        spectrum,
    )


def test_only_the_stretch_behind_the_last_word_is_recognised_again():
    answer = lambda c, *_: (
        said("one two three four") if c.start == 0 else said("five six seven eight nine ten eleven")
    )
    results, script = run(answer, chunk_of(40, (0, 9.9), (10.5, 39)), align=until_second_ten)
    assert [asked[:2] for asked in script.asked] == [(0, 40), (10.2, 40)]
    assert [(r.start, r.end, r.text, r.retries, r.outcome) for r in results] == [
        (0, 10.2, "one two three four", (), "mended"),
        (10.2, 40, "five six seven eight nine ten eleven", ("tail_missing",), "mended"),
    ]


def test_music_behind_the_last_word_costs_one_recognition_and_changes_nothing():
    results, script = run(
        lambda c, *_: said("one two three four") if c.start == 0 else said(""),
        chunk_of(40),
        align=until_second_ten,
    )
    assert len(script.asked) == 2 and [(r.end, r.text, r.retries) for r in results] == [
        (40, "one two three four", ())
    ]


@pytest.mark.parametrize(
    "tail",
    [said(LOOP, "length"), said("Thanks for watching."), RecognitionError("no")],
    ids=["loop", "hardly a word", "none"],
)
def test_a_faulty_tail_is_not_added_and_the_chunk_is_marked_doubtful(tail):
    answer = lambda c, *_: said("one two three four") if c.start == 0 else tail
    results, script = run(answer, chunk_of(40), align=until_second_ten)
    assert len(script.asked) == 2
    assert [(r.end, r.text, r.retries, r.outcome) for r in results] == [
        (40, "one two three four", ("tail_missing",), "kept")
    ]


async def piled_at_second_10(chunk, text, language, spectrum):
    """As the real aligner at times: the last two words of a long chunk get no time of their own."""
    words, _ = await until_second_ten(chunk, text, language, spectrum)
    last = len(words) - 2 if chunk.duration > 30 else len(words)
    return tuple(replace(word, estimated=i >= last) for i, word in enumerate(words)), None


@pytest.mark.parametrize(
    "tail, front",
    [
        (
            "Four, five six seven eight nine ten eleven.",
            "one two three",
        ),  # the last word was timed too early
        ("Three four five six seven eight nine ten.", "one two"),
        ("five six seven eight nine ten eleven four", "one two three four"),
        (
            "two three four five six seven eight nine",
            "one",
        ),  # three are repeated, and two of them have no time
    ],
)
def test_a_word_that_was_timed_too_early_and_comes_again_in_the_tail_is_not_doubled(tail, front):
    answer = lambda c, *_: said("one two three four") if c.start == 0 else said(tail)
    results, _ = run(answer, chunk_of(40), align=piled_at_second_10)
    assert [r.text for r in results] == [front, tail] and [r.retries for r in results] == [
        (),
        ("tail_missing",),
    ]


def test_a_word_with_a_measured_time_that_comes_again_in_the_tail_was_said_twice():
    answer = lambda c, *_: (
        said("well thank you")
        if c.start == 0
        else said("Thank you all, thank you very much, ladies and gentlemen.")
    )
    results, _ = run(answer, chunk_of(40), align=until_second_ten)
    assert [r.text for r in results] == [
        "well thank you",
        "Thank you all, thank you very much, ladies and gentlemen.",
    ]


def test_where_the_tail_repeats_every_word_no_text_is_left_in_front():
    answer = lambda c, *_: said("one two three four five six seven eight")
    results, _ = run(answer, chunk_of(40), align=piled_at_second_10)
    assert [(r.text, len(r.words)) for r in results] == [
        ("", 0),
        ("one two three four five six seven eight", 8),
    ]


def test_up_to_two_seconds_of_speech_behind_the_last_word_cost_no_recognition():
    _, script = run(lambda *_: said("one two three four"), chunk_of(11.9), align=until_second_ten)
    assert len(script.asked) == 1


def test_estimated_words_at_the_end_take_as_long_per_letter_as_the_measured_ones():
    words = [
        Word("four", 1, 1.4, 0),
        Word("five", 1.5, 1.9, 5),
        Word("eleven", 1.9, 30, 10, estimated=True),
    ]
    assert words_end(words) == pytest.approx((1.9, 1.9 + 6 * 0.1))
    assert words_end(words[2:]) is None


@pytest.mark.parametrize(
    "measured, end, cut",
    [
        (4.9, 4.9, 5.5),
        (5.2, 5.2, 5.5),
        (5.8, 5.8, 5.8),
        (4.0, 4.0, 4.0),
        (7.0, 7.0, 7.0),
        (4.5, 6.3, 5.5),  # the last word's own end is a guess, and may be too late
        (4.5, 9.8, 10.5),
    ],
)
def test_the_tail_begins_in_the_pause_behind_the_last_word(measured, end, cut):
    assert tail_start(
        chunk_of(20, (0, 5), (6, 10), (11, 20), start=100), 100 + measured, 100 + end
    ) == round(cut * SAMPLE_RATE)


# without word times


def test_without_word_times_the_aligner_is_not_asked_and_no_tail_is_missed():
    async def refuse(*_):
        raise AssertionError("asked for word times")

    script = Script(lambda *_: said("one two three"), refuse)
    script.with_words = False
    chunk = chunk_of(10)
    (result,) = asyncio.run(transcribe_chunk(chunk, None, "", Vocabulary(()), script))
    assert (result.text, result.words, result.retries) == ("one two three", (), ())
