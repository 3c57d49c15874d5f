"""Speech behind the last word of a text: where it begins, and how much of the text it repeats.

Pure functions. Times are seconds from the start of the recording, unless they say otherwise.
"""

from collections.abc import Sequence

from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.faults import normalised
from speech.words import Word

# Where speech goes on for longer than this after the last word, text may be missing.
TAIL_SECONDS = 2.0
PAUSE_NEAR_SECONDS = 0.3  # a pause counts as following a word if it starts within 0.3 s of it


def split_at_tail(chunk: AudioChunk, words: Sequence[Word]) -> tuple[AudioChunk, AudioChunk] | None:
    """(the chunk up to its last word, the chunk after it).

    None where the speech ends within TAIL_SECONDS of that word, or where no word was measured.
    """
    ends = words_end(words)
    if ends is None:
        return None
    measured_end, end = ends
    if speech_end(chunk) - end <= TAIL_SECONDS:
        return None
    return chunk.split(tail_start(chunk, measured_end, end))


def words_end(words: Sequence[Word]) -> tuple[float, float] | None:
    """(end of the last word with a measured time, end of the last word).

    The words after the last measured one are assumed to be spoken at the same pace per character.
    None where no word has a measured time.
    """
    measured = [word for word in words if not word.estimated]
    if not measured:
        return None
    last_end = measured[-1].end
    seconds = sum(word.end - word.start for word in measured)
    characters = sum(len(word.text) for word in measured)
    characters_after = sum(len(word.text) for word in words if word.start >= last_end)
    return last_end, last_end + characters_after * seconds / characters


def speech_end(chunk: AudioChunk) -> float:
    """Where the speech of the chunk ends."""
    if not chunk.speech:
        return chunk.start
    _, last_sample = chunk.speech[-1]
    return chunk.start + last_sample / SAMPLE_RATE


def tail_start(chunk: AudioChunk, measured_end: float, end: float) -> int:
    """The sample of the chunk at which its tail begins.

    It is in the middle of the pause nearest to the end of the last word, or else at that end, but
    not before `measured_end`. Both ends are those of `words_end`.
    """
    first = round((measured_end - chunk.start) * SAMPLE_RATE)
    at = round((end - chunk.start) * SAMPLE_RATE)
    latest = at + round(PAUSE_NEAR_SECONDS * SAMPLE_RATE)
    pauses = [
        (start, stop)
        for (_, start), (stop, _) in zip(chunk.speech, chunk.speech[1:])
        if start <= latest and stop > first
    ]
    if not pauses:
        return at
    start, stop = min(pauses, key=lambda pause: max(pause[0] - at, at - pause[1]))
    return max(first, (start + stop) // 2)


def words_repeated(words: Sequence[Word], tail: str) -> int:
    """How many of the last words the text of the tail repeats.

    It repeats words whose times were too early, because the tail contains them. Words that the
    aligner cannot place pile up at one time, so at least one of them has an estimated time. Words
    whose times are all measured were said twice.
    """
    tail_letters = normalised(tail)
    last = ""
    found = 0
    for count, word in enumerate(reversed(words), 1):
        last = normalised(word.text) + last
        has_estimate = any(later.estimated for later in words[-count:])
        if last and tail_letters.startswith(last) and has_estimate:
            found = count
    return found
