"""Utterances with known words and exact word times, spoken by espeak-ng.

Writes ENGLISH, CHINESE and NOTHING utterances (about a third less: see `speak`) as a pickled list.
Seeds are FIRST_SEED + i for English, a million later for Chinese, two million later for silence and
noise.
"""

import argparse
import multiprocessing
import random

import espeak
import numpy as np
import soxr
from utterance import LONGEST, SAMPLE_RATE, Utterance, Word, write_pickle

ENGLISH = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
    "papa",
    "quebec",
    "romeo",
    "sierra",
    "tango",
    "uniform",
    "victor",
    "whiskey",
    "xray",
    "yankee",
    "zulu",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]
# espeak-ng reads Chinese from pinyin (voice cmn-latn-pinyin), which gives one word event a
# character
PINYIN = dict(
    zip(
        "一二三四五六七八九十天地山水火人",
        [
            "yi1",
            "er4",
            "san1",
            "si4",
            "wu3",
            "liu4",
            "qi1",
            "ba1",
            "jiu3",
            "shi2",
            "tian1",
            "di4",
            "shan1",
            "shui3",
            "huo3",
            "ren2",
        ],
    )
)
VOICES = {
    "English": [
        "en-us",
        "en-us+m1",
        "en-us+m2",
        "en-us+m4",
        "en-us+f2",
        "en-us+f4",
        "en",
        "en+m3",
        "en+f2",
        "en+f3",
        "en-gb-x-rp",
    ],
    "Chinese": [
        "cmn-latn-pinyin",
        "cmn-latn-pinyin+m3",
        "cmn-latn-pinyin+m4",
        "cmn-latn-pinyin+f2",
    ],
}
ROW = 64  # utterances spoken one after another by one process
# These are added to the first seed asked for.
FIRST_SEEDS = {
    "English": 0,
    "Chinese": 1_000_000,
    "None": 2_000_000,
}


def speak(seed: int, language: str, unique: bool = False) -> Utterance | None:
    """One to three random sentences in a random voice, level and noise, 0.5 to LONGEST seconds at
    SAMPLE_RATE.

    `unique`: no word twice. None where it comes out longer, or where espeak-ng's word events don't
    match the words (more often where the process has spoken before). Raises OSError where espeak-ng
    is missing.
    """
    rng, noise = random.Random(seed), np.random.RandomState(seed % 2**31)
    words = _sentences(rng, language, unique)
    voice = rng.choice(VOICES[language])
    rate, pitch, pitch_range = rng.randint(125, 215), rng.randint(25, 75), rng.randint(25, 75)
    pcm, events = espeak.say(_spoken(language, words), voice, rate, pitch, pitch_range)
    spans = _word_spans(events)
    if len(spans) != len(words):  # "x-ray" is two words to some voices
        return None
    lead, tail = noise.uniform(0, 0.5), noise.uniform(0, 0.5)
    x = soxr.resample(pcm.astype(np.float32) / 32768, espeak.RATE, SAMPLE_RATE)
    x = x[: int((spans[-1][1] + 0.1) * SAMPLE_RATE)]
    x = np.pad(x, (int(lead * SAMPLE_RATE), int(tail * SAMPLE_RATE)))
    x = _in_noise(x, noise)
    if not 0.5 <= len(x) / SAMPLE_RATE <= LONGEST:
        return None
    words = tuple(Word(w, start + lead, end + lead) for w, (start, end) in zip(words, spans))
    return Utterance(language, words, _int16(x))


def nothing(seed: int) -> Utterance:
    """0.6 to 4 seconds at SAMPLE_RATE of silence, noise, or a tone in noise; no words, language
    "None".
    """
    rng = np.random.RandomState(seed)
    n = int(rng.uniform(0.6, 4) * SAMPLE_RATE)
    x = rng.randn(n) * 10 ** rng.uniform(-4, -1.3) if seed % 3 else np.zeros(n)
    if seed % 3 == 2:
        x = 0.2 * x + 0.1 * np.sin(2 * np.pi * rng.uniform(80, 2000) * np.arange(n) / SAMPLE_RATE)
    return Utterance("None", (), _int16(np.clip(x, -1, 1)))


def _sentences(rng: random.Random, language: str, unique: bool) -> list[str]:
    vocabulary = ENGLISH if language == "English" else list(PINYIN)
    comma, stop = (",", ".") if language == "English" else ("，", "。")
    deck = rng.sample(vocabulary, len(vocabulary))
    longest = 5 if unique and language == "Chinese" else 7
    words = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        sentence = [
            deck.pop() if unique else rng.choice(vocabulary) for _ in range(rng.randint(2, longest))
        ]
        if len(sentence) > 3 and rng.random() < 0.3:
            sentence[rng.randint(1, len(sentence) - 2)] += comma
        sentence[0] = sentence[0].capitalize()
        sentence[-1] += stop
        words += sentence
    return words


def _spoken(language: str, words: list[str]) -> str:
    if language == "English":
        return " ".join(words).replace("xray", "x-ray").replace("Xray", "X-ray")
    return " ".join(PINYIN[w[0]] + w[1:].replace("，", ",").replace("。", ".") for w in words)


def _word_spans(events: list[espeak.Event]) -> list[tuple[float, float]]:
    """Seconds.

    A word starts at its first phoneme and ends at the pause after its last one, or where the next
    starts.
    """
    starts = [e.sample for e in events if e.kind == espeak.WORD]
    ends = starts[1:] + [
        max((e.sample for e in events if e.kind == espeak.SENTENCE_END), default=0)
    ]
    phonemes = [e for e in events if e.kind == espeak.PHONEME]
    spans = []
    for start, limit in zip(starts, ends):
        within = [
            e for e in phonemes if e.sample >= start and (e.sample < limit or limit == ends[-1])
        ]
        sounds = [e.sample for e in within if not e.phoneme.startswith(("_", "("))]
        first, last = (sounds[0], sounds[-1]) if sounds else (start, start)
        pause = next(
            (e.sample for e in within if e.phoneme.startswith("_") and e.sample > last), limit
        )
        spans.append((first / espeak.RATE, pause / espeak.RATE))
    return spans


def _in_noise(x: np.ndarray, noise: np.random.RandomState) -> np.ndarray:
    """`x` amplified by -14 to 3 dB, plus white noise 10 to 45 dB below it."""
    x = x * 10 ** (noise.uniform(-14, 3) / 20)
    power, snr = np.mean(x**2) + 1e-9, 10 ** (noise.uniform(10, 45) / 10)
    return np.clip(x + noise.randn(len(x)) * np.sqrt(power / snr), -1, 1)


def _int16(x: np.ndarray) -> np.ndarray:
    return (x * 32767).astype(np.int16)


def _work(job: tuple[int, str, bool]) -> Utterance | None:
    seed, language, unique = job
    return nothing(seed) if language == "None" else speak(seed, language, unique)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("english", type=int, help="how many utterances")
    parser.add_argument("chinese", type=int)
    parser.add_argument("nothing", type=int)
    parser.add_argument("out", help="the pickle to write")
    parser.add_argument("first_seed", type=int)
    parser.add_argument("--unique", action="store_true", help="no word twice in an utterance")
    return parser.parse_args()


def main() -> None:
    a = _arguments()
    counts = {"English": a.english, "Chinese": a.chinese, "None": a.nothing}
    jobs = [
        (a.first_seed + FIRST_SEEDS[language] + i, language, a.unique)
        for language, count in counts.items()
        for i in range(count)
    ]
    # espeak-ng carries some of what it said into what it says next. Every row of utterances begins
    # in a fresh child, so that the same arguments give the same list whichever child is free first.
    # Rows of one would lose fewer utterances (7 instead of 21 of 64 were lost), in several times
    # the time.
    espeak.library()
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        made = [u for u in pool.imap(_work, jobs, ROW) if u]
    write_pickle(made, a.out)
    print(len(made), "utterances,", round(sum(u.duration for u in made) / 3600, 2), "h")


if __name__ == "__main__":
    main()
