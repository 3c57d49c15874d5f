"""Which audio track of a file is decoded, or which of them are mixed."""

from dataclasses import dataclass

import av
from av.stream import Disposition
from channels import EACH, MAX_EACH
from report import FileRefused, report

DEFAULT, MIX = "default", "mix"
# Players do not choose these by themselves: sound for the deaf or the blind, and comments.
SPECIAL = Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment


@dataclass(frozen=True, slots=True)
class Choice:
    """The audio tracks to decode, of those in a file."""

    streams: list[av.AudioStream]
    numbers: list[int]  # of these streams; the file's first audio track is 0
    total: int  # audio tracks in the file


def chosen(container: av.container.InputContainer, track: int | str) -> Choice:
    """The tracks to decode for `track`: DEFAULT, MIX, EACH, or a number.

    Says in a warning what the file holds beside them. Raises FileRefused where there is no such
    track, or none that can be decoded.
    """
    streams = list(container.streams.audio)
    known = [number for number, stream in enumerate(streams) if stream.codec_context is not None]
    if not streams:
        raise FileRefused("undecodable", "The file at audio_url has no audio track.")
    if isinstance(track, int):
        _check_number(track, streams)
        numbers = [track]
    elif not known:
        numbers = [0]
    elif track in (MIX, EACH):
        numbers = known
    else:
        numbers = [min(known, key=lambda number: _rank(streams[number]))]
    if any(number not in known for number in numbers):  # Their packets would crash PyAV.
        raise FileRefused("undecodable", _unknown_format(numbers[0], known, len(streams)))
    if track == EACH and len(numbers) > MAX_EACH:
        raise FileRefused("no track", _too_many(len(numbers)))
    choice = Choice([streams[number] for number in numbers], numbers, len(streams))
    _warn_of_others(track, choice, known)
    return choice


def _rank(stream: av.AudioStream) -> tuple[bool, bool, bool]:
    """Players take the first of the tracks that are marked as default, or else the first.

    A track without a rate had no packet at the start of the file.
    """
    disposition = stream.disposition
    is_default = bool(disposition & Disposition.default)
    return not stream.codec_context.sample_rate, bool(disposition & SPECIAL), not is_default


def _check_number(track: int, streams: list[av.AudioStream]) -> None:
    if track < len(streams):
        return
    last = len(streams) - 1
    held = "1 audio track, number 0" if not last else f"{last + 1} audio tracks, 0 to {last}"
    raise FileRefused("no track", f"track is {track}; the file at audio_url has only {held}.")


def _too_many(tracks: int) -> str:
    return (
        f"track is 'each', but the file at audio_url has {tracks} audio tracks; at most "
        f"{MAX_EACH} can be transcribed in one job, and track can be the number of one."
    )


def _unknown_format(number: int, known: list[int], total: int) -> str:
    if total == 1:
        return "The audio track of the file at audio_url is in a format that is not known."
    others = f"; these can be decoded: {_listed(known)}" if known else ""
    return f"Track {number} of the file at audio_url is in a format that is not known{others}."


def _warn_of_others(track: int | str, choice: Choice, known: list[int]) -> None:
    """A track that was asked for by its number needs no warning."""
    if isinstance(track, int) or choice.total == 1:
        return
    sentences = []
    if track == DEFAULT:
        sentences.append(
            f"The file has {choice.total} audio tracks, and track {choice.numbers[0]} was "
            f"transcribed; track can be a number from 0 to {choice.total - 1}, or 'mix' for all."
        )
    unknown = [number for number in range(choice.total) if number not in known]
    if unknown:
        sentences.append(f"These tracks are in a format that is not known: {_listed(unknown)}.")
    if sentences:
        report("warning", " ".join(sentences))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
