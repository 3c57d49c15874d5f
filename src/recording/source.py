"""The recording of a request → a local file: downloaded, decoded from the request, or already on this machine."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from contract.errors import DownloadTooLarge, SourceRefused, WorkerFailed
from contract.request import FILE_SCHEME, Request
from recording.download import ArrivingFile, download


@asynccontextmanager
async def recording(
    request: Request, folder: Path, *, max_bytes: int, timeout: float, timer: AbstractContextManager
) -> AsyncIterator[ArrivingFile]:
    """The file of `request`, at most `max_bytes`; in `folder`, unless it is a local file.

    A download may take `timeout` seconds, and `timer` runs until it is complete.

    Raises DownloadTooLarge for a larger file, SourceRefused for a local one that cannot be read,
    WorkerFailed where the file of the request cannot be stored, and what `download` raises.
    """
    if request.audio_base64:
        if len(request.audio_base64) > max_bytes:
            raise DownloadTooLarge(
                f"The file in the request is larger than the {max_bytes} bytes allowed."
            )
        path = folder / "source"
        try:
            await asyncio.to_thread(path.write_bytes, request.audio_base64)
        except OSError as error:
            sentence = f"The worker could not store the file of the request: {error.strerror}."
            raise WorkerFailed(sentence) from error
        yield ArrivingFile(path, len(request.audio_base64), complete_marker=path)
    elif request.audio_url.startswith(FILE_SCHEME):
        path = Path(request.audio_url.removeprefix(FILE_SCHEME))
        if not path.is_file() or not os.access(path, os.R_OK):
            raise SourceRefused(
                f"audio_url is {str(path)!r}; it must be a file that the worker can read."
            )
        if (size := path.stat().st_size) > max_bytes:
            raise DownloadTooLarge(
                f"The file {path.name!r} is larger than the {max_bytes} bytes allowed."
            )
        yield ArrivingFile(path, size, complete_marker=path)
    else:
        limits = dict(max_bytes=max_bytes, timeout=timeout)
        async with download(
            request.audio_url, folder, headers=request.audio_headers, timer=timer, **limits
        ) as arrival:
            yield arrival
