"""What the probabilities of the tokens cost: on the engine, in its sampler with the real
vocabulary, and in the worker's process for each token of the real vocabulary.
"""

import asyncio
import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import measure
import numpy as np
import real_models
from measure import cost_of, table

CHUNKS, IN_FLIGHT = 32, 8
VOCABULARY = 151_936  # of the real models
ROWS = (1, 8, 32)  # chunks in a step of the sampler
ANSWER = (
    "今天上午，我们在公园里看到 many children. It was a lovely 👍 day; καλημέρα, 안녕하세요. " * 6
)


def run(quick: bool) -> None:
    _, found = cost_of([__file__, 2 if quick else 5])
    rows = [
        [name, f["without"], f["with"], f["with"] - f["without"], f["with"] / f["without"]]
        for name, f in found.items()
    ]
    head = ["", "without", "with", "difference", "ratio"]
    print(table("probabilities of tokens", head, rows), flush=True)
    measure.write("confidence", found, quick)


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _in_turn(without, with_tokens, repeats: int, unit: float) -> dict[str, float]:
    """The least of each side in units of `unit` seconds: other programs only add to it.

    Each side runs once before.
    """
    without(), with_tokens()
    pairs = [(_seconds(without), _seconds(with_tokens)) for _ in range(repeats)]
    sides = [min(seconds) / unit for seconds in zip(*pairs)]
    return {"without": sides[0], "with": sides[1]}


def _of_engine(repeats: int) -> dict[str, float]:
    import inputs
    from material import chunk_of
    from models import worker

    chunk = chunk_of(inputs.speech(20))
    with worker() as handler:

        async def all_chunks(with_tokens: bool) -> None:
            slots = asyncio.Semaphore(IN_FLIGHT)

            async def one() -> None:
                async with slots:
                    await handler.asr.transcribe(chunk, "English", "", with_tokens=with_tokens)

            await asyncio.gather(*(one() for _ in range(CHUNKS)))

        sides = [lambda flag=flag: asyncio.run(all_chunks(flag)) for flag in (False, True)]
        return _in_turn(*sides, repeats, unit=1)


def _of_sampler(rows: int, repeats: int) -> dict[str, float]:
    """A step that chooses the most probable token of each row."""
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    logits, sampler = torch.randn(rows, VOCABULARY), Sampler()

    def step(num_logprobs: int | None) -> None:
        metadata = SamplingMetadata(
            temperature=None,
            all_greedy=True,
            all_random=False,
            top_p=None,
            top_k=None,
            generators={},
            max_num_logprobs=num_logprobs,
            logprob_token_ids=None,
            no_penalties=True,
            prompt_token_ids=None,
            frequency_penalties=torch.empty(0),
            presence_penalties=torch.empty(0),
            repetition_penalties=torch.empty(0),
            output_token_ids=[[]] * rows,
            spec_token_ids=[[]] * rows,
            allowed_token_ids_mask=None,
            bad_words_token_ids={},
            logitsprocs=LogitsProcessors(),
        )
        sampler(logits, metadata)

    return _in_turn(lambda: step(None), lambda: step(0), 20 * repeats, unit=1e-3)


def _of_front_end(repeats: int) -> dict[str, float]:
    """vLLM's detokenizer for one answer, without and with its probabilities and our mapping."""
    from speech.models.answer_tokens import answer_tokens
    from speech.models.tokenizer import load_tokenizer
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    with tempfile.TemporaryDirectory() as folder:
        real_models.write_tokenizer(Path(folder))
        tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(f"language Chinese<asr_text>{ANSWER}")

    def detokenize(logprobs: int | None) -> None:
        sampling = SamplingParams(logprobs=logprobs, flat_logprobs=logprobs is not None)
        request = SimpleNamespace(
            sampling_params=sampling, prompt_token_ids=[], prompt_embeds=None, request_id="1"
        )
        detokenizer = FastIncrementalDetokenizer(tokenizer, request)
        processor = LogprobsProcessor.from_new_request(tokenizer, request)
        for token_id in ids:
            detokenizer.update([token_id], False)
            if logprobs is not None:
                one = np.array([[token_id]]), np.array([[-0.1]]), np.array([1])
                processor._update_sample_logprobs(LogprobsLists(*one, None))
        if logprobs is not None:
            answer_tokens(tokenizer, ids, processor.logprobs.logprobs, ANSWER.strip())

    sides = functools.partial(detokenize, None), functools.partial(detokenize, 0)
    return _in_turn(*sides, 20 * repeats, unit=1e-6 * len(ids))


def _measured(repeats: int) -> dict[str, dict[str, float]]:
    found = {f"{CHUNKS} chunks of 20 s, tiny checkpoint, s": _of_engine(repeats)}
    for rows in ROWS:
        found[f"sampler, {rows} chunks in a step, ms"] = _of_sampler(rows, repeats)
    found["worker's process, one token, µs"] = _of_front_end(repeats)
    return found


if __name__ == "__main__":
    print(json.dumps(_measured(int(sys.argv[1]))))
