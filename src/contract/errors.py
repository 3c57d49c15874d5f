"""The failures of a job, each with a code. The codes are part of the contract with clients.

WorkerError
├── InvalidRequest
├── DownloadError
│   ├── AddressRefused
│   ├── HostNotFound
│   ├── TlsFailed
│   ├── SourceRefused
│   ├── DownloadTooLarge
│   └── DownloadTimeout
├── DecodeError
│   ├── EmptyAudio
│   └── AudioTooLong
├── EngineDead
├── TranscriptIncomplete
├── DeadlineExceeded
├── WorkerFailed
├── WorkerStopped
└── ResultTooLarge

SettingsError, RecognitionError and AlignError stay inside the worker and have no code.
"""

import errno
from typing import Any

# A lack of open files, memory, processes or disk space.
SHORTAGES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)
# Python raises a plain RuntimeError for a lack of threads; only its message tells.
NO_THREAD = "can't start new thread"
# The message of TranscriptIncomplete stays short; its `failed_spans` lists all spans.
MAX_SPANS_IN_MESSAGE = 10


class WorkerError(Exception):
    """A failure with a stable code and a message that is safe to show to the client."""

    code = "internal_error"
    retryable = False

    def to_output(self) -> dict[str, Any]:
        """The result of a failed job.

        The SDK marks a job with an `error` FAILED and takes it out of the output, which is all
        that RunPod's Python client shows. So the sentence is in both places.
        """
        sentence = str(self)
        return {
            "error": sentence,
            "error_message": sentence,
            "error_code": self.code,
            "retryable": self.retryable,
        }


class InvalidRequest(WorkerError):
    """The job's input, or what it asks for in this recording, is not possible."""

    code = "input_invalid"


class DownloadError(WorkerError):
    """The audio could not be downloaded, after retries. The same request may succeed later."""

    code = "download_failed"
    retryable = True


class AddressRefused(DownloadError):
    """The URL or one of its redirects is not a public address, or there are too many redirects."""

    code = "address_refused"
    retryable = False


class HostNotFound(DownloadError):
    """The host name of the URL does not resolve."""

    code = "host_not_found"
    retryable = False


class TlsFailed(DownloadError):
    """The server's certificate is not valid, or it does not speak TLS."""

    code = "tls_failed"
    retryable = False


class SourceRefused(DownloadError):
    """The server does not send the file, or sends it in a compression that is not supported."""

    code = "source_refused"
    retryable = False


class DownloadTooLarge(DownloadError):
    """The file is larger than MAX_DOWNLOAD_BYTES."""

    code = "download_too_large"
    retryable = False


class DownloadTimeout(DownloadError):
    """The file did not arrive within DOWNLOAD_TIMEOUT_SECONDS."""

    code = "download_timeout"


class DecodeError(WorkerError):
    """The file is not audio or video of a known format, or is too damaged."""

    code = "audio_undecodable"


class EmptyAudio(DecodeError):
    """The file, its audio track, or the requested part has no samples."""

    code = "audio_empty"


class AudioTooLong(DecodeError):
    """The audio, or the requested part of it, is longer than MAX_AUDIO_SECONDS."""

    code = "audio_too_long"


class EngineDead(WorkerError):
    """The vLLM engine has died; this worker must be replaced."""

    code = "engine_dead"
    retryable = True


class TranscriptIncomplete(WorkerError):
    """The engine gave no answer for a part of the recording, and the request wants all of it.

    Retryable only after a timeout: what the engine has refused twice, it would refuse again.
    """

    code = "transcript_incomplete"

    def __init__(self, message: str, spans: list[dict[str, Any]] | None = None):
        """`spans`: [{"start", "end", "reason"}], seconds from the start of the recording."""
        super().__init__(message)
        self.spans = spans or []
        self.retryable = any(span["reason"] == "timeout" for span in self.spans)

    @classmethod
    def in_spans(cls, spans: list[dict[str, Any]]) -> "TranscriptIncomplete":
        """The error for these `spans`, with a message that names the first of them."""
        shown = ", ".join(map(_span_in_words, spans[:MAX_SPANS_IN_MESSAGE]))
        not_shown = len(spans) - MAX_SPANS_IN_MESSAGE
        more = f" and {not_shown} more" if not_shown > 0 else ""
        return cls(f"Not all of the recording could be transcribed: {shown}{more}.", spans)

    def to_output(self) -> dict[str, Any]:
        output = super().to_output()
        if self.spans:
            output["failed_spans"] = self.spans
        return output


class DeadlineExceeded(WorkerError):
    """The time that the job's policy.executionTimeout allows was about to end."""

    code = "deadline_exceeded"
    retryable = True


class WorkerFailed(WorkerError):
    """The worker ran out of memory, disk space, processes or open files.

    Neither the request nor its recording is the cause: the same request may succeed later.
    """

    code = "worker_failed"
    retryable = True


class WorkerStopped(WorkerError):
    """The worker was asked to stop, and the job did not end in the time that was left."""

    code = "worker_stopped"
    retryable = True


class ResultTooLarge(WorkerError):
    """The text alone is larger than a result may be."""

    code = "result_too_large"


class SettingsError(Exception):
    """The worker cannot start with the value of a setting, or the models do not fit the GPU."""


class RecognitionError(Exception):
    """The engine refused a chunk. Where its retries fail too, its span has no text."""


class AlignError(Exception):
    """The words of a chunk could not be aligned. Its text is kept, with estimated times."""

    def __init__(self, message: str, unexplained: bool = False):
        """`unexplained`: neither the chunk nor its text explains it, so the GPU may be broken."""
        super().__init__(message)
        self.unexplained = unexplained


def is_shortage(error: BaseException) -> bool:
    """Whether this machine has run out of memory, processes, threads, disk space or open files."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, MemoryError) or str(error) == NO_THREAD


def _span_in_words(span: dict[str, Any]) -> str:
    return f"{span['start']:.3f}-{span['end']:.3f} s ({span['reason']})"
