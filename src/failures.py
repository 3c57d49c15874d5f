"""An exception → the output of a failed job, and what the log says of it."""

import traceback
from typing import Any

from contract.errors import EngineDead, InvalidRequest, WorkerError, WorkerFailed, is_shortage
from runpod import RunPodLogger

log = RunPodLogger()


def failed_output(error: Exception, seconds: float, job_id: str | None) -> dict[str, Any]:
    """The output of a job that failed after `seconds`. A worker whose engine is dead is replaced.

    The log has the sentence too, except that of an invalid request, which quotes the request.
    """
    failure = as_worker_error(error)
    sentence = "" if isinstance(failure, InvalidRequest) else f": {failure}"
    log.warn(f"failed after {seconds:.1f} s: {failure.code}{sentence}", job_id)
    refresh = {"refresh_worker": True} if isinstance(failure, EngineDead) else {}
    return failure.to_output() | refresh


def as_worker_error(error: BaseException) -> WorkerError:
    """The failure to report.

    An unexpected error is reported and logged without its message, which may quote the client's
    data.
    """
    while isinstance(error, BaseExceptionGroup):
        dead = [e for e in error.exceptions if isinstance(e, EngineDead)]
        error = (dead or error.exceptions)[0]
    if isinstance(error, WorkerError):
        return error
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error(f"unexpected {type(error).__name__} at\n{place}")
    if is_shortage(error):
        return WorkerFailed("The worker ran out of memory, threads, disk space or open files.")
    return WorkerError("The worker failed because of an unexpected error.")
