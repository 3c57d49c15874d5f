"""File → one stream of 16 kHz int16, decoded once, in a child process.

It is mono, or has every channel by itself.

A broken file must not crash the worker, and a hostile one must not take control of it. So the
child, decoder/, can be killed, gets the open file and an empty environment, and gives up its
rights (decoder/sandbox.py). Knows nothing of URLs, pauses or models.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from contract.errors import AudioTooLong, DecodeError, EmptyAudio, InvalidRequest, WorkerFailed
from contract.request import EACH
from recording.child import Child, child_process
from recording.chunk import SAMPLE_RATE, Samples

BLOCK_BYTES = SAMPLE_RATE * 2 * 8  # the stream's largest block holds 8 s
DECODER = Path(__file__).parent / "decoder"  # a folder with a __main__.py
STALL_SECONDS = 60  # a decoder that has the whole file and is silent for this long is stuck
STALL_LOOKS = 60  # STALL_SECONDS are counted in this many waits
POLL_SECONDS = 0.02  # between two looks whether the file is complete
STUCK = "The audio decoder got stuck on this file."
# The kinds in the decoder's report; all others are a DecodeError.
ERRORS = {
    "empty": EmptyAudio,
    "too long": AudioTooLong,
    "no channel": InvalidRequest,
    "no track": InvalidRequest,
}
NO_FAILURES = ("warning", "found", "damage", "channels")
FULL_SCALE = 32768
MAX_REPORT_BYTES = 1 << 16  # decoder/sandbox.py allows no more
MAX_EACH = 16  # the decoder gives no more channels
Report = dict[str, Any]  # one line of the decoder's report


@dataclass(frozen=True, slots=True)
class Found:
    """What the decoder found in a file."""

    tracks: int  # audio tracks
    track: int | None  # the number of the one that was decoded; None for a mix
    channels: int  # of that track; of a mix, the number of its tracks
    peak: float  # of the decoded samples, before they were amplified; 1 is full scale


class PcmStream:
    """The decoded samples of a recording, or of a part of it, as a stream; iterate once."""

    def __init__(
        self,
        path: Path,
        child: Child,
        report: BinaryIO,
        offset: int,
        max_seconds: float,
        complete_marker: Path | None,
        is_each: bool = False,
    ):
        """`is_each`: the child gives every channel, or track, by itself."""
        self.path = path
        self.offset = offset  # the sample of the recording with which the part begins
        self.samples = 0  # yielded so far, of each channel
        self.is_each = is_each
        # Where `is_each`, the numbers of the channels; they are known with the first block.
        self.channels: tuple[int, ...] = ()
        # The next three are set at the end of the iteration.
        self.warnings: tuple[str, ...] = ()
        # (start, end) of stretches of lost audio, in seconds from the start of the recording.
        self.damaged_spans: tuple[tuple[float, float], ...] = ()
        self.found: Found | None = None
        self._peak = 0  # of the samples yielded so far
        self._child = child
        self._report = report
        self._max_seconds = max_seconds
        self._complete_marker = complete_marker
        self._half_sample = b""  # a read may end within a sample

    @property
    def duration(self) -> float:
        """Seconds yielded so far; in the end the length of the recording, or of its part."""
        return self.samples / SAMPLE_RATE

    @property
    def seconds_decoded(self) -> float:
        """Seconds yielded so far, of all channels together."""
        return self.duration * max(1, len(self.channels))

    @property
    def start(self) -> float:
        """Seconds from the start of the recording to the first sample of the part."""
        return self.offset / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Seconds from the start of the recording to the end of what was yielded so far."""
        return (self.offset + self.samples) / SAMPLE_RATE

    async def __aiter__(self) -> AsyncIterator[Samples]:
        """Blocks of (samples,) int16, or of (samples, channels) where `is_each`.

        Raises AudioTooLong beyond the limit, before the first block where the file declares it.
        Raises at the end: EmptyAudio where there was no sample; InvalidRequest where the file does
        not have the track or the channel; DecodeError where the file is not audio, has no audio
        track, next to nothing of it can be decoded, or the decoder failed; WorkerFailed where the
        decoder was killed.
        """
        # Samples before the part are dropped here: a decoder that writes nothing would look stuck.
        to_drop = self.offset
        while (decoded := await self._next_block()) is not None:
            block = decoded[to_drop:]
            to_drop = max(0, to_drop - len(decoded))
            self.samples += len(block)
            if self.duration > self._max_seconds:
                raise AudioTooLong(
                    f"The audio is longer than the {self._max_seconds:g} seconds allowed; "
                    "start and end can choose a part of it."
                )
            if len(block):
                self._peak = max(self._peak, int(block.max()), -int(block.min()))
                yield block
        await self._wait_for_exit()
        samples_decoded = self.offset - to_drop + self.samples
        reports = self._reports()
        self._raise_failure(reports, samples_decoded)
        self._keep(reports)
        if not self.samples:
            raise EmptyAudio(
                f"start is {self.start:.3f}, but the audio at audio_url ends at "
                f"{samples_decoded / SAMPLE_RATE:.3f} seconds."
            )

    async def _next_block(self) -> Samples | None:
        """The next samples of the whole recording; None at its end."""
        data = await self._read()
        if self.is_each and data and not self.channels:
            self.channels = self._reported_channels()
        unit = 2 * (len(self.channels) or 1)
        held = self._half_sample + data
        whole = len(held) // unit * unit
        if not data and not whole:
            return None
        self._half_sample = held[whole:]
        block = np.frombuffer(held[:whole], np.int16)
        return block.reshape(-1, len(self.channels)) if self.channels else block

    def _reported_channels(self) -> tuple[int, ...]:
        """The numbers of the interleaved channels. Raises DecodeError without them."""
        for report in self._reports():
            numbers = report.get("numbers")
            if isinstance(numbers, list) and 1 <= len(numbers) <= MAX_EACH:
                with suppress(TypeError, ValueError):
                    return tuple(int(number) for number in numbers)
        raise DecodeError("The audio decoder did not tell the channels of this file.")

    async def _read(self) -> bytes:
        """What the decoder writes next, b"" at its end. Raises DecodeError where it is stuck."""
        looks = 0  # without output since the file was complete
        while looks < STALL_LOOKS:
            try:
                async with asyncio.timeout(STALL_SECONDS / STALL_LOOKS):
                    return await self._child.stdout.read(BLOCK_BYTES)
            except TimeoutError:
                looks = 0 if self._file_is_arriving() else looks + 1
        raise DecodeError(STUCK)

    def _file_is_arriving(self) -> bool:
        """Whether a silent decoder may only wait for more of the file."""
        return self._complete_marker is not None and not self._complete_marker.exists()

    async def _wait_for_exit(self) -> None:
        """Raises DecodeError where the decoder has closed its output but does not end."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._child.wait()
        except TimeoutError:
            raise DecodeError(STUCK) from None

    def _reports(self) -> list[Report]:
        """The decoder's reports, without malformed ones."""
        # The child writes at the position that it shares with this process.
        content = os.pread(self._report.fileno(), MAX_REPORT_BYTES, 0)
        reports: list[Report] = []
        for line in content.decode("utf-8", "replace").splitlines():
            with suppress(KeyError, TypeError, ValueError):
                report = json.loads(line)
                reports.append(report | {"kind": report["kind"], "message": report["message"]})
        return reports

    def _raise_failure(self, reports: list[Report], samples_decoded: int) -> None:
        """Raise the error that the decoder's exit status or its reports tell."""
        status = self._child.returncode
        if status == -signal.SIGKILL:
            raise WorkerFailed("The decoder was killed, most likely because memory ran out.")
        if status == 0 and not samples_decoded:
            raise EmptyAudio(
                "The file at audio_url holds no audio: its audio track has no samples."
            )
        failures = [report for report in reports if report["kind"] not in NO_FAILURES]
        if not failures and status != 0:
            raise DecodeError(f"The audio decoder failed on this file (exit status {status}).")
        if failures:
            kind, message = str(failures[-1]["kind"]), str(failures[-1]["message"])
            # A warning may tell of a track that can be decoded.
            raise ERRORS.get(kind, DecodeError)(" ".join([message, *_warnings(reports)]))

    def _keep(self, reports: list[Report]) -> None:
        """Set `warnings`, `damaged_spans` and `found`."""
        self.warnings = tuple(_warnings(reports))
        for report in reports:
            with suppress(KeyError, TypeError, ValueError, OverflowError):
                spans = report["spans"]
                self.damaged_spans = tuple((int(s) / 1000, int(e) / 1000) for s, e in spans)
        peak = self._peak / FULL_SCALE
        for report in reports:
            with suppress(KeyError, TypeError, ValueError, OverflowError):
                track = report["track"]
                self.found = Found(
                    int(report["tracks"]),
                    None if track is None else int(track),
                    int(report["channels"]),
                    float(report["peak"] or peak),
                )


def _warnings(reports: list[Report]) -> list[str]:
    kinds = ("warning", "damage")
    return [str(report["message"]) for report in reports if report["kind"] in kinds]


@asynccontextmanager
async def decode(
    path: Path,
    max_seconds: float,
    size: int | None = None,
    complete_marker: Path | None = None,
    *,
    suffix: str = "",
    start: float = 0,
    end: float | None = None,
    track: int | str = "default",
    channel: int | str | None = None,
) -> AsyncIterator[PcmStream]:
    """Decode `path`, of any rate and channel count, to a PcmStream.

    `start`, `end`: the part to decode, in seconds from the start of the file. Its samples are those
    of the whole recording there. `track`: the number of an audio track from 0, "default" for the
    one that players take, "mix" for all, or EACH for all by themselves. `channel`: the only one to
    decode, from 0; None mixes all, EACH keeps them. `suffix`: of the file's name, in lower case and
    without the dot, for formats without a mark.
    `size`, `complete_marker`: for a file that is still arriving, its final bytes if known, and a
    path that exists once it is complete.

    The child process ends with the context. Time 0 is the start of the file, video included: if the
    audio starts later, silence comes first. A part that the file declares longer than `max_seconds`
    is refused without decoding, if the file has enough bytes to hold it.
    Raises WorkerFailed where the process cannot be started.
    """
    offset, is_each = round(start * SAMPLE_RATE), EACH in (track, channel)
    options: dict[str, Any] = {
        "rate": SAMPLE_RATE,
        "size": size,
        "suffix": suffix,
        "track": track,
        "channel": channel,
        "offset": offset,
        "limit": max_seconds,
    }
    if end is not None:
        options["end"] = max(offset + 1, round(end * SAMPLE_RATE))
    async with AsyncExitStack() as stack:
        try:
            child, report = await _start_decoder(stack, path, options)
        except OSError as error:
            reason = error.strerror
            raise WorkerFailed(f"The worker could not start its decoder: {reason}.") from error
        closing = asyncio.create_task(_close_when_complete(child, complete_marker))
        try:
            yield PcmStream(path, child, report, offset, max_seconds, complete_marker, is_each)
        finally:
            closing.cancel()


async def _start_decoder(
    stack: AsyncExitStack, path: Path, options: dict[str, Any]
) -> tuple[Child, BinaryIO]:
    """(the process, the file of its reports); both end with `stack`. Raises OSError."""
    # A pipe that nobody reads would block the child once it is full, so stderr goes to a file.
    report = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    file = stack.enter_context(path.open("rb"))
    arguments = json.dumps(options | {"descriptor": file.fileno()})
    command = [sys.executable, "-B", "-E", "-s", str(DECODER), arguments]
    process = child_process(
        command, stderr=report, descriptors=[file.fileno()], buffer_bytes=BLOCK_BYTES
    )
    return await stack.enter_async_context(process), report


async def _close_when_complete(child: Child, marker: Path | None) -> None:
    """Tell the child that the file is complete; it cannot look for the marker itself."""
    while marker is not None and not marker.exists():
        await asyncio.sleep(POLL_SECONDS)
    child.close_stdin()
