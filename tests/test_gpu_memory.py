"""How a GPU's memory is shared out, with the sizes of the real models, and refusals where they do
not fit.
"""

import json
import re
from pathlib import Path

import pytest
from contract.errors import SettingsError
from contract.settings import Settings
from real_models import WEIGHT_BYTES, config_of
from speech.models.gpu_memory import (
    CONTEXT_BYTES,
    GIB,
    Card,
    aligner_bytes,
    allocate,
    cache_bytes_per_token,
    weight_bytes,
    working_bytes,
)
from speech.models.token_limits import max_request_tokens

# GiB of each card as CUDA reports them, which is less than its name says
CARDS = {
    "RTX 3060 12 GB": 11.76,
    "RTX A4000 16 GB": 15.72,
    "RTX 4000 Ada 20 GB": 19.67,
    "L4": 22.03,
    "RTX 3090, RTX 4090": 23.52,
    "RTX 5090": 31.36,
    "A40, L40S": 44.40,
    "A100, H100": 79.19,
    "H200": 139.8,
}
MODELS = ("0.6B", "1.7B")
CASES = [(card, model) for card in CARDS for model in MODELS]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Kind of checkpoint → a folder with its configuration and a sparse file as its weights."""
    found = {}
    for kind, size in WEIGHT_BYTES.items():
        folder = tmp_path_factory.mktemp(kind)
        (folder / "config.json").write_text(json.dumps(config_of(kind)))
        with open(folder / "model.safetensors", "wb") as file:
            file.truncate(size)
        found[kind] = str(folder)
    return found


def card_of(gib: float, used: float = 0) -> Card:
    return Card(int(gib * GIB), int((gib - used) * GIB))


@pytest.fixture
def allocation(folders):
    def allocation(gib: float, model: str = "0.6B", used: float = 0, **given):
        settings = Settings("asr", "aligner", **given)
        return allocate(settings, folders[model], folders["aligner"], card_of(gib, used))

    return allocation


@pytest.mark.parametrize("model, kib", [("0.6B", 112), ("1.7B", 112)])
def test_a_token_takes_112_kib_of_cache(folders, model, kib):
    assert cache_bytes_per_token(folders[model]) == kib * 1024


@pytest.mark.parametrize("card, model", CASES)
def test_on_every_card_both_models_their_contexts_and_the_longest_chunk_fit(
    folders, allocation, card, model
):
    found, total = allocation(CARDS[card], model), CARDS[card] * GIB
    for_aligner = aligner_bytes(folders["aligner"], 480)
    assert found.aligner_share * total >= for_aligner * 0.999
    assert (found.vllm_share + found.aligner_share) * total + 2 * CONTEXT_BYTES <= total * 1.001
    cache = found.vllm_share * total - weight_bytes(folders[model])
    cache -= working_bytes(folders[model], found.max_num_seqs, found.max_num_batched_tokens)
    assert cache >= max_request_tokens(180) * cache_bytes_per_token(folders[model])


@pytest.mark.parametrize("card, model", CASES)
def test_the_cache_holds_every_chunk_of_a_step(folders, allocation, card, model):
    found = allocation(CARDS[card], model)
    assert 10 <= found.max_num_seqs <= found.cached_chunks(folders[model], 60)


def test_the_larger_model_on_a_small_card_takes_fewer_chunks_than_the_table_says(allocation):
    assert [allocation(11.76, model).max_num_seqs for model in MODELS] == [32, 13]


def test_longer_chunks_fill_the_cache_with_fewer(allocation):
    by_length = [
        allocation(11.76, "1.7B", chunk_target_seconds=seconds).max_num_seqs
        for seconds in (30, 60, 150)
    ]
    assert by_length == [25, 13, 5]


def test_settings_override_what_follows_from_the_memory(allocation):
    given = dict(max_num_seqs=300, max_num_batched_tokens=9000, gpu_memory_utilization=0.5)
    found = allocation(79.25, **given)
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.vllm_share) == (300, 9000, 0.5)


def test_what_other_programs_use_is_left_to_them(allocation):
    """A desktop, for example: vLLM would refuse to start where its share is not free."""
    alone, beside = allocation(23.52), allocation(23.52, used=1.5)
    assert beside.vllm_share == pytest.approx(alone.vllm_share - 1.5 / 23.52, abs=0.001)


def test_smaller_batches_of_the_aligner_leave_more_to_vllm(allocation):
    assert allocation(15.72, aligner_batch_seconds=180).vllm_share > allocation(15.72).vllm_share


# refusals


def refusal(allocation, *card, **given) -> str:
    with pytest.raises(SettingsError) as error:
        allocation(*card, **given)
    return str(error.value)


def test_a_gpu_too_small_for_both_models_is_refused_with_what_they_need(allocation):
    assert re.fullmatch(
        r"The GPU has 7\.6 GiB of memory; asr needs \d\.\d GiB and, beside it, aligner "
        r"\d\.\d GiB, and the "
        r"driver 1\.0 GiB for both\. Choose a larger GPU, or a smaller model\.",
        refusal(allocation, 7.6),
    )


def test_a_gpu_that_others_fill_is_refused_with_what_they_use(allocation):
    assert "23.5 GiB of memory, of which other programs use 17.0 GiB; asr" in refusal(
        allocation, 23.52, used=17
    )


def test_a_share_that_leaves_the_aligner_too_little_is_refused_with_the_largest_possible(
    allocation,
):
    sentence = refusal(allocation, 23.52, gpu_memory_utilization=0.95)
    (largest,) = re.findall(r"0\.95 of the GPU's 23\.5 GiB leaves .* at most (0\.\d\d)", sentence)
    assert allocation(23.52, gpu_memory_utilization=float(largest) - 0.01)


def test_a_share_too_small_for_one_chunk_is_refused_with_the_smallest_possible(allocation):
    sentence = refusal(allocation, 23.52, gpu_memory_utilization=0.1)
    (smallest,) = re.findall(
        r"0\.10 of the GPU's 23\.5 GiB is 2\.4 GiB; .* at least (0\.\d\d)", sentence
    )
    assert allocation(23.52, gpu_memory_utilization=float(smallest) + 0.01)


# the table of the READMEs


def rows(allocation, folders) -> list[tuple[str, ...]]:
    """GPU, model, vLLM's share, chunks and tokens in a step, chunks of a minute in the cache, the
    aligner's limit in GiB.
    """
    found = []
    for card, model in CASES:
        a = allocation(CARDS[card], model)
        cached = a.cached_chunks(folders[model], 60)
        limit = f"{a.aligner_share * CARDS[card]:.1f}"
        step = str(a.max_num_seqs), str(a.max_num_batched_tokens)
        found.append((card, model, f"{a.vllm_share:.2f}", *step, str(cached), limit))
    return found


@pytest.mark.parametrize("readme", ["README.md", "README_zh-CN.md"])
def test_the_readmes_table_of_sizes_is_what_the_code_computes(allocation, folders, readme):
    lines = (ROOT / readme).read_text().splitlines()
    computed = [f"| {' | '.join(row)} |" for row in rows(allocation, folders)]
    print("", *computed, sep="\n")
    assert [line for line in computed if line not in lines] == []
