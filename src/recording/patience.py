"""How often a download is tried again, and how long it waits before. Knows no network."""

import time

from recording.file_response import TransientError

ATTEMPTS = 3  # in a row that bring nothing new
BACKOFF_SECONDS = 0.5  # the wait doubles after each of them
MAX_RESUMES = 1000  # answers that are cut, each of which brings more of the file
MAX_BUSY_ANSWERS = 10  # answers that ask to wait


class GivenUp(Exception):
    """The download is not tried again; the message says why, in few words."""


class Patience:
    """For one download, which may take `seconds`."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._failures = 0  # attempts in a row that brought nothing new
        self._resumes = 0
        self._busy_answers = 0

    @property
    def is_last_attempt(self) -> bool:
        return self._failures == ATTEMPTS - 1

    def wait_after(self, failure: TransientError, resumed: bool) -> float:
        """Seconds to wait before the next attempt. Raises GivenUp.

        `resumed`: the attempt went on where an earlier one was cut, and brought more.
        """
        if resumed:
            return self._wait_after_resume()
        if failure.retry_after:
            return self._wait_for_busy_server(failure.retry_after)
        self._failures += 1
        if self._failures == ATTEMPTS:
            raise GivenUp(f"{ATTEMPTS} times")
        return BACKOFF_SECONDS * 2.0 ** (self._failures - 1)

    def _wait_after_resume(self) -> float:
        self._failures = 0
        self._resumes += 1
        if self._resumes == MAX_RESUMES:
            raise GivenUp(f"{MAX_RESUMES} times")
        return 0.0

    def _wait_for_busy_server(self, seconds: float) -> float:
        self._busy_answers += 1
        if self._busy_answers == MAX_BUSY_ANSWERS:
            raise GivenUp(f"{MAX_BUSY_ANSWERS} times")
        if time.monotonic() + seconds > self._end:
            raise GivenUp(f"and asks to wait {seconds:.0f} s, which is too long")
        return max(seconds, BACKOFF_SECONDS)
