"""The environment → `Settings`: defaults, every variable, and errors that say what to change."""

import math
import re
from dataclasses import asdict, fields

import pytest
from contract.errors import SettingsError
from contract.settings import ALIGNER_LIMIT_SECONDS, Settings, load_settings

OTHER = {  # setting → a valid value that is not its default, as text and as read
    "MODEL_NAME": ("tests/models/asr", "tests/models/asr"),
    "ALIGNER_NAME": ("tests/models/aligner", "tests/models/aligner"),
    "MODEL_REVISION": ("5eb144179a02", "5eb144179a02"),
    "ALIGNER_REVISION": ("c7cbfc2048c4", "c7cbfc2048c4"),
    "DEVICE": ("cpu", "cpu"),
    "DTYPE": ("bfloat16", "bfloat16"),
    "CHUNK_TARGET_SECONDS": ("4.8", 4.8),
    "CHUNK_LIMIT_SECONDS": ("90", 90.0),
    "VAD_MODE": ("3", 3),
    "MAX_AUDIO_SECONDS": ("7200", 7200.0),
    "MAX_DOWNLOAD_BYTES": ("1048576", 1_048_576),
    "ALLOW_LOCAL_FILES": ("True", True),
    "DOWNLOAD_TIMEOUT_SECONDS": ("0.5e2", 50.0),
    "MAX_CONCURRENCY": ("8", 8),
    "MAX_NUM_SEQS": ("16", 16),
    "MAX_NUM_BATCHED_TOKENS": ("4096", 4096),
    "GPU_MEMORY_UTILIZATION": ("0.3", 0.3),
    "ALIGNER_BATCH_SECONDS": ("120", 120.0),
    "CHUNK_TIMEOUT_SECONDS": ("30", 30.0),
    "SHUTDOWN_TIMEOUT_SECONDS": ("20", 20.0),
    "MAX_RESULT_BYTES": ("20000", 20_000),
    "BUCKET_NAME": ("talks", "talks"),
}
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.example.com",
    "BUCKET_ACCESS_KEY_ID": "id",
    "BUCKET_SECRET_ACCESS_KEY": "hush",
}
NUMBERS = [f.name.upper() for f in fields(Settings) if f.type in (int, float)]


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ)
    return str(refused.value)


def test_no_setting_is_required():
    settings = load_settings({})
    assert (settings.model_name, settings.aligner_name) == (
        "Qwen/Qwen3-ASR-0.6B",
        "Qwen/Qwen3-ForcedAligner-0.6B",
    )
    assert (settings.chunk_target_seconds, settings.chunk_limit_seconds) == (
        60,
        ALIGNER_LIMIT_SECONDS,
    )
    assert settings.device == "auto"


def test_the_table_of_this_test_holds_every_setting():
    assert {*OTHER, *BUCKET} == {f.name.upper() for f in fields(Settings)}


def test_a_bucket_is_all_of_three_settings_or_none():
    settings = load_settings(BUCKET)
    assert [getattr(settings, name.lower()) for name in BUCKET] == list(BUCKET.values())
    for name in BUCKET:
        rest = {other: value for other, value in BUCKET.items() if other != name}
        assert refusal(**rest).startswith(
            f"{name} is not set; a bucket needs all of BUCKET_ENDPOINT_URL, "
        )


def test_the_buckets_secret_is_not_shown():
    assert "hush" not in repr(load_settings(BUCKET))


def test_each_setting_comes_from_its_variable_and_from_no_other():
    default = asdict(load_settings({}))
    for variable, (value, expected) in OTHER.items():
        loaded = asdict(load_settings({variable: value}))
        changed = {name: value for name, value in loaded.items() if value != default[name]}
        assert changed == {variable.lower(): expected}, variable


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_empty_value_counts_as_not_set(blank):
    assert load_settings(dict.fromkeys(OTHER, blank)) == load_settings({})


@pytest.mark.parametrize("value", ["many", "1,5", "0x10", "60s", "1 2", "None"])
def test_a_value_that_is_no_number_is_refused_with_its_name(value):
    for variable in NUMBERS:
        message = refusal(**{variable: value})
        sentence = rf"{variable} is {value!r}; it must be a (whole )?number\."
        assert re.fullmatch(sentence, message), message


@pytest.mark.parametrize("value", ["2.5", "1e3", "NaN", "inf"])
def test_a_count_that_is_no_whole_number_is_refused(value):
    assert (
        refusal(MAX_CONCURRENCY=value)
        == f"MAX_CONCURRENCY is {value!r}; it must be a whole number."
    )


@pytest.mark.parametrize("value", ["NaN", "nan", "inf", "-inf", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(value):
    for variable in [f.name.upper() for f in fields(Settings) if f.type is float]:
        message = refusal(**{variable: value})
        assert message.startswith(f"{variable} is {float(value):g}; it must be from "), message


@pytest.mark.parametrize("value", ["-1", "99999999999999"])
def test_a_value_out_of_range_is_refused_with_its_name_and_the_range(value):
    for variable in NUMBERS:
        message = refusal(**{variable: value})
        found = re.fullmatch(rf"{variable} is \S+; it must be from (\S+) to (\S+)\.", message)
        assert found, message
        low, high = map(float, found.groups())
        assert math.isfinite(low) and low < high and not low <= float(value) <= high, message


@pytest.mark.parametrize("value", ["gpu", "CUDA:0", "mps", "tpu"])
def test_an_unknown_device_is_refused(value):
    assert refusal(DEVICE=value) == f"DEVICE is {value!r}; it must be 'auto', 'cuda' or 'cpu'."


@pytest.mark.parametrize("value", ["float16", "BF16", "half"])
def test_an_unknown_dtype_is_refused(value):
    assert (
        refusal(DTYPE=value) == f"DTYPE is {value!r}; it must be 'auto', 'bfloat16' or 'float32'."
    )


def test_a_chunk_target_above_its_limit_is_lowered_and_logged(caplog):
    settings = load_settings({"CHUNK_TARGET_SECONDS": "20", "CHUNK_LIMIT_SECONDS": "10"})
    assert (settings.chunk_target_seconds, settings.chunk_limit_seconds) == (10, 10)
    assert caplog.messages == [
        "CHUNK_TARGET_SECONDS is 20, above CHUNK_LIMIT_SECONDS; it is lowered to 10."
    ]


def test_a_chunk_limit_below_the_default_target_lowers_the_target():
    assert load_settings({"CHUNK_LIMIT_SECONDS": "30"}).chunk_target_seconds == 30


def test_a_chunk_limit_above_the_aligners_is_refused():
    assert (
        refusal(CHUNK_LIMIT_SECONDS="181")
        == "CHUNK_LIMIT_SECONDS is 181; it must be from 2 to 180."
    )


def test_the_message_shows_a_large_value_as_it_was_given():
    assert "1234567890123456" in refusal(MAX_DOWNLOAD_BYTES="1234567890123456")


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        load_settings({}).device = "cpu"


def test_chunks_are_short_only_in_a_named_language_without_an_aligner():
    settings = Settings(chunk_target_seconds=60)
    targets = {
        language: settings.target_seconds(language) for language in ("Polish", "German", None)
    }
    assert targets == {"Polish": 20, "German": 60, None: 60}
    assert Settings(chunk_target_seconds=10).target_seconds("Polish") == 10
