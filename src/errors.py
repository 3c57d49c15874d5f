"""Everything that can go wrong with a job, as one tree. The codes are part of the worker's contract: they never change.

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
└── ResultTooLarge       result_too_large
"""

SPANS_SHOWN = 10  # in an error's sentence; all of them are beside it


class WorkerError(Exception):
    """A failure with a sentence that is safe to show to the client and a stable code."""

    code = "internal_error"
    retryable = False

    def to_output(self) -> dict:
        """The result of a failed job; RunPod marks a job with a top-level `error` FAILED."""
        return {"error": str(self), "error_code": self.code, "retryable": self.retryable}


class SettingsError(WorkerError):
    """An environment variable holds a value the worker cannot start with."""

    code = "settings_invalid"


class InvalidRequest(WorkerError):
    """A field of the job input is missing, of the wrong type or of an unknown value, or asks for a channel that is not there."""

    code = "input_invalid"


class DownloadError(WorkerError):
    """The audio could not be fetched, after retries; the same request may work later."""

    code = "download_failed"
    retryable = True


class AddressRefused(DownloadError):
    """The URL, or a redirect of it, leads to an address that is not public, or redirects too often."""

    code = "address_refused"
    retryable = False


class HostNotFound(DownloadError):
    """The host name of the URL does not resolve."""

    code = "host_not_found"
    retryable = False


class SourceRefused(DownloadError):
    """The server answered that it has no such file or does not hand it out (4xx), or compresses it in an unusual way."""

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
    """The file is not audio or video that can be decoded, or is too damaged."""

    code = "audio_undecodable"


class EmptyAudio(DecodeError):
    """The file, its audio track, or the part of it that is asked for holds no samples."""

    code = "audio_empty"


class AudioTooLong(DecodeError):
    """The audio, or the part of it that is asked for, runs longer than MAX_AUDIO_SECONDS."""

    code = "audio_too_long"


class RecognitionError(WorkerError):
    """A chunk could not be transcribed, after its retries."""

    code = "recognition_failed"
    retryable = True


class EngineDead(RecognitionError):
    """The vLLM engine has died; this worker must be replaced."""

    code = "engine_dead"


class Incomplete(RecognitionError):
    """For some spans of the recording no answer came, and the request did not allow a partial result.

    Worth another try only after a timeout: what the engine refuses twice, it refuses the next time too.
    """

    code = "transcript_incomplete"
    retryable = False

    spans: list[dict] = []

    @classmethod
    def in_spans(cls, spans: list[dict]) -> "Incomplete":
        """`spans`: [{"start", "end", "reason"}], seconds from the start of the recording."""
        shown = ", ".join(f"{s['start']:.3f}-{s['end']:.3f} s ({s['reason']})" for s in spans[:SPANS_SHOWN])
        more = f" and {len(spans) - SPANS_SHOWN} more" if len(spans) > SPANS_SHOWN else ""
        error = cls(f"Not all of the recording could be transcribed: {shown}{more}.")
        error.spans = spans
        error.retryable = any(span["reason"] == "timeout" for span in spans)
        return error

    def to_output(self) -> dict:
        return super().to_output() | ({"failed_spans": self.spans} if self.spans else {})


class AlignError(WorkerError):
    """A chunk's words could not be aligned; its text is kept and its times are estimated."""

    code = "alignment_failed"
    retryable = True

    def __init__(self, sentence: str, unexplained: bool = False):
        """`unexplained`: nothing in the chunk or its text is known to be the reason; the GPU may be broken."""
        super().__init__(sentence)
        self.unexplained = unexplained


class DeadlineExceeded(WorkerError):
    """The job's own executionTimeout was about to pass."""

    code = "deadline_exceeded"
    retryable = True


class ResultTooLarge(WorkerError):
    """Even the bare text is more than RunPod takes."""

    code = "result_too_large"
