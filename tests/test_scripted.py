"""Speech that the tiny checkpoints cannot recognise, as scripted recordings: laughter, chants,
music, other languages, loops.

Each scenario is the first, a middle or the last chunk of a recording of three minutes; the rest is
plain English. No job may fail and no spoken word may be missing. Healthy speech costs no further
decode, a loop at most twice its audio.

    bash tests/run.sh tests/test_scripted.py -s      prints the table
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import pytest
import scripted
import soundfile
from recording.chunk import SAMPLE_RATE
from scripted import SECTION_SECONDS, UNSPACED, Recording, Section
from utterance import plain

POSITIONS = ("first", "middle", "last")
MINUTE = SECTION_SECONDS


@dataclass(frozen=True)
class Scenario:
    section: Callable[[], Section]
    extra: float = 0  # seconds of audio that further decodes may cost
    outcomes: tuple[str, ...] = ()  # what the output's retries say, in order
    added: str = ""  # delivered but not said
    fields: dict = None  # more fields for the request


def section(language: str = "English", **fields) -> Section:
    return Section(language, **fields)


def rated(language: str, words_per_minute: int) -> Scenario:
    return Scenario(lambda: section(language).talk(MINUTE, words_per_minute))


LITANY = [
    "holy",
    "mary",
    "mother",
    "of",
    "god",
    "pray",
    "for",
    "us",
    "saint",
    "michael",
    "pray",
    "for",
    "us",
    "saint",
    "gabriel",
    "pray",
    "for",
    "us",
    "saint",
    "raphael",
    "pray",
    "for",
    "us",
]
HYMN = [
    "holy",
    "holy",
    "holy",
    "lord",
    "god",
    "of",
    "power",
    "and",
    "might",
    "hosanna",
    "hosanna",
    "hosanna",
]
NAMES = [
    "my",
    "name",
    "is",
    "S",
    "C",
    "H",
    "W",
    "A",
    "R",
    "Z",
    "E",
    "N",
    "E",
    "G",
    "G",
    "E",
    "R",
    "that",
    "is",
    "S",
    "C",
    "H",
    "W",
    "A",
    "R",
    "Z",
    "E",
    "N",
    "E",
    "G",
    "G",
    "E",
    "R",
]
NUMBERS = [
    "the",
    "budget",
    "is",
    "1,000,000,000",
    "this",
    "year",
    "1,000,000,000,000",
    "next",
    "year",
    "and",
    "10,000,000,000,000",
    "after",
    "that",
]
COUNTING = [str(n) for n in range(1, 101)]
MIXED = [
    "we",
    "say",
    "你好",
    "and",
    "then",
    "谢谢",
    "to",
    "the",
    "老师",
    "before",
    "the",
    "lesson",
    "begins",
]

HEALTHY = {
    **{
        f"{language} at {rate} words a minute": rated(language, rate)
        for language in ("Greek", "Hindi", "Thai", "Persian", "Japanese")
        for rate in (110, 220)
    },
    "English at 220 words a minute": rated("English", 220),
    "a laugh": Scenario(lambda: section().talk(24).say(["ha"] * 12, 4).talk(MINUTE)),
    "a laugh of half a minute": Scenario(
        lambda: section().talk(12).say(["ha"] * 120, 30).talk(MINUTE)
    ),
    "no, no, no": Scenario(lambda: section().say(["no,"] * 8, 3).talk(MINUTE)),
    "a chanted slogan": Scenario(lambda: section().talk(12).say(["USA!"] * 60, 40)),
    "lyrics with a refrain": Scenario(lambda: section().talk(MINUTE, 120, text=HYMN)),
    "a litany": Scenario(lambda: section().talk(MINUTE, 130, text=LITANY)),
    "spelled names": Scenario(lambda: section().talk(MINUTE, 160, text=NAMES)),
    "long numbers": Scenario(lambda: section().talk(MINUTE, 60, text=NUMBERS)),
    "counting": Scenario(lambda: section().talk(MINUTE, 100, text=COUNTING)),
    "applause amid speech": Scenario(lambda: section().talk(24).play(32).talk(MINUTE)),
    "speech behind a jingle": Scenario(lambda: section().play(15).talk(MINUTE)),
    "music for a minute": Scenario(lambda: section().play(MINUTE)),
    "whispering": Scenario(lambda: section(voiced=0.3).talk(MINUTE, 110)),
    "quiet speech": Scenario(lambda: section(voiced=0.6).talk(MINUTE)),
    "two languages in a sentence": Scenario(lambda: section().talk(MINUTE, text=MIXED)),
    "forty German phrases": Scenario(
        lambda: section("German").talk(MINUTE, 60, text=["ja", "genau", "so", "ist", "es"])
    ),
}
DOUBTED = {
    "a jingle behind speech": Scenario(lambda: section().talk(36).play(MINUTE), extra=22),
    "applause at the end": Scenario(lambda: section().talk(48).play(MINUTE), extra=10),
    "an early stop": Scenario(
        lambda: section(model=scripted.stops_early(24)).talk(MINUTE),
        extra=MINUTE,
        outcomes=("mended",),
    ),
    "an early stop in Chinese": Scenario(
        lambda: section("Chinese", model=scripted.stops_early(24)).talk(MINUTE),
        extra=MINUTE,
        outcomes=("mended",),
    ),
    "last words that the aligner cannot place": Scenario(
        lambda: section(piled_from=30).talk(30).play(44).talk(MINUTE),
        extra=22,
        outcomes=("mended",),
    ),
    "hardly a word of Hindi": Scenario(
        lambda: section("Hindi", model=scripted.stops_early(2, cured_by_sampling=True)).talk(
            MINUTE
        ),
        extra=MINUTE,
        outcomes=("mended",),
    ),
    "thanks for music": Scenario(
        lambda: section(model=scripted.thanks).play(MINUTE),
        extra=MINUTE + 2,
        outcomes=("kept",),
        added="Thank you for watching.",
    ),
    "thanks behind speech": Scenario(
        lambda: section(model=scripted.thanks).talk(36).play(MINUTE), extra=22, outcomes=("kept",)
    ),
    "an echoed context": Scenario(
        lambda: section(model=scripted.echoes).talk(MINUTE),
        extra=2 * MINUTE,
        outcomes=("mended",),
        fields={"initial_context": "Alpha bravo charlie delta.", "use_previous_context": True},
    ),
}
LOOPING = {
    "a loop to the cap": Scenario(
        lambda: section(model=scripted.loops(24.5)).talk(24).play(38).talk(MINUTE),
        outcomes=("mended", "kept", "mended"),
        added="ha",
    ),
    "a loop of a long phrase": Scenario(
        lambda: (
            section(model=scripted.loops(24.5, "and that is what I think about it, "))
            .talk(24)
            .play(38)
            .talk(MINUTE)
        ),
        outcomes=("mended", "kept", "mended"),
        added="and that is what I think about it",
    ),
    "a loop that pieces mend": Scenario(
        lambda: section(model=scripted.loops(24.5, cured_under=32)).talk(24).play(38).talk(MINUTE),
        outcomes=("mended", "mended"),
    ),
    "a loop that another sampling mends": Scenario(
        lambda: section(model=scripted.loops(24.5, cured_by_sampling=True)).talk(MINUTE),
        outcomes=("mended",) * 3,
    ),
    "a loop that ends": Scenario(
        lambda: section(model=scripted.loops_and_ends(24.5)).talk(24).play(38).talk(MINUTE),
        outcomes=("mended", "kept", "mended"),
        added="ha",
    ),
    "a loop in Chinese": Scenario(
        lambda: (
            section("Chinese", model=scripted.loops(24.5, "像 ")).talk(24).play(38).talk(MINUTE)
        ),
        outcomes=("mended", "kept", "mended"),
        added="像",
    ),
    "a loop at the start": Scenario(
        lambda: section(model=scripted.loops(0)).play(14, pause=0).talk(MINUTE),
        outcomes=("kept", "mended", "mended"),
        added="ha",
    ),
}
SCENARIOS = HEALTHY | DOUBTED | LOOPING


@pytest.fixture
def run(worker, file_server, monkeypatch):
    """Run a job with the scenario's section in a position; gives (output, recording)."""
    monkeypatch.setattr(
        worker,
        "settings",
        replace(worker.settings, chunk_target_seconds=60, chunk_limit_seconds=180),
    )

    def run(scenario: Scenario, position: str) -> tuple[dict, Recording]:
        sections = [section().talk(MINUTE) for _ in POSITIONS]
        sections[POSITIONS.index(position)] = scenario.section()
        recording = Recording(sections)
        recording.serve(worker, monkeypatch)
        soundfile.write(file_server.folder / "scripted.wav", recording.pcm, SAMPLE_RATE)
        job = {"audio_url": file_server.url("scripted.wav"), **(scenario.fields or {})}
        return asyncio.run(worker.handler({"id": "test", "input": job})), recording

    return run


def units(text: str, language: str) -> list[str]:
    return (
        [plain(c) for c in text if c.isalnum()]
        if language in UNSPACED
        else [u for u in map(plain, text.split()) if u]
    )


def missing_and_added(
    recording: Recording, output: dict, language: str
) -> tuple[list[str], list[str]]:
    """Words said but not delivered, and delivered but not said."""
    said, heard = (
        units(text, language)
        for text in (" ".join(w.text for w in recording.words), output["text"])
    )
    blocks = SequenceMatcher(None, said, heard, autojunk=False).get_opcodes()
    return [u for op, a, b, _, _ in blocks if op != "equal" for u in said[a:b]], [
        u for op, _, _, a, b in blocks if op != "equal" for u in heard[a:b]
    ]


def extra_seconds(recording: Recording) -> float:
    """Of audio decoded beyond once."""
    chunks, end = 0.0, 0.0
    for start, stop in sorted(recording.asked, key=lambda s: (s[0], -s[1])):
        chunks += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return sum(b - a for a, b in recording.asked) - chunks


def test_there_are_at_least_sixty_cases():
    assert len(SCENARIOS) * len(POSITIONS) >= 60


# A healthy section costs one answer wherever it is, so each has one position; the others have all.
PLACED = [(name, POSITIONS[i % len(POSITIONS)]) for i, name in enumerate(HEALTHY)]
PLACED += [(name, position) for name in SCENARIOS if name not in HEALTHY for position in POSITIONS]


@pytest.mark.parametrize("name, position", PLACED)
def test_every_word_that_was_said_is_delivered(run, name, position):
    scenario = SCENARIOS[name]
    output, recording = run(scenario, position)
    assert "error" not in output, output
    special = recording.sections[POSITIONS.index(position)]
    missing, added = missing_and_added(recording, output, special.language)
    extra, retried = extra_seconds(recording), output.get("retries", [])
    told = ", ".join(
        f"{r['start']:.0f}-{r['end']:.0f} s {'+'.join(r['reasons'])} {r['outcome']}"
        for r in retried
    )
    print(
        f"\n| {name}, {position} | {len(recording.words)} | {len(missing)} | "
        f"{' '.join(added)} | {len(recording.asked)} | {extra:.0f} | {told} |",
        end="",
    )
    assert missing == [], output["text"]
    assert added == units(scenario.added, special.language)
    if name in LOOPING:
        assert extra <= 2 * (special.end + scripted.GAP_SECONDS)
    else:
        assert extra <= scenario.extra
    assert scenario.fields or tuple(r["outcome"] for r in retried) == scenario.outcomes
