"""Every failure of a job, as one tree. The codes are part of the contract with clients and never change.

WorkerError
├── SettingsError        settings_invalid
├── InvalidRequest       input_invalid
├── DownloadError        download_failed      retryable
│   ├── AddressRefused   address_refused
│   ├── HostNotFound     host_not_found
│   ├── SourceRefused    source_refused
│   ├── DownloadTooLarge download_too_large
│   └── DownloadTimeout  download_timeout     retryable
├── DecodeError          audio_undecodable
│   ├── EmptyAudio       audio_empty
│   └── AudioTooLong     audio_too_long
├── RecognitionError     recognition_failed   retryable
│   ├── EngineDead       engine_dead          retryable
│   └── Incomplete       transcript_incomplete
├── AlignError           alignment_failed     retryable
├── DeadlineExceeded     deadline_exceeded    retryable
├── WorkerFailed         worker_failed        retryable
├── WorkerStopped        worker_stopped       retryable
└── ResultTooLarge       result_too_large
"""

import errno

SHORTAGES = (  # of open files, memory, processes and disk space
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)
NO_THREAD = "can't start new thread"  # the only sign in the RuntimeError that Python raises
SPANS_IN_MESSAGE = 10  # the message names at most so many; `failed_spans` lists all


class WorkerError(Exception):
    """A failure with a stable code and a message that is safe to show to the client."""

    code = "internal_error"
    retryable = False

    def to_output(self) -> dict:
        """The result of a failed job; RunPod marks a job with a top-level `error` FAILED."""
        return {"error": str(self), "error_code": self.code, "retryable": self.retryable}


class SettingsError(WorkerError):
    """The worker cannot start with the value of a setting, or the models do not fit the GPU."""

    code = "settings_invalid"


class InvalidRequest(WorkerError):
    """A field of the job input is missing, has a wrong type or value, or names a channel that the recording does not have."""

    code = "input_invalid"


class DownloadError(WorkerError):
    """The audio could not be downloaded, after retries. The same request may succeed later."""

    code = "download_failed"
    retryable = True


class AddressRefused(DownloadError):
    """The URL, or a redirect of it, leads to an address that is not public, or there are too many redirects."""

    code = "address_refused"
    retryable = False


class HostNotFound(DownloadError):
    """The host name of the URL does not resolve."""

    code = "host_not_found"
    retryable = False


class SourceRefused(DownloadError):
    """The server does not have the file or refuses to send it (4xx), or sends it in a compression that is not supported."""

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


class RecognitionError(WorkerError):
    """A chunk could not be transcribed, after its retries."""

    code = "recognition_failed"
    retryable = True


class EngineDead(RecognitionError):
    """The vLLM engine has died; this worker must be replaced."""

    code = "engine_dead"


class Incomplete(RecognitionError):
    """Some spans of the recording got no answer from the engine, and the request does not allow a partial result.

    Retryable only after a timeout: a chunk that the engine has refused twice would be refused again.
    """

    code = "transcript_incomplete"
    retryable = False

    spans: list[dict] = []

    @classmethod
    def in_spans(cls, spans: list[dict]) -> "Incomplete":
        """`spans`: [{"start", "end", "reason"}], seconds from the start of the recording."""
        shown = ", ".join(
            f"{s['start']:.3f}-{s['end']:.3f} s ({s['reason']})" for s in spans[:SPANS_IN_MESSAGE]
        )
        more = f" and {len(spans) - SPANS_IN_MESSAGE} more" if len(spans) > SPANS_IN_MESSAGE else ""
        error = cls(f"Not all of the recording could be transcribed: {shown}{more}.")
        error.spans = spans
        error.retryable = any(span["reason"] == "timeout" for span in spans)
        return error

    def to_output(self) -> dict:
        return super().to_output() | ({"failed_spans": self.spans} if self.spans else {})


class AlignError(WorkerError):
    """The words of a chunk could not be aligned. Its text is kept, and the times of its words are estimated."""

    code = "alignment_failed"
    retryable = True

    def __init__(self, sentence: str, unexplained: bool = False):
        """`unexplained`: no cause is known in the chunk or its text, so the GPU may be broken."""
        super().__init__(sentence)
        self.unexplained = unexplained


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


def is_shortage(error: BaseException) -> bool:
    """Whether this machine has run out of memory, processes, threads, disk space or open files."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, MemoryError) or str(error) == NO_THREAD
