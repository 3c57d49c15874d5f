"""Speech with known word times in languages without an aligner, spoken by espeak-ng.

    python make.py FOLDER [--seed 1] [--seconds 150] [--first 0]

Writes one Opus file for each language of sentences.txt, and words.json: the text of each file, and
[offset, length, start, end] of its words, in characters of the text and seconds of the file. The
rate changes with every sentence, and so does the voice. There are pauses between the sentences, at
espeak-ng's own places, and at words where nobody expects one. Some files have noise. `--first`
takes every second sentence from there on.

It needs libespeak-ng.so.1 and its data, like the models' recipe.
"""

import argparse
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "models/recipe"), str(HERE.parents[1] / "src")]

import espeak  # noqa: E402
import media  # noqa: E402
import numpy as np  # noqa: E402
import soxr  # noqa: E402

RATE = 16_000  # Hz
WORDS_A_MINUTE = (110, 220)
VOICES = ("", "+m3", "+f2", "+f4", "+m7")
HESITATIONS = 0.06  # the share of words before which the speaker pauses without a mark
LOUDNESS = 3000  # the speech's root mean square
NOISE = (0, 10, 40, 90)  # its standard deviation, one for each file in turn
BITRATE = 12_000


@dataclass(frozen=True)
class Token:
    """A word with its marks, and what follows it in the text."""

    text: str
    space: str
    said: str


@dataclass
class Speech:
    """Samples, and their text with the words' [offset, length, start, end] in samples."""

    pcm: np.ndarray
    text: str
    words: list[list[int]]


def languages() -> dict[str, tuple[str, list[str]]]:
    """Language → (its voice, its sentences)."""
    found = {}
    _, *blocks = (HERE / "sentences.txt").read_text(encoding="utf-8").split("\n\n")
    for block in blocks:
        head, *lines = block.strip().split("\n")
        language, voice = head.split()
        found[language] = voice, lines
    return found


def tokens_of(line: str) -> list[Token]:
    """Thai words are divided by bars and said as words; a space of Thai is a comma to espeak-ng."""
    if "|" not in line:
        return [Token(word, " ", word) for word in line.split()]
    found = []
    for word, divider in re.findall(r"([^| ]+)([| ]*)", line):
        space = " " if " " in divider or not divider else ""
        found.append(Token(word, space, word + "," * len(space)))
    return found


def spoken(line: str, voice: str, rng: random.Random) -> Speech:
    """A sentence in a voice and at a rate of its own. A word ends with its last sound."""
    tokens = tokens_of(line)
    said = " ".join(token.said for token in tokens)
    rate, pitch = rng.randint(*WORDS_A_MINUTE), rng.randint(35, 65)
    pcm, events = espeak.say(said, voice + rng.choice(VOICES), rate, pitch, 50)
    starts = {e.position: e.sample for e in events if e.kind == espeak.WORD}
    silent = [e.sample for e in events if e.kind == espeak.PHONEME and e.phoneme.startswith("_")]
    speech = Speech(soxr.resample(pcm.astype(np.float32), espeak.RATE, RATE), "", [])
    position = 0
    for token in tokens:
        if (start := starts.get(position)) is not None:
            after = min([s for s in starts.values() if s > start], default=len(pcm))
            end = min([s for s in silent if start < s < after], default=after)
            times = [at * RATE // espeak.RATE for at in (start, end)]
            speech.words.append([len(speech.text), len(token.text), *times])
        speech.text += token.text + token.space
        position += len(token.said) + 1
    return speech


def with_hesitations(speech: Speech, rng: random.Random) -> Speech:
    """The same with silence before some of its words."""
    pieces, done, added = [], 0, 0
    words = []
    for offset, length, start, end in speech.words:
        if start > 0 and rng.random() < HESITATIONS:
            gap = round(rng.uniform(0.2, 0.8) * RATE)
            pieces += [speech.pcm[done:start], np.zeros(gap, np.float32)]
            done, added = start, added + gap
        words.append([offset, length, start + added, end + added])
    pcm = np.concatenate([*pieces, speech.pcm[done:]])
    return Speech(pcm, speech.text, words)


def recording(voice: str, lines: list[str], seconds: float, noise: float, seed: int) -> Speech:
    """Sentences in random order with pauses between them, up to `seconds`."""
    rng = random.Random(seed)
    whole = Speech(np.zeros(RATE // 2, np.float32), "", [])
    order: list[str] = []
    while len(whole.pcm) < seconds * RATE:
        order = order or rng.sample(lines, len(lines))
        part = with_hesitations(spoken(order.pop(), voice, rng), rng)
        part.pcm *= LOUDNESS / np.sqrt((part.pcm**2).mean())
        for offset, length, start, end in part.words:
            moved = [offset + len(whole.text), length, start + len(whole.pcm), end + len(whole.pcm)]
            whole.words.append(moved)
        pause = rng.choice((rng.uniform(0, 0.4), rng.uniform(0.2, 1.2), rng.uniform(0.8, 2.2)))
        gap = np.zeros(round(pause * RATE), np.float32)
        whole = Speech(
            np.concatenate([whole.pcm, part.pcm, gap]), whole.text + part.text, whole.words
        )
    whole.pcm += np.random.default_rng(seed).normal(0, noise, len(whole.pcm))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--first", type=int, default=0)
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for i, (language, (voice, lines)) in enumerate(languages().items()):
        noise = NOISE[i % len(NOISE)]
        speech = recording(voice, lines[a.first :: 2], a.seconds, noise, 100 * a.seed + i)
        pcm = speech.pcm.clip(-32768, 32767).astype(np.int16)
        media.encode(pcm, a.folder / f"{language}.opus", bitrate=BITRATE)
        words = [[o, n, round(s / RATE, 3), round(e / RATE, 3)] for o, n, s, e in speech.words]
        found[language] = {"text": speech.text.rstrip(), "words": words}
        print(f"{language}: {len(pcm) / RATE:.0f} s, {len(words)} words")
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (a.folder / "words.json").write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
