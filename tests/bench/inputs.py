"""Recordings for the benchmarks: speech of the test bank with pauses, of any length, in the usual
formats.
"""

import http.server
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av
import clips
import media
import numpy as np
from material import ENGLISH
from recording.chunk import SAMPLE_RATE

FORMATS = {
    "mp3": (44_100, 2, 128_000),
    "m4a": (44_100, 2, 128_000),
    "opus": (48_000, 1, 64_000),
    "wav": (44_100, 2, None),
}
LOOP_SECONDS = 300  # longer recordings repeat this much speech


def speech(seconds: float) -> np.ndarray:
    """(samples,) int16 at SAMPLE_RATE."""
    loop = clips.recording(ENGLISH, min(seconds, LOOP_SECONDS), 7).pcm
    return np.resize(loop, round(seconds * SAMPLE_RATE))


def recording(folder: Path, seconds: float, suffix: str) -> Path:
    """A file of this length in `folder`, made at the first call."""
    path = folder / f"{seconds:.0f}.{suffix}"
    if not path.exists():
        rate, channels, bitrate = FORMATS[suffix]
        if seconds <= LOOP_SECONDS:
            media.encode(speech(seconds), path, rate=rate, channels=channels, bitrate=bitrate)
        else:
            _repeat(recording(folder, LOOP_SECONDS, suffix), path, round(seconds / LOOP_SECONDS))
    return path


def _repeat(one: Path, path: Path, times: int) -> None:
    """Write the packets of a file `times` times, without encoding them again."""
    with av.open(str(path), "w") as out:
        copy = end = None
        for _ in range(times):
            # so that its first packet, which may be at a negative time, follows what is there
            shift = None
            with av.open(str(one)) as source:
                track = source.streams.audio[0]
                copy = copy or out.add_stream_from_template(track)
                for packet in source.demux(track):
                    if packet.pts is None:
                        continue
                    shift = shift if shift is not None else 0 if end is None else end - packet.pts
                    end = packet.pts + shift + packet.duration
                    packet.pts, packet.dts, packet.stream = (
                        packet.pts + shift,
                        packet.dts + shift,
                        copy,
                    )
                    out.mux(packet)


@contextmanager
def served(folder: Path, bytes_per_second: float | None = None):
    """The folder's address on loopback, throttled if that is wanted."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, target):
            if not bytes_per_second:
                return super().copyfile(source, target)
            try:
                while block := source.read(1 << 16):
                    target.write(block)
                    time.sleep(len(block) / bytes_per_second)
            except ConnectionError:
                pass  # the client has left

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Files, directory=str(folder))
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
