"""The recording of a request → a local file, and its samples.

It is downloaded, decoded from the request, or already on this machine.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

from contract.audio_source import FILE_SCHEME, FileInUrl
from contract.errors import DownloadTooLarge, SourceRefused, WorkerError, WorkerFailed
from contract.request import Request
from contract.settings import Settings
from recording.download import ArrivingFile, download, suffix_of
from recording.pcm_stream import PcmStream, decode


@asynccontextmanager
async def decoded_recording(
    request: Request, folder: Path, settings: Settings, timer: AbstractContextManager[object]
) -> AsyncIterator[PcmStream]:
    """The samples of a request's recording, while its file still arrives in `folder`.

    The download ends with the decoder, which reads no further than the request's `end`. `timer`
    runs until the download is complete. Raises what `recording` and `decode` raise.
    """
    arriving = recording(
        request,
        folder,
        max_bytes=settings.max_download_bytes,
        timeout=settings.download_timeout_seconds,
        timer=timer,
    )
    async with (
        arriving as file,
        decode(
            file.path,
            settings.max_audio_seconds,
            file.size,
            file.complete_marker,
            suffix=file.suffix,
            start=request.start,
            end=request.end,
            track=request.track,
            channel=request.channel,
        ) as pcm,
    ):
        yield pcm


@asynccontextmanager
async def recording(
    request: Request,
    folder: Path,
    *,
    max_bytes: int,
    timeout: float,
    timer: AbstractContextManager[object],
) -> AsyncIterator[ArrivingFile]:
    """The file of `request`, at most `max_bytes`; in `folder`, unless it is a local file.

    A download may take `timeout` seconds, and `timer` runs until it is complete.

    Raises DownloadTooLarge for a larger file, SourceRefused for a local one that cannot be read,
    WorkerFailed where the file of the request cannot be stored, and what `download` raises. Errors
    of the stages within this context get the name of the field that holds the file.
    """
    if request.audio_base64:
        is_in_url = isinstance(request.audio_base64, FileInUrl)
        with _errors_name("audio_url" if is_in_url else "audio_base64"):
            yield await _stored_file(request.audio_base64, folder, max_bytes)
    elif request.audio_url.startswith(FILE_SCHEME):
        yield _local_file(Path(request.audio_url.removeprefix(FILE_SCHEME)), max_bytes)
    else:
        arriving = download(
            request.audio_url,
            folder,
            max_bytes=max_bytes,
            timeout=timeout,
            headers=request.audio_headers,
            timer=timer,
        )
        async with arriving as file:
            yield file


@contextmanager
def _errors_name(field: str) -> Iterator[None]:
    """Errors name `field`, which holds the file; later stages say that each is at audio_url."""
    try:
        yield
    except WorkerError as error:
        error.args = (str(error).replace("at audio_url", f"in {field}"),)
        raise


async def _stored_file(content: bytes, folder: Path, max_bytes: int) -> ArrivingFile:
    if len(content) > max_bytes:
        raise DownloadTooLarge(
            f"The file at audio_url is larger than the {max_bytes} bytes allowed."
        )
    path = folder / "source"
    try:
        await asyncio.to_thread(path.write_bytes, content)
    except OSError as error:
        sentence = f"The worker could not store the file of the request: {error.strerror}."
        raise WorkerFailed(sentence) from error
    return ArrivingFile(path, len(content), complete_marker=path)


def _local_file(path: Path, max_bytes: int) -> ArrivingFile:
    if not path.is_file() or not os.access(path, os.R_OK):
        raise SourceRefused(
            f"audio_url is {str(path)!r}; it must be a file that the worker can read."
        )
    size = path.stat().st_size
    if size > max_bytes:
        raise DownloadTooLarge(
            f"The file {path.name!r} is larger than the {max_bytes} bytes allowed."
        )
    return ArrivingFile(path, size, path, suffix_of(path.name))
