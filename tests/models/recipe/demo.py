"""Make the demo recording:

English utterances of the bank in a row, as a stereo MP3, and a JSON with their words and times.
"""

import argparse
import json
from pathlib import Path

import av
import bank
import clips
import numpy as np
from utterance import SAMPLE_RATE, Utterance

MP3_RATE, MP3_BIT_RATE = 44_100, 96_000  # Hz, bit/s


def write_mp3(pcm: np.ndarray, path: Path) -> None:
    """(samples,) int16 at SAMPLE_RATE, the same on both channels. libmp3lame comes with PyAV."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libmp3lame", rate=MP3_RATE, layout="stereo", bit_rate=MP3_BIT_RATE
        )
        resampler = av.AudioResampler(
            format="s16p", layout="stereo", rate=MP3_RATE, frame_size=stream.frame_size
        )
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))


def described(u: Utterance) -> dict:
    """Times in seconds from the start of the recording."""
    words = [{"text": w.text, "start": round(w.start, 4), "end": round(w.end, 4)} for w in u.words]
    return {
        "language": u.language,
        "duration": round(u.duration, 4),
        "text": u.text,
        "words": words,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bank", help="a folder of bank.py")
    parser.add_argument("out", type=Path, help="the MP3 to write; the JSON lies beside it")
    parser.add_argument("--seconds", type=float, default=45, help="at least (default: 45)")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    pool = [u for u in bank.load(a.bank) if u.language == "English"]
    whole = clips.recording(pool, a.seconds, a.seed)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    write_mp3(whole.pcm, a.out)
    a.out.with_suffix(".json").write_text(
        json.dumps(described(whole), ensure_ascii=False, indent=1) + "\n"
    )
    print(f"{a.out}: {whole.duration:.1f} s, {len(whole.words)} words")


if __name__ == "__main__":
    main()
