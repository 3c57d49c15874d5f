"""Recordings with a scripted model, for speech that the tiny checkpoints cannot recognise: they
know 36 English words.

The audio is noise with pauses, and no stretch of it occurs twice. So the script that replaces
vLLM's `generate` finds by the samples which stretch of the recording a decode covers. It answers
with the words of that stretch, or with what a scenario puts in their place. Token counts follow the
real tokenizer, and an answer is cut off at its max_tokens, as by vLLM. The aligner's forward pass
is scripted too; its units are those of the qwen-asr package. All other code is the worker's.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from types import SimpleNamespace

import numpy as np
from recording.chunk import SAMPLE_RATE

SECTION_SECONDS, GAP_SECONDS, PAUSE_SECONDS, SENTENCE_SECONDS = 56.0, 2.0, 0.5, 6.0
# Standard deviations of the samples. To the voice detector LOUD is speech and HISS is silence.
LOUD, HISS = 3000, 3

# Tokens per word, measured with the real tokenizer. A word of Thai or Japanese is a few characters.
TOKENS = {
    "English": 1.1,
    "German": 1.6,
    "Greek": 5.8,
    "Hindi": 4.2,
    "Thai": 3.8,
    "Persian": 3.1,
    "Japanese": 2.0,
    "Chinese": 1.6,
}
VOCABULARY = {
    language: words.split()
    for language, words in {
        "English": (
            "the river was high after three days of rain and nobody in town could remember such a "
            "spring before this one came along"
        ),
        "Greek": (
            "η κυβέρνηση ανακοίνωσε σήμερα νέα μέτρα για την αντιμετώπιση των πυρκαγιών στην "
            "Πελοπόννησο ενώ κάτοικοι εγκαταλείπουν χωριά"
        ),
        "Hindi": (
            "प्रधानमंत्री ने आज सुबह नई दिल्ली में कहा कि सरकार किसानों के लिए विशेष योजना लाएगी "
            "और सभी राज्यों को सहायता मिलेगी"
        ),
        "Thai": (
            "วันนี้ รัฐบาล ประกาศ มาตรการ ใหม่ เพื่อ ช่วยเหลือ ประชาชน ที่ ได้รับ ผลกระทบ จาก น้ำท่วม ใน ภาคเหนือ"
        ),
        "Persian": (
            "رئیس جمهور امروز در تهران گفت که دولت برنامه تازه ای برای حمایت از کشاورزان ارائه "
            "خواهد کرد"
        ),
        "Japanese": "今日 は 東京 で 新しい 博物館 が 開き 多く の 人 が 朝 から 並んで いました",
        "Chinese": "今天 上午 我们 在 公园 里 看到 很多 孩子 放 风筝 天气 非常 好",
    }.items()
}
UNSPACED = ("Thai", "Japanese", "Chinese")


@dataclass(frozen=True)
class Said:
    """A word with its place in the recording, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Stretch:
    """The part of a section that one decode covers, in seconds from the start of the section."""

    start: float
    end: float
    words: list[Said]  # those whose midpoint lies in it
    context: str
    temperature: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def text(self, until: float = float("inf")) -> str:
        """The words that end by second `until`."""
        return " ".join(word.text for word in self.words if word.end <= until)


@dataclass
class Section:
    """About a minute of a recording: what is said in it, and where there is sound."""

    language: str = "English"
    words: list[Said] = field(default_factory=list)
    # Pairs (start, end) of all that is not silent.
    sounds: list[tuple[float, float]] = field(default_factory=list)
    voiced: float = 1.0  # share of each word that is loud enough for the detector
    # The answer for a stretch: None stands for its words, "" for no text.
    model: Callable[[Stretch], str | None] = lambda stretch: None
    # In a chunk over 40 s the aligner gives words behind this second no time of their own.
    piled_from: float = float("inf")

    def talk(
        self, until: float, words_per_minute: float = 150, text: list[str] | None = None
    ) -> "Section":
        """Append sentences with pauses between, up to second `until` of the section."""
        at, step, words = (
            self.end,
            60 / words_per_minute,
            cycle(text) if text else shuffled(self.language),
        )
        while at + SENTENCE_SECONDS <= until + 0.01:
            count = max(1, int((SENTENCE_SECONDS - PAUSE_SECONDS) / step))
            spoken = [Said(next(words), at + i * step, at + (i + 1) * step) for i in range(count)]
            self.words += spoken
            self.sounds += [(w.start, w.start + self.voiced * step) for w in spoken]
            at += SENTENCE_SECONDS
        return self

    def say(self, text: list[str], seconds: float, pause: float = PAUSE_SECONDS) -> "Section":
        """Append these words once, spread over `seconds`."""
        at, step = self.end + pause, seconds / len(text)
        self.words += [
            Said(word, at + i * step, at + (i + 1) * step) for i, word in enumerate(text)
        ]
        self.sounds.append((at, at + seconds))
        return self

    def play(self, until: float, pause: float = PAUSE_SECONDS) -> "Section":
        """Append sound without speech, such as music or applause, up to second `until` of the
        section.
        """
        self.sounds.append((self.end + pause, until))
        return self

    @property
    def end(self) -> float:
        """Seconds of the section, with the pause behind its last sound."""
        return max((end for _, end in self.sounds), default=-PAUSE_SECONDS) + PAUSE_SECONDS


def shuffled(language: str) -> Iterator[str]:
    rng = random.Random(language)
    while True:
        yield rng.choice(VOCABULARY[language])


@functools.cache
def noise_of(seconds: int) -> np.ndarray:
    """(samples,) float32 of standard normal noise. Most recordings are of the same length."""
    return np.random.default_rng(5).standard_normal(seconds * SAMPLE_RATE, np.float32)


class Recording:
    """Sections in a row with a longer pause between.

    Replaces `engine.generate` and the aligner's `_marks`.
    """

    def __init__(self, sections: list[Section]):
        self.sections, self.starts, at = sections, [], 0.0
        for section in sections:
            self.starts.append(at)
            at += section.end - PAUSE_SECONDS + GAP_SECONDS
        noise = noise_of(math.ceil(at))[: round(at * SAMPLE_RATE)]
        pcm = HISS * noise
        for begin, section in zip(self.starts, sections):
            for start, end in section.sounds:
                a, b = (round((begin + t) * SAMPLE_RATE) for t in (start, end))
                pcm[a:b] = LOUD * noise[a:b]
        self.pcm = pcm.clip(-32768, 32767).astype(np.int16)
        self._bytes = self.pcm.tobytes()
        self.words = [
            Said(w.text, begin + w.start, begin + w.end)
            for begin, section in zip(self.starts, sections)
            for w in section.words
        ]
        self.asked: list[tuple[float, float]] = []  # seconds of each decode

    def serve(self, worker, monkeypatch) -> None:
        """Replace the models of `worker` by this script."""
        self._decode = worker.asr._tokenizer.decode
        monkeypatch.setattr(worker.asr, "_rendered", self.rendered)
        monkeypatch.setattr(worker.asr._engine, "generate", self.generate)
        monkeypatch.setattr(worker.aligner, "_marks", self.marks)

    async def rendered(self, chunk, prompt_ids):
        """Replaces vLLM's rendering; the script needs the samples and no spectrum."""
        return (chunk.pcm, prompt_ids), None

    async def generate(self, prompt, sampling, request_id, priority):
        pcm, prompt_ids = prompt
        start = self._bytes.index(pcm[:200].tobytes()) / 2 / SAMPLE_RATE
        end = start + len(pcm) / SAMPLE_RATE
        self.asked.append((start, end))
        context = self._decode(prompt_ids).split("system\n")[1].split("<|im_end|>")[0]
        begin, section = self._section_at(start, end)
        words = [Said(w.text, w.start - begin, w.end - begin) for w in self._between(start, end)]
        stretch = Stretch(start - begin, end - begin, words, context, sampling.temperature)
        text = section.model(stretch)
        text = stretch.text() if text is None else text
        raw = (
            "language "
            f"{section.language if text else 'None'}<asr_text>{written(text, section.language)}"
        )
        tokens = 4 + round(TOKENS[section.language] * len(text.split()))
        finish = "stop"
        if tokens > sampling.max_tokens:
            raw, tokens, finish = (
                raw[: len(raw) * sampling.max_tokens // tokens],
                sampling.max_tokens,
                "length",
            )
        yield SimpleNamespace(
            prompt_token_ids=[],
            outputs=[SimpleNamespace(text=raw, finish_reason=finish, token_ids=range(tokens))],
        )

    def marks(self, batch):
        """For each clip the start and end of each unit in ms.

        A unit that was not said gets the last time, as by the real aligner.
        """
        for task in batch:
            begin, section = self._section_at(task.chunk.start, task.chunk.end)
            last = begin + section.piled_from if task.chunk.duration > 40 else float("inf")
            times = [
                time
                for w in self._between(task.chunk.start, min(task.chunk.end, last))
                for time in letter_times(w)
            ]
            found, at = [], 0
            for unit in task.units:
                span = (
                    times[at : at + len(letters(unit))]
                    or times[-1:]
                    or [(task.chunk.start, task.chunk.start + 0.1)]
                )
                at += len(letters(unit))
                found += [round(1000 * (t - task.chunk.start)) for t in (span[0][0], span[-1][1])]
            yield found

    def _between(self, start: float, end: float) -> list[Said]:
        return [w for w in self.words if start <= (w.start + w.end) / 2 < end]

    def _section_at(self, start: float, end: float) -> tuple[float, Section]:
        """(start in seconds, section) of the section that most of the stretch lies in."""
        return max(
            zip(self.starts, self.sections),
            key=lambda s: min(end, s[0] + s[1].end) - max(start, s[0]),
        )


def letter_times(word: Said) -> list[tuple[float, float]]:
    count = len(letters(word.text))
    step = (word.end - word.start) / max(1, count)
    return [(word.start + i * step, word.start + (i + 1) * step) for i in range(count)]


def letters(text: str) -> list[str]:
    return [c for c in text if c.isalnum()]


def written(text: str, language: str) -> str:
    return text.replace(" ", "") if language in UNSPACED else text


# Scenarios: what the model answers in place of the words


def loops(
    event: float, phrase: str = "ha ", cured_by_sampling: bool = False, cured_under: float = 0
):
    """The words up to second `event`, then `phrase` until the answer is cut off; only where the
    stretch holds `event` and 6 s more.

    A stretch of at most `cured_under` seconds is answered correctly, and so is another sampling
    with `cured_by_sampling`.
    """

    def model(stretch: Stretch) -> str | None:
        if (
            stretch.start > event
            or stretch.end < event + 6
            or stretch.seconds <= cured_under
            or stretch.temperature
            and cured_by_sampling
        ):
            return None
        return f"{stretch.text(event)} {phrase * 9000}"

    return model


def loops_and_ends(event: float, phrase: str = "ha "):
    """Like `loops`, but the loop ends before the cap, after more than anyone can say in the time;
    then come the words behind it.
    """

    def model(stretch: Stretch) -> str | None:
        if stretch.start > event or stretch.end < event + 6:
            return None
        words = [w.text for w in stretch.words if w.start > event]
        return f"{stretch.text(event)} {phrase * int(22 * stretch.seconds)} {' '.join(words)}"

    return model


def stops_early(second: float, cured_by_sampling: bool = False):
    """In a stretch over 40 s the words up to `second` of the section, and no more."""

    def model(stretch: Stretch) -> str | None:
        early = (
            stretch.start < second - 1
            and stretch.seconds > 40
            and not (stretch.temperature and cured_by_sampling)
        )
        return stretch.text(second) if early else None

    return model


def echoes(stretch: Stretch) -> str | None:
    """The context, where there is one, and then the words."""
    return f"{stretch.context} {stretch.text()}" if stretch.context else None


def thanks(stretch: Stretch) -> str | None:
    """A made-up farewell where nothing is said."""
    return None if stretch.words else "Thank you for watching."
