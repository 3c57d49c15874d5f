"""Fields that the worker does not have: what each is called here, or what the worker does instead.

The names are those of other speech services and workers: OpenAI, Deepgram, AssemblyAI, Whisper and
its workers on RunPod. Knows nothing of the fields' values.
"""

import difflib
import re
from collections.abc import Collection, Sequence

from contract.shown import shown

MIN_SIMILARITY = 0.75  # difflib's ratio; languge and language have 0.93, task and track 0.67
MAX_NAMED = 20  # this many unknown fields are named; the others are counted
MAX_KEY_CHARACTERS = 80  # a longer name is compared by its start

# (a field of the worker, or an option in one, its names elsewhere)
_CALLED_HERE = (
    ("audio_url", "audio url file audio_file file_url media_url uri"),
    ("audio_base64", "base64 audio_b64 audio_data file_base64 file_string"),
    ("audio_headers", "headers http_headers"),
    ("language", "lang language_code source_language"),
    ("initial_context", "initial_prompt prompt context"),
    ("use_previous_context", "condition_on_previous_text"),
    ("vocabulary", "hotwords keyterm keyterms keyterms_prompt keywords word_boost phrases"),
    ("output_format", "response_format transcription format output_type"),
    ("segment_level", "word_timestamps timestamp_granularities return_timestamps utterances"),
    ("start", "audio_start_from offset_seconds start_time"),
    ("end", "audio_end_at end_time"),
    ("subtitles", "subtitles_config subtitle_options srt_overrides"),
    (
        "subtitles.max_line_width",
        "max_line_width max_line_length max_chars_per_line max_characters_per_line "
        "maximum_characters_per_row line_letters",
    ),
    ("subtitles.max_line_width_cjk", "max_line_width_cjk"),
    (
        "subtitles.max_line_count",
        "max_line_count max_lines max_lines_per_cue maximum_rows_per_caption lines",
    ),
    ("subtitles.min_duration", "min_duration minimum_duration shortest_seconds"),
    (
        "subtitles.max_duration",
        "max_duration maximum_duration max_segment_duration_s longest_seconds",
    ),
)
# (what the worker does, the fields that ask for something else)
_NO_FIELD = (
    (
        "the transcript is in the language that is spoken, and the model cannot translate",
        "translate translation task target_language",
    ),
    (
        "the endpoint's setting MODEL_NAME chooses the model",
        "model model_name model_id speech_model speech_models",
    ),
    (
        "the language is detected wherever the field language does not name one",
        "detect_language language_detection",
    ),
    (
        "the text has its punctuation, and with the field punctuation the words keep theirs",
        "punctuate smart_format format_text",
    ),
    (
        "decoding has no fields, and a doubtful answer is recognised again",
        "temperature beam_size best_of patience length_penalty suppress_tokens logprob_threshold "
        "temperature_increment_on_fallback compression_ratio_threshold no_speech_threshold",
    ),
    (
        "recordings are always cut in pauses, and the endpoint's settings say how",
        "enable_vad vad vad_filter chunking_strategy chunk_length batch_size",
    ),
    (
        "texts of chunks are joined by a space, or by nothing where the script has no spaces",
        "chunk_joiner",
    ),
    (
        "the field channel with the value 'each' transcribes every channel by itself",
        "channels multichannel dual_channel",
    ),
    (
        "speakers are told apart only by their channels, with channel 'each'",
        "diarize diarization speaker_labels speakers_expected num_speakers",
    ),
    (
        "the field subtitles limits each line, and the number of lines",
        "max_words_per_line chars_per_caption max_segment_chars",
    ),
    ("a job's result comes as one object, and its status shows the progress", "stream"),
    ("it belongs beside input", "webhook policy s3_config"),
    ("RunPod's webhook belongs beside input", "webhook_url callback callback_url"),
)


def comparable(name: str) -> str:
    """A name without case and separators: audioUrl, audio-url and audio_url are one."""
    return re.sub(r"[\W_]", "", name[:MAX_KEY_CHARACTERS].lower())


def _by_key(table: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The first of each pair by the key of each name in the second."""
    return {comparable(name): meaning for meaning, names in table for name in names.split()}


CALLED_HERE = _by_key(_CALLED_HERE)
NO_FIELD = _by_key(_NO_FIELD)


def field_meant(name: str, fields: Collection[str]) -> str | None:
    """The field or option that a client means by an unknown name: its other name, or a similar one.

    An option is named with its field, as subtitles.max_duration is.
    """
    key = comparable(name)
    if key in CALLED_HERE:
        return CALLED_HERE[key]
    if key in NO_FIELD:
        return None
    near = difflib.get_close_matches(key, map(comparable, fields), n=1, cutoff=MIN_SIMILARITY)
    return next((field for field in fields if [comparable(field)] == near), None)


def warnings_for(unknown: Sequence[str], fields: Collection[str]) -> tuple[str, ...]:
    """A sentence for each unknown field; those beyond MAX_NAMED share one."""
    sentences = [_warning(name, fields) for name in unknown[:MAX_NAMED]]
    if len(unknown) > MAX_NAMED:
        sentences.append(f"{len(unknown) - MAX_NAMED} more unknown fields were ignored.")
    return tuple(sentences)


def _warning(name: str, fields: Collection[str]) -> str:
    key, field = comparable(name), field_meant(name, fields)
    hint = ""
    if key in NO_FIELD:
        hint = f"; {NO_FIELD[key]}"
    elif key in CALLED_HERE:
        unit = ", in seconds" if field in ("start", "end") else ""
        hint = f"; it is called {field} here{unit}"
    elif field:
        hint = f"; {field} may be meant"
    return f"The unknown field {shown(name)} was ignored{hint}."
