"""A bank of utterances in few small files: one FLAC for each language, and the words in bank.json.

Writes as many of the utterances as fit, in their order, each language up to its share of the size.
"""

import argparse
import bisect
import io
import json
from pathlib import Path

import numpy as np
import soundfile
from utterance import SAMPLE_RATE, Utterance, Word, read_pickle

SHARES = {"English": 0.59, "Chinese": 0.39, "None": 0.02}  # shares of the bank's bytes
INDEX = "bank.json"


def load(folder: str | Path) -> list[Utterance]:
    """Every utterance of the bank, sample for sample, mono int16 at SAMPLE_RATE; word times are
    rounded to 0.1 ms.

    The languages one after another, each in the order it was written. Raises FileNotFoundError
    where there is no bank.
    """
    folder = Path(folder)
    records = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    tracks = {r["language"]: _decoded(folder, r["language"]) for r in records}
    return [_utterance(r, tracks[r["language"]]) for r in records]


def write(utterances: list[Utterance], folder: str | Path) -> None:
    """Write all utterances into `folder`, which is made where it does not exist."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for language in dict.fromkeys(u.language for u in utterances):
        own = [u for u in utterances if u.language == language]
        (folder / f"{language}.flac").write_bytes(_flac(own))
        records += _records(own)
    lines = ",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in records)
    (folder / INDEX).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def fitting(utterances: list[Utterance], megabytes: float) -> list[Utterance]:
    """The first utterances of each language whose FLAC fits into the language's share of these
    million bytes.
    """
    kept = []
    for language, share in SHARES.items():
        own = [u for u in utterances if u.language == language]
        count = bisect.bisect(
            range(1, len(own) + 1), share * megabytes * 1e6, key=lambda n: len(_flac(own[:n]))
        )
        kept += own[:count]
    return kept


def _flac(utterances: list[Utterance]) -> bytes:
    file = io.BytesIO()
    pcm = np.concatenate([u.pcm for u in utterances])
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return file.getvalue()


def _decoded(folder: Path, language: str) -> np.ndarray:
    pcm, rate = soundfile.read(folder / f"{language}.flac", dtype="int16")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{language}.flac has {rate} instead of {SAMPLE_RATE} Hz")
    return pcm


def _records(utterances: list[Utterance]) -> list[dict]:
    """offset and samples: where in the language's file; words: text, start and end in seconds of
    the utterance.
    """
    records, offset = [], 0
    for u in utterances:
        words = [[w.text, round(w.start, 4), round(w.end, 4)] for w in u.words]
        records.append(
            {"language": u.language, "offset": offset, "samples": len(u.pcm), "words": words}
        )
        offset += len(u.pcm)
    return records


def _utterance(record: dict, track: np.ndarray) -> Utterance:
    pcm = track[record["offset"] :][: record["samples"]]
    return Utterance(record["language"], tuple(Word(*w) for w in record["words"]), pcm)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("utterances", help="a pickle of synth.py")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument(
        "--megabytes", type=float, default=5.9, help="of all FLAC files together (default: 5.9)"
    )
    a = parser.parse_args()
    write(fitting(read_pickle(a.utterances), a.megabytes), a.out)

    bank = load(a.out)
    for language in SHARES:
        own = [u for u in bank if u.language == language]
        words, seconds = sum(len(u.words) for u in own), sum(u.duration for u in own)
        print(f"{language}: {len(own)} utterances, {words} words, {seconds:.1f} s")


if __name__ == "__main__":
    main()
