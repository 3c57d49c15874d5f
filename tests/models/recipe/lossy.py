"""Encode and decode some of a set of utterances: a fourteenth of them by each of four codecs.

Needs the ffmpeg program with libmp3lame and libopus.
"""

import argparse
import random
import subprocess
import tempfile
from dataclasses import replace

import numpy as np
from utterance import SAMPLE_RATE, Utterance, read_pickle, write_pickle

CODECS = (  # file suffix, ffmpeg's options
    ("mp3", "-ar 44100 -ac 2 -c:a libmp3lame -b:a 128k"),
    ("mp3", "-ar 16000 -c:a libmp3lame -b:a 48k"),
    ("m4a", "-ar 44100 -ac 2 -c:a aac -b:a 96k"),
    ("ogg", "-c:a libopus -b:a 32k"),
)
SHARE = 14  # one utterance in 14 gets each codec
RAW = f"-f s16le -ar {SAMPLE_RATE} -ac 1"
GAP = np.zeros(SAMPLE_RATE // 5, np.int16)  # keeps neighbours' codec blocks apart


def through(pcm: np.ndarray, suffix: str, options: str) -> np.ndarray:
    """(samples,) int16 at SAMPLE_RATE after one encoding, as many as before; ffmpeg takes the
    encoder's delay away again.

    Raises FileNotFoundError without ffmpeg, subprocess.CalledProcessError where it fails.
    """
    with tempfile.NamedTemporaryFile(suffix="." + suffix) as file:
        _ffmpeg(f"-y {RAW} -i - {options} {file.name}", pcm.tobytes())
        out = np.frombuffer(_ffmpeg(f"-i {file.name} {RAW} -", b""), np.int16)
    return np.pad(out, (0, max(0, len(pcm) - len(out))))[: len(pcm)]


def degraded(utterances: list[Utterance]) -> list[Utterance]:
    """The list with some utterances encoded, always the same ones.

    A codec gets its utterances as one long file.
    """
    utterances = list(utterances)
    count = len(utterances) // SHARE
    order = random.Random(5).sample(range(len(utterances)), len(utterances))
    for k, (suffix, options) in enumerate(CODECS if count else ()):
        chosen = order[k * count : (k + 1) * count]
        out = through(
            np.concatenate([part for i in chosen for part in (utterances[i].pcm, GAP)]),
            suffix,
            options,
        )
        position = 0
        for i in chosen:
            n = len(utterances[i].pcm)
            utterances[i] = replace(utterances[i], pcm=out[position : position + n].copy())
            position += n + len(GAP)
    return utterances


def _ffmpeg(arguments: str, data: bytes) -> bytes:
    command = ["ffmpeg", "-v", "error", *arguments.split()]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a pickle of synth.py")
    parser.add_argument("target", help="the pickle to write; may be the same")
    a = parser.parse_args()
    write_pickle(degraded(read_pickle(a.source)), a.target)


if __name__ == "__main__":
    main()
