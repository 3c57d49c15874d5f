"""espeak-ng through ctypes: speech together with the exact time of every phoneme.

Needs libespeak-ng.so.1 and its data (Debian: libespeak-ng1, espeak-ng-data), loaded at the first
`say`. The library keeps its state in the process, and what it says depends a little on what it said
before.
"""

import ctypes as C
import functools
from typing import NamedTuple

import numpy as np

RATE = 22_050  # Hz, of all voices of espeak-ng's own
WORD, SENTENCE_END, PHONEME = 1, 5, 7  # espeak_EVENT_TYPE
SPEED, PITCH, PITCH_RANGE = 1, 3, 4  # espeak_PARAMETER
SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1


class Event(NamedTuple):
    kind: int  # WORD, SENTENCE_END, PHONEME or another of espeak-ng's
    sample: int  # at RATE
    phoneme: str  # empty for other kinds
    position: int  # the character of the text with which it begins


class _Id(C.Union):
    _fields_ = [("number", C.c_int), ("name", C.c_char_p), ("string", C.c_char * 8)]


class _Event(C.Structure):
    _fields_ = [
        ("type", C.c_int),
        ("uid", C.c_uint),
        ("text_position", C.c_int),
        ("length", C.c_int),
        ("audio_position", C.c_int),
        ("sample", C.c_int),
        ("user_data", C.c_void_p),
        ("id", _Id),
    ]


_pcm: list[np.ndarray] = []
_events: list[Event] = []


def say(
    text: str, voice: str, rate: int, pitch: int, pitch_range: int
) -> tuple[np.ndarray, list[Event]]:
    """(samples,) mono int16 at RATE, and the events in it. `rate` is in words a minute, the pitches
    0 to 100.

    Raises OSError where the library is missing, ValueError for a voice it doesn't have.
    """
    espeak = library()
    _pcm.clear()
    _events.clear()
    if espeak.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in ((SPEED, rate), (PITCH, pitch), (PITCH_RANGE, pitch_range)):
        espeak.espeak_SetParameter(parameter, value, 0)
    data = text.encode()
    espeak.espeak_Synth(C.c_char_p(data), C.c_size_t(len(data) + 1), 0, 1, 0, UTF8, None, None)
    espeak.espeak_Synchronize()
    return np.concatenate(_pcm) if _pcm else np.zeros(0, np.int16), list(_events)


@functools.cache
def library() -> C.CDLL:
    """The library, started at the first call. Raises OSError where it or its data is missing."""
    espeak = C.CDLL("libespeak-ng.so.1")
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS)
    if rate != RATE:
        raise OSError(f"espeak-ng starts with {rate} instead of {RATE} Hz; is its data installed?")
    espeak.espeak_SetSynthCallback(_collect)
    return espeak


@C.CFUNCTYPE(C.c_int, C.POINTER(C.c_short), C.c_int, C.POINTER(_Event))
def _collect(samples, count, events):
    """Called by espeak-ng with each stretch of sound; its events end with one of type 0."""
    if count > 0 and samples:
        _pcm.append(np.ctypeslib.as_array(samples, (count,)).copy())
    i = 0
    while events[i].type:
        event = events[i]
        position = event.text_position - 1  # espeak-ng counts from 1
        _events.append(Event(event.type, event.sample, _phoneme(event), position))
        i += 1
    return 0


def _phoneme(event: _Event) -> str:
    return (
        bytes(event.id.string).split(b"\0")[0].decode(errors="ignore")
        if event.type == PHONEME
        else ""
    )
