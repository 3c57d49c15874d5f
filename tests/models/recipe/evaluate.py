"""Word errors and word-boundary errors of the tiny checkpoints on speech they have not heard.

For each language: the utterances one by one, on their true text (times) and on what was recognised
(words); then a recording made of them, cut in WebRTC VAD pauses. --vllm: vLLM's native model
instead of qwen-asr's transformers one.
"""

import argparse
from pathlib import Path

import bank
import clips
import numpy as np
import torch
import webrtcvad
from qwen_asr import Qwen3ASRModel, Qwen3ForcedAligner
from scoring import matched
from utterance import SAMPLE_RATE, Utterance, plain, read_pickle

FRAME = SAMPLE_RATE * 30 // 1000  # samples the VAD judges at a time
FRAME_SECONDS = 0.03
MAX_CHUNK, MIN_PAUSE = 8.0, 0.24  # seconds
BATCH = 8  # clips aligned at a time

Timed = tuple[str, float, float]  # a word and its start and end in seconds


class Listener:
    """The two checkpoints through the packages that load them, in float32."""

    def __init__(self, asr: str, aligner: str, vllm: bool):
        self.aligner = Qwen3ForcedAligner.from_pretrained(aligner, dtype=torch.float32)
        if vllm:
            self.asr = Qwen3ASRModel.LLM(
                model=asr,
                max_new_tokens=96,
                max_model_len=2048,
                enforce_eager=True,
                dtype="float32",
                max_num_batched_tokens=4096,
                limit_mm_per_prompt={"audio": 1},
                max_inference_batch_size=32,
                gpu_memory_utilization=0.5,  # on a CPU, the share of its memory that must be free
            )
        else:
            self.asr = Qwen3ASRModel.from_pretrained(
                asr, max_new_tokens=96, dtype=torch.float32, max_inference_batch_size=16
            )

    def recognise(self, pcms: list[np.ndarray]) -> list:
        """Per clip (int16 at SAMPLE_RATE), a result with .language and .text."""
        return self.asr.transcribe([_wave(p) for p in pcms])

    def align(self, pcms: list[np.ndarray], texts: list[str], language: str) -> list[list[Timed]]:
        """Per clip, the words of its text with their times."""
        got = []
        for i in range(0, len(pcms), BATCH):
            waves = [_wave(p) for p in pcms[i : i + BATCH]]
            results = self.aligner.align(waves, texts[i : i + BATCH], [language] * len(waves))
            got += [[(w.text, w.start_time, w.end_time) for w in result] for result in results]
        return got


def chunks(pcm: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Sample ranges cut in the longest pause within reach, and how many cuts found no pause."""
    vad = webrtcvad.Vad(2)
    voiced = [
        vad.is_speech(pcm[i : i + FRAME].tobytes(), SAMPLE_RATE)
        for i in range(0, len(pcm) - FRAME + 1, FRAME)
    ]
    pauses = _pauses(voiced)
    reach, cuts, forced = int(MAX_CHUNK / FRAME_SECONDS), [0], 0
    while cuts[-1] + reach < len(voiced):
        near = [p for p in pauses if cuts[-1] + 0.4 * reach < p[1] <= cuts[-1] + reach]
        forced += not near
        cuts.append(max(near)[1] if near else cuts[-1] + reach)
    edges = [c * FRAME for c in cuts] + [len(pcm)]
    return list(zip(edges, edges[1:])), forced


def report(name: str, truth: list[list[Timed]], heard: list[list[Timed]]) -> None:
    """One line of figures; clip by clip, what was said and what was heard."""
    errors = total = zero = 0
    off = []
    for a, b in zip(truth, heard):
        distance, pairs = matched([plain(w) for w, *_ in a], [plain(w) for w, *_ in b])
        errors += distance
        off += [abs(x - y) for i, j in pairs for x, y in zip(a[i][1:], b[j][1:])]
        total += len(a)
        zero += sum(end <= start for _, start, end in b)
    off = 1000 * np.array(off)
    print(
        f"{name:34} words {total:5}, errors {100 * errors / total:5.2f} %; boundaries off "
        f"by mean {off.mean():.0f} ms, "
        f"median {np.median(off):.0f}, 90 % under {np.quantile(off, 0.9):.0f}, "
        f"within 160 ms {100 * (off <= 160).mean():.1f} %; zero-length {zero}",
        flush=True,
    )


def one_by_one(listener: Listener, language: str, pool: list[Utterance]) -> None:
    truth, pcms = [_timed(u) for u in pool], [u.pcm for u in pool]
    report(f"{language}, true text", truth, listener.align(pcms, [u.text for u in pool], language))
    heard = listener.recognise(pcms)
    print("  language wrong:", sum(h.language != language for h in heard), "of", len(pool))
    report(
        f"{language}, one by one", truth, listener.align(pcms, [h.text for h in heard], language)
    )


def in_a_recording(
    listener: Listener, language: str, pool: list[Utterance], seconds: float
) -> None:
    whole = clips.recording(pool, seconds, seed=3)
    ranges, forced = chunks(whole.pcm)
    pieces = [whole.pcm[i:j] for i, j in ranges]
    aligned = listener.align(pieces, [h.text for h in listener.recognise(pieces)], language)
    merged = [
        (w, start + i / SAMPLE_RATE, end + i / SAMPLE_RATE)
        for (i, _), words in zip(ranges, aligned)
        for w, start, end in words
    ]
    report(
        f"{language}, recording, {len(ranges)} chunks ({forced} forced)", [_timed(whole)], [merged]
    )


def _pauses(voiced: list[bool]) -> list[tuple[int, int]]:
    """Length and middle, in frames, of every stretch of silence that is long enough."""
    pauses, start = [], None
    for i, voice in enumerate([*voiced, True]):
        if not voice and start is None:
            start = i
        if voice and start is not None:
            if (i - start) * FRAME_SECONDS >= MIN_PAUSE:
                pauses.append((i - start, (start + i) // 2))
            start = None
    return pauses


def _timed(u: Utterance) -> list[Timed]:
    return [(w.text, w.start, w.end) for w in u.words]


def _wave(pcm: np.ndarray) -> tuple[np.ndarray, int]:
    return pcm.astype(np.float32) / 32768, SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("asr", help="the recogniser's folder")
    parser.add_argument("aligner", help="the aligner's folder")
    parser.add_argument("data", type=Path, help="a pickle of synth.py or a folder of bank.py")
    parser.add_argument(
        "--seconds", type=float, default=240, help="of each recording (default: 240)"
    )
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    utterances = bank.load(a.data) if a.data.is_dir() else read_pickle(a.data)
    listener = Listener(a.asr, a.aligner, a.vllm)
    for language in ("English", "Chinese"):
        pool = [u for u in utterances if u.language == language]
        one_by_one(listener, language, pool)
        in_a_recording(listener, language, pool, a.seconds)


if __name__ == "__main__":
    main()
