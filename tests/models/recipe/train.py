"""Train a tiny recogniser or aligner on what synth.py and lossy.py made.

  train.py recogniser DATA.pkl OUT_DIR MINUTES [--words 7] [--from CHECKPOINT] [--clips]
                                               [--rate 2e-3]
  train.py aligner    DATA.pkl OUT_DIR MINUTES --from CHECKPOINT [--clips] [--own-time 0.5]
                                               [--rate 1.5e-3]

The time is given, not the steps, so a run is not repeated bit for bit.
"""

import argparse
import json
import math
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import clips
import model as tiny
import numpy as np
import torch
import torch.nn.functional as F
from qwen_asr.inference.qwen3_forced_aligner import Qwen3ForceAlignProcessor
from utterance import LONGEST, Utterance, plain, read_pickle

BATCH_SECONDS = 90
DRAWN = 120  # clips drawn, then sorted into batches of like length
SHARES = {"English": 0.64, "Chinese": 0.33, "None": 0.03}
IGNORED = -100  # the label of what is not to be learned
HIDDEN = 192
WARM_UP_STEPS = 200
rng = random.Random(0)


class Example:
    def __init__(self, utterance: Utterance, processor):
        self.language, self.words, self.text = utterance.language, utterance.words, utterance.text
        self.duration = utterance.duration  # seconds
        self.mel = tiny.mel(processor, utterance.pcm)
        self.audio_tokens = tiny.audio_tokens(self.mel.shape[1])


def batches(
    utterances: list[Utterance], processor, of_recordings: bool, spoken_only: bool
) -> Iterator[list[Example]]:
    """Without end; each batch holds about BATCH_SECONDS of clips of like length."""
    by_language = {name: [u for u in utterances if u.language == name] for name in SHARES}
    weights = [share if by_language[name] else 0 for name, share in SHARES.items()]
    if spoken_only:
        weights[-1] = 0

    def draw() -> Utterance:
        (language,) = rng.choices(list(by_language), weights)
        pool = by_language[language]
        if not of_recordings or language == "None":
            return rng.choice(pool)
        whole = clips.recording(pool, rng.uniform(1, 2.5 * LONGEST), rng.randrange(2**31), 0.1, 1.5)
        return clips.cut_between_words(whole, rng)

    while True:
        drawn = sorted((Example(draw(), processor) for _ in range(DRAWN)), key=lambda x: x.duration)
        cut, batch = [], []
        for x in drawn:
            batch.append(x)
            if x.duration * len(batch) > BATCH_SECONDS:
                cut.append(batch)
                batch = []
        cut += [batch] if batch else []
        yield from rng.sample(cut, len(cut))


def ahead(items: Iterator, depth: int = 8) -> Iterator:
    """The same items, made in a thread of their own."""
    made = queue.Queue(depth)

    def make():
        for item in items:
            made.put(item)

    threading.Thread(target=make, daemon=True).start()
    while True:
        yield made.get()


def masked(m: np.ndarray) -> np.ndarray:
    """SpecAugment: two bands of mel channels and two stretches of time at the mean level."""
    m = m.copy()
    for _ in range(2):
        width = rng.randint(0, 12)
        start = rng.randint(0, 127 - width)
        m[start : start + width] = m.mean()
    for _ in range(2):
        width = rng.randint(0, 8)
        start = rng.randint(0, max(0, m.shape[1] - width - 1))
        m[:, start : start + width] = m.mean()
    return m + np.float16(rng.uniform(-0.1, 0.1))


def encode(model, batch: list[Example]) -> torch.Tensor:
    augment = rng.random() < 0.7
    mels = [masked(x.mel) if augment else x.mel for x in batch]
    return tiny.encode(model, mels, windowed=rng.random() < 0.5)


def pad(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([r + [fill] * (width - len(r)) for r in rows])


def decode(model, tokenizer, audio: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    return tiny.decode(
        model, audio, pad(ids, tokenizer.pad_token_id), pad([[1] * len(i) for i in ids], 0)
    )


class WordLabels:
    """An auxiliary task for the encoder: which word an audio token lies in.

    Its head is thrown away afterwards.
    """

    def __init__(self, utterances: list[Utterance]):
        names = sorted({plain(w.text) for u in utterances for w in u.words})
        self.index = {name: i + 1 for i, name in enumerate(names)}  # 0: no word
        self.head = torch.nn.Linear(HIDDEN, len(names) + 1)

    def loss(self, audio: torch.Tensor, batch: list[Example]):
        y = torch.from_numpy(np.concatenate([self._of(x) for x in batch]))
        scores = self.head(audio)
        return F.cross_entropy(scores, y), (scores.argmax(-1) == y).float().mean()

    def _of(self, x: Example) -> np.ndarray:
        times = tiny.token_times(x.audio_tokens)
        labels = np.zeros(x.audio_tokens, np.int64)
        for w in x.words:
            labels[(times >= w.start) & (times < w.end)] = self.index[plain(w.text)]
        return labels


class Ordinals:
    """An auxiliary task for the decoder's middle layer: the number, from one, of the word that a
    token belongs to.

    The tokens are audio tokens and <timestamp>. Without this task the decoder identifies words by
    their text and confuses those that occur twice. Its head is thrown away afterwards.
    """

    MOST = 64

    def __init__(self, model):
        self.head = torch.nn.Sequential(
            torch.nn.LayerNorm(HIDDEN), torch.nn.Linear(HIDDEN, self.MOST)
        )
        model.thinker.model.layers[1].register_forward_hook(self._keep)

    def _keep(self, layer, inputs, output):
        self.hidden = output[0] if isinstance(output, tuple) else output

    def loss(self, at: torch.Tensor, ordinals: np.ndarray):
        y = torch.from_numpy(ordinals).clamp(max=self.MOST - 1)
        return F.cross_entropy(self.head(self.hidden[at]), y)


def recogniser_loss(
    model, tokenizer, audio: torch.Tensor, batch: list[Example], contexts: list[str]
):
    """Cross entropy of the answer, and the share of its tokens that are right.

    The answer ends in a row of <|im_end|>: qwen-asr's generate() stops at the real tokenizer's id
    for it only, so here it runs on to its limit, and must have nothing to say.
    """
    ids, labels = [], []
    for x in batch:
        prompt, answer = _conversation(x, contexts)
        p, a = tokenizer(prompt)["input_ids"], tokenizer(answer + 4 * "<|im_end|>")["input_ids"]
        ids.append(p + a)
        labels.append([IGNORED] * len(p) + a)
    hidden, y = decode(model, tokenizer, audio, ids)[:, :-1], pad(labels, IGNORED)[:, 1:]
    scores, y = model.thinker.lm_head(hidden[y != IGNORED]), y[y != IGNORED]
    return F.cross_entropy(scores, y), (scores.argmax(-1) == y).float().mean()


def _conversation(x: Example, contexts: list[str]) -> tuple[str, str]:
    """Prompt and answer: 3 in 10 with a random context, 3 in 10 with the language given."""
    context = rng.choice(contexts) if rng.random() < 0.3 else ""
    prompt = (
        f"<|im_start|>system\n{context}<|im_end|>\n"
        "<|im_start|>user\n"
        f"<|audio_start|>{'<|audio_pad|>' * x.audio_tokens}<|audio_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prefix = f"language {x.language}<asr_text>"
    if x.language != "None" and rng.random() < 0.3:
        return prompt + prefix, x.text
    return prompt, prefix + x.text


CLEAN = Qwen3ForceAlignProcessor().clean_token  # a word as qwen-asr's aligner reads it


def aligner_loss(
    model, tokenizer, audio: torch.Tensor, batch: list[Example], own_time: float, ordinals: Ordinals
):
    """Cross entropy over the time classes at the <timestamp> tokens, and the share that is right or
    next to it.

    Neighbouring classes share the mass; `own_time` weighs every audio token's saying its own time.
    """
    ids, labels = _marked_words(tokenizer, batch)
    hidden, y = decode(model, tokenizer, audio, ids), pad(labels, IGNORED)
    sounding = pad(ids, tokenizer.pad_token_id) == model.thinker.config.audio_token_id
    at_marks = y != IGNORED
    scores, y = model.thinker.lm_head(hidden[at_marks]), y[at_marks]
    log_p = scores.log_softmax(-1)
    near = [log_p.gather(1, (y + d).clamp(0, tiny.CLASSES - 1)[:, None]).mean() for d in (-1, 0, 1)]
    loss = -(0.2 * near[0] + 0.6 * near[1] + 0.2 * near[2])

    times = [tiny.token_times(x.audio_tokens) for x in batch]
    own_classes = torch.from_numpy(np.concatenate(times) / tiny.CLASS_SECONDS).long()
    own = F.cross_entropy(model.thinker.lm_head(hidden[sounding]), own_classes)
    started = [
        np.searchsorted([w.start for w in x.words], t, side="right") for x, t in zip(batch, times)
    ]
    by_ear = ordinals.loss(sounding, np.concatenate(started))
    by_text = ordinals.loss(
        at_marks, np.concatenate([np.arange(2 * len(x.words)) // 2 + 1 for x in batch])
    )
    right = ((scores.argmax(-1) - y).abs() <= 1).float().mean()
    return loss + own_time * own + 0.3 * (by_ear + by_text), right


def _marked_words(tokenizer, batch: list[Example]) -> tuple[list[list[int]], list[list[int]]]:
    """Per clip the prompt's ids, and the time classes at its <timestamp> tokens, two for every
    word.
    """
    ids, labels, stamp = [], [], tokenizer.convert_tokens_to_ids("<timestamp>")
    for x in batch:
        words = "".join(f"{CLEAN(w.text)}<timestamp><timestamp>" for w in x.words)
        row = tokenizer(f"<|audio_start|>{'<|audio_pad|>' * x.audio_tokens}<|audio_end|>{words}")[
            "input_ids"
        ]
        marks = iter([round(t / tiny.CLASS_SECONDS) for w in x.words for t in (w.start, w.end)])
        ids.append(row)
        labels.append([next(marks) if token == stamp else IGNORED for token in row])
    return ids, labels


def begin(start: str | None, out: str, utterances: list[Utterance], aligner: bool):
    """Model and processor: those of `start`, new ones with the weights of `start` that fit, or new
    ones.
    """
    config = json.loads(Path(start, "config.json").read_text()) if start else {}
    if start and bool(config["thinker_config"].get("classify_num")) == aligner:
        model, processor = tiny.load(start)
        processor.save_pretrained(out)
        return model, processor
    texts = [f"language {u.language}<asr_text>{u.text}" for u in utterances]
    model, processor = tiny.new(out, texts + ["system\n", "user\n", "assistant\n"] * 2000, aligner)
    if start:
        tiny.take_weights(model, start)
    return model, processor


def rate_at(step: int, done: float) -> float:
    """Share of the full learning rate: a warm-up, and a cosine from 30 % of the time on."""
    return min(1, step / WARM_UP_STEPS) * (
        0.5 * (1 + math.cos(math.pi * done)) if done > 0.3 else 1
    )


def train(a: argparse.Namespace) -> None:
    torch.manual_seed(0)
    aligner = a.kind == "aligner"
    utterances = read_pickle(a.data)
    model, processor = begin(a.start, a.out, utterances, aligner)
    tokenizer, labels, ordinals = processor.tokenizer, WordLabels(utterances), Ordinals(model)
    contexts = [u.text for u in utterances if u.language == "English"]
    parameters = [*model.parameters(), *labels.head.parameters(), *ordinals.head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=a.rate, weight_decay=0.01, betas=(0.9, 0.98))

    began, recent = time.time(), []
    for step, batch in enumerate(
        ahead(batches(utterances, processor, a.clips, spoken_only=aligner)), 1
    ):
        minutes = (time.time() - began) / 60
        if minutes >= a.minutes:
            break
        for group in optimiser.param_groups:
            group["lr"] = a.rate * rate_at(step, minutes / a.minutes)
        audio = encode(model, batch)
        if aligner:
            loss, right = aligner_loss(model, tokenizer, audio, batch, a.own_time, ordinals)
        elif minutes < a.words:
            loss, right = labels.loss(audio, batch)
        else:
            loss, right = recogniser_loss(model, tokenizer, audio, batch, contexts)
            if a.words:
                loss = loss + 0.3 * labels.loss(audio, batch)[0]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        recent.append((loss.item(), right.item()))
        if step % 50 == 0:
            mean_loss, mean_right = np.mean(recent[-50:], 0)
            print(
                f"step {step}, {minutes:.1f} min: loss {mean_loss:.3f}, right {mean_right:.3f}",
                flush=True,
            )
    tiny.save(model, a.out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=("recogniser", "aligner"))
    add("data", help="a pickle of synth.py")
    add("out", help="the folder to write")
    add("minutes", type=float)
    add(
        "--from",
        dest="start",
        help="a recogniser's weights to start from, or the model's own to go on",
    )
    add(
        "--clips",
        action="store_true",
        help="pieces of recordings (clips.py) instead of single utterances",
    )
    add(
        "--words",
        type=float,
        default=0,
        help="minutes of labelling every audio token with the word it lies in, on the "
        "encoder alone; without them the decoder does not learn to read in any reasonable time",
    )
    add(
        "--own-time",
        type=float,
        default=0.5,
        help="weight of every audio token saying its own time, which teaches the "
        "aligner absolute position long before the <timestamp> tokens could",
    )
    add("--rate", type=float, default=1.5e-3)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
