"""Downloads from servers on loopback: bodies, retries, refusals, redirects, addresses, time limits,
logs.

Each server behaves in one way, which its test shows. Nothing outside this machine is contacted.
"""

import asyncio
import base64
import contextlib
import datetime
import errno
import gzip
import http.server
import itertools
import logging
import random
import socket
import ssl
import threading
import time
import zlib
from contextlib import contextmanager
from email.utils import format_datetime
from math import inf
from pathlib import Path

import pytest
import recording.download as module
import recording.file_response as answers
import recording.http_get as web
import recording.patience as patience
from contract.errors import (
    AddressRefused,
    DownloadError,
    DownloadTimeout,
    DownloadTooLarge,
    HostNotFound,
    InvalidRequest,
    SourceRefused,
    TlsFailed,
    WorkerError,
    WorkerFailed,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from recording.download import OVERLAP_BYTES, download
from recording.http_get import MAX_REDIRECTS

SOUND = random.Random(1).randbytes(700_000)  # more than two blocks
SECRET = "/private/talk.mp3?sig=SECRET"  # path and query of every URL here


class Server:
    """Answers every GET with `answer(request handler, number of the request from 0)`."""

    def __init__(self, answer):
        counter, self.requests, self.closing = itertools.count(), [], threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            closing = self.closing

            def do_GET(handler):
                self.requests.append((handler.path, dict(handler.headers)))
                with contextlib.suppress(ConnectionError):  # the client has had enough
                    answer(handler, next(counter))
                handler.close_connection = True

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str = SECRET) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def use(self, context: ssl.SSLContext) -> None:
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reply(
    handler, status: int = 200, body: bytes = b"", length: int | None = None, **headers: str
) -> None:
    """`length` is what the header says: None the truth, -1 nothing."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if length != -1:
        handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def start_chunked(handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()


def send_chunk(handler, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")


def in_turn(*answers):
    """A different answer to each request, the last one from then on."""
    return lambda handler, n: answers[min(n, len(answers) - 1)](handler)


def whole(handler) -> None:
    reply(handler, body=SOUND)


def status(code: int):
    return lambda handler: reply(handler, code, b"an error page")


async def fetched(url: str, folder: Path, **limits) -> Path:
    """The whole file; raises what was wrong with it."""
    try:
        async with download(url, folder, **limits) as file:
            while not file.complete_marker.exists():
                await asyncio.sleep(0.005)
            return file.path
    except BaseExceptionGroup as errors:
        (error,) = errors.exceptions
        raise error from None


@pytest.fixture
def serve():
    servers = []

    def start(*answers, each=None) -> Server:
        servers.append(Server(each or in_turn(*answers)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr(patience, "BACKOFF_SECONDS", 0.01)


@pytest.fixture
def fetch(tmp_path):
    def run(url: str, max_bytes: int = 10**6, timeout: float = 20, **more) -> bytes:
        return asyncio.run(
            fetched(url, tmp_path, max_bytes=max_bytes, timeout=timeout, **more)
        ).read_bytes()

    return run


@pytest.fixture
def refusal(fetch):
    def run(url: str, error: type[WorkerError], **limits) -> str:
        with pytest.raises(error) as refused:
            fetch(url, **limits)
        assert type(refused.value) is error
        assert "SECRET" not in str(refused.value) and "private" not in str(refused.value)
        return str(refused.value)

    return run


def running_downloads() -> set[asyncio.Task]:
    return asyncio.all_tasks(module.download_loop())


def wait_until(condition, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


# bodies


def test_the_file_is_the_servers_bytes(serve, fetch):
    assert fetch(serve(whole).url()) == SOUND


def test_a_chunked_body_without_a_length_is_the_servers_bytes(serve, fetch):
    def chunked(handler):
        start_chunked(handler)
        for start in range(0, len(SOUND), 100_001):
            send_chunk(handler, SOUND[start : start + 100_001])
        send_chunk(handler, b"")

    assert fetch(serve(chunked).url()) == SOUND


def test_a_body_that_ends_with_the_connection_is_the_servers_bytes(serve, fetch):
    assert fetch(serve(lambda handler: reply(handler, body=SOUND, length=-1)).url()) == SOUND


# compressed bodies, which the request does not ask for


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)],
)
@pytest.mark.parametrize("size", [0, 1, 700_000])
def test_a_compressed_body_is_decompressed(serve, fetch, encoding, compress, size):
    sound = SOUND[: size // 2] + bytes(size - size // 2)  # the half of zeros expands a thousandfold
    assert (
        fetch(
            serve(
                lambda handler: reply(handler, body=compress(sound), Content_Encoding=encoding)
            ).url()
        )
        == sound
    )


def test_a_gzip_file_of_several_members_is_decompressed_whole(serve, fetch):
    body = b"".join(
        gzip.compress(SOUND[start : start + 100_000]) for start in range(0, len(SOUND), 100_000)
    )
    assert (
        fetch(serve(lambda handler: reply(handler, body=body, Content_Encoding="gzip")).url())
        == SOUND
    )


def test_the_size_of_a_compressed_file_is_unknown(serve, tmp_path):
    async def size():
        url = serve(
            lambda handler: reply(handler, body=gzip.compress(SOUND), Content_Encoding="gzip")
        ).url()
        async with download(url, tmp_path, max_bytes=10**6, timeout=20) as file:
            return file.size

    assert asyncio.run(size()) is None


@pytest.mark.parametrize(
    "body",
    [gzip.compress(SOUND)[:-1], gzip.compress(SOUND) + b"more", SOUND],
    ids=["cut", "more", "not at all"],
)
def test_a_body_that_is_not_compressed_as_its_header_says_is_a_failed_download(
    serve, refusal, body
):
    message = refusal(
        serve(lambda handler: reply(handler, body=body, Content_Encoding="gzip")).url(),
        DownloadError,
    )
    assert "not compressed as its header says" in message


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_an_unsupported_compression_is_refused_by_name(serve, refusal, encoding):
    server = serve(lambda handler: reply(handler, body=SOUND, Content_Encoding=encoding))
    assert f"compressed with {encoding}" in refusal(server.url(), SourceRefused)


@pytest.mark.parametrize("encoding", ["identity", "", "aws-chunked", "binary"])
def test_an_encoding_that_is_no_compression_changes_nothing(serve, fetch, encoding):
    assert (
        fetch(serve(lambda handler: reply(handler, body=SOUND, Content_Encoding=encoding)).url())
        == SOUND
    )


# during the download


def test_the_file_can_be_read_while_it_is_downloaded(serve, tmp_path):
    rest = threading.Event()

    def in_two(handler):
        reply(handler, body=SOUND[:1000], length=len(SOUND))
        handler.wfile.flush()
        assert rest.wait(10)
        handler.wfile.write(SOUND[1000:])

    async def run():
        async with download(serve(in_two).url(), tmp_path, max_bytes=10**6, timeout=20) as file:
            assert (file.path.read_bytes(), file.size, file.complete_marker.exists()) == (
                SOUND[:1000],
                len(SOUND),
                False,
            )
            rest.set()
            while not file.complete_marker.exists():
                await asyncio.sleep(0.01)
            assert file.path.read_bytes() == SOUND

    asyncio.run(run())


def test_a_size_that_the_server_does_not_send_is_unknown(serve, tmp_path):
    def chunked(handler):
        start_chunked(handler)
        send_chunk(handler, SOUND[:1000])
        handler.wfile.flush()
        handler.closing.wait(10)

    async def size():
        async with download(serve(chunked).url(), tmp_path, max_bytes=10**6, timeout=20) as file:
            return file.size

    assert asyncio.run(size()) is None


def test_a_failed_download_ends_the_context_with_its_error(serve, tmp_path):
    async def read():
        async with download(
            serve(lambda h: reply(h, body=SOUND[:1000], length=len(SOUND))).url(),
            tmp_path,
            max_bytes=10**6,
            timeout=20,
        ):
            await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(read())
    assert type(caught.value.exceptions[0]) is DownloadError


def test_leaving_the_context_ends_the_download(serve, tmp_path):
    async def read():
        async with download(serve(drip).url(), tmp_path, max_bytes=10**6, timeout=60):
            pass

    asyncio.run(read())
    assert wait_until(lambda: not running_downloads())


def test_an_empty_file_is_downloaded(serve, fetch):
    assert fetch(serve(lambda handler: reply(handler)).url()) == b""


def test_the_request_names_the_worker_and_asks_for_no_compression(serve, fetch):
    server = serve(whole)
    fetch(server.url())
    ((path, headers),) = server.requests
    assert path == SECRET
    assert "qwen3-asr-worker" in headers["User-Agent"] and headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in headers


# retries


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 522])
def test_a_temporary_failure_of_the_server_is_retried(serve, fetch, code):
    server = serve(status(code), status(code), whole)
    assert fetch(server.url()) == SOUND and len(server.requests) == 3


def test_a_truncated_body_is_retried(serve, fetch):
    server = serve(lambda handler: reply(handler, body=SOUND[:1000], length=len(SOUND)), whole)
    assert fetch(server.url()) == SOUND and len(server.requests) == 2


def test_two_content_lengths_are_a_failed_download(serve, refusal):
    server = serve(
        lambda handler: reply(handler, body=SOUND, Content_length="9", **{"Content-length": "8"})
    )
    assert "connection failed" in refusal(server.url(), DownloadError) and len(server.requests) == 3


@pytest.mark.parametrize(
    "other",
    [b"another talk" * 100, SOUND[:500], SOUND[:999] + b"?" + SOUND[1000:]],
    ids=["other", "shorter", "one byte"],
)
def test_a_file_that_changed_between_two_attempts_is_a_failed_download(serve, refusal, other):
    """The beginning of the first one may have been decoded by then."""
    server = serve(
        lambda handler: reply(handler, body=SOUND[:1000], length=len(SOUND)),
        lambda handler: reply(handler, body=other),
    )
    assert "changed between two attempts" in refusal(server.url(), DownloadError)


def test_a_truncated_chunked_body_is_retried(serve, fetch):
    def cut(handler):
        start_chunked(handler)
        handler.wfile.write(b"%x\r\n" % len(SOUND) + SOUND[:1000])

    server = serve(cut, whole)
    assert fetch(server.url()) == SOUND and len(server.requests) == 2


def test_a_connection_closed_without_an_answer_is_retried(serve, fetch):
    assert fetch(serve(lambda handler: None, whole).url()) == SOUND


def test_after_three_attempts_the_failure_is_reported_with_its_reason(serve, refusal):
    server = serve(status(500))
    message = refusal(server.url(), DownloadError)
    assert len(server.requests) == 3
    assert (
        message
        == "audio_url could not be fetched from 127.0.0.1: the server answered 500, 3 times."
    )


def test_a_body_truncated_at_every_attempt_is_a_failed_download(serve, refusal):
    refusal(
        serve(lambda handler: reply(handler, body=SOUND[:1000], length=len(SOUND))).url(),
        DownloadError,
    )


def test_a_refused_connection_is_a_failed_download(serve, refusal):
    server = Server(in_turn(whole))
    server.close()
    assert "connection failed" in refusal(server.url(), DownloadError)


# a host that cuts its answers


def cutting(size: int, content: bytes = SOUND, **headers):
    """Answers with at most `size` bytes of the body they declare; Range works."""

    def answer(handler):
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        part = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body, length = content[start : start + size], len(content) - start
        is_part = "Range" in handler.headers
        more = headers | (part if is_part else {})
        reply(handler, 206 if is_part else 200, body, length, **more)

    return answer


VALIDATORS = [{"ETag": '"1"'}, {"Last_Modified": "Sat, 28 Nov 2026 08:00:00 GMT"}]


@pytest.mark.parametrize("validator", VALIDATORS, ids=["ETag", "Last-Modified"])
def test_a_host_that_cuts_every_answer_is_asked_for_the_rest(serve, fetch, validator):
    server = serve(cutting(100_000, **validator))
    assert fetch(server.url()) == SOUND
    asked = [(h.get("Range"), h.get("If-Range")) for _, h in server.requests]
    (value,) = validator.values()
    starts = [100_000 * i - OVERLAP_BYTES * i for i in range(1, len(asked))]
    assert asked == [(None, None), *((f"bytes={start}-", value) for start in starts)]
    assert len(asked) == 8


@pytest.mark.parametrize("validator", [{}, {"ETag": 'W/"1"'}], ids=["none", "weak"])
def test_without_a_strong_validator_the_whole_file_is_asked_for(serve, refusal, validator):
    server = serve(cutting(100_000, **validator))
    assert "connection failed, 3 times" in refusal(server.url(), DownloadError)
    assert all("Range" not in headers for _, headers in server.requests)


def test_a_host_that_ignores_range_may_send_the_whole_file_again(serve, fetch):
    cut = cutting(100_000, ETag='"1"')
    assert fetch(serve(cut, whole).url()) == SOUND


def other_size(handler) -> None:
    cutting(100_000, SOUND + b"more", ETag='"1"')(handler)


def other_bytes(handler) -> None:
    cutting(100_000, SOUND[::-1], ETag='"1"')(handler)


@pytest.mark.parametrize("changed", [other_size, other_bytes], ids=lambda f: f.__name__)
def test_a_rest_that_belongs_to_another_file_is_a_failed_download(serve, refusal, changed):
    server = serve(cutting(100_000, ETag='"1"'), changed)
    assert "changed between two attempts" in refusal(server.url(), DownloadError)


def nothing_more(handler) -> None:
    cutting(0, ETag='"1"')(handler)


def later_part(handler) -> None:
    reply(
        handler,
        206,
        SOUND[-5:],
        Content_Range=f"bytes {len(SOUND) - 5}-{len(SOUND) - 1}/{len(SOUND)}",
    )


REFUSALS_OF_THE_REST = [nothing_more, later_part, status(403), status(416), status(503)]


@pytest.mark.parametrize("refused", REFUSALS_OF_THE_REST)
def test_a_host_that_refuses_the_rest_is_asked_for_the_whole_file_at_last(serve, fetch, refused):
    server = serve(cutting(100_000, ETag='"1"'), refused, whole)
    assert fetch(server.url()) == SOUND
    assert ["Range" in headers for _, headers in server.requests] == [False, True, False]


def test_resuming_ends_although_every_answer_brings_a_byte(serve, refusal, monkeypatch):
    monkeypatch.setattr(patience, "MAX_RESUMES", 5)
    server = serve(cutting(100_000, ETag='"1"'), cutting(OVERLAP_BYTES + 1, ETag='"1"'))
    assert "connection failed, 5 times" in refusal(server.url(), DownloadError)
    assert len(server.requests) == 6


def test_a_206_with_the_whole_file_is_the_file(serve, fetch):
    whole_range = f"bytes 0-{len(SOUND) - 1}/{len(SOUND)}"
    server = serve(lambda handler: reply(handler, 206, SOUND, Content_Range=whole_range))
    assert fetch(server.url()) == SOUND and len(server.requests) == 1


def test_a_206_with_the_beginning_of_the_file_is_asked_for_the_rest(serve, fetch):
    def beginning(handler):
        part = f"bytes 0-99999/{len(SOUND)}"
        reply(handler, 206, SOUND[:100_000], Content_Range=part, ETag='"1"')

    server = serve(beginning, cutting(10**6, ETag='"1"'))
    assert fetch(server.url()) == SOUND and len(server.requests) == 2


@pytest.mark.parametrize("part", ["bytes 5-9/10", "bytes 0-9/*", "items 0-9/10", "bytes */10"])
def test_a_206_that_may_lack_a_part_of_the_file_is_refused(serve, refusal, part):
    server = serve(lambda handler: reply(handler, 206, SOUND[:10], Content_Range=part))
    assert "answered 206 for audio_url" in refusal(server.url(), SourceRefused)


# a host that is busy


@pytest.fixture
def waits(monkeypatch):
    """The waits between two attempts, in seconds, none of which takes place."""
    waits, wait_after = [], patience.Patience.wait_after

    def at_once(*args):
        waits.append(wait_after(*args))
        return 0

    monkeypatch.setattr(patience.Patience, "wait_after", at_once)
    return waits


def busy(value: str, code: int = 429):
    return lambda handler: reply(handler, code, Retry_After=value)


def test_the_wait_that_a_busy_host_asks_for_is_kept(serve, fetch, waits):
    for code in (429, 503):
        for value, seconds in (("4", 4), ("0", 0.01), ("soon", 0.01), ("-3", 0.01)):
            assert fetch(serve(busy(value, code), whole).url()) == SOUND
            assert waits.pop() == seconds, (code, value)


def test_a_busy_host_may_say_when_it_is_ready(serve, fetch, waits):
    for minutes, low, high in ((1, 50, 60), (-1, 0.01, 0.01)):
        date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        value = format_datetime(date, usegmt=True)
        assert fetch(serve(busy(value), whole).url(), timeout=600) == SOUND
        assert low <= waits.pop() <= high, value


def test_a_host_may_be_busy_more_often_than_a_failure_is_retried(serve, fetch, waits):
    assert fetch(serve(*[busy("1")] * 9, whole).url()) == SOUND
    assert waits == [1] * 9


def test_a_host_that_is_always_busy_is_given_up(serve, refusal, waits):
    server = serve(busy("1"))
    assert "answered 429, 10 times" in refusal(server.url(), DownloadError)
    assert len(server.requests) == 10


@pytest.mark.parametrize("value", ["3600", "9" * 5000, "Sat, 28 Nov 2099 08:00:00 GMT"])
def test_a_wait_beyond_the_time_allowed_fails_at_once(serve, refusal, value):
    server = serve(busy(value))
    assert "asks to wait" in refusal(server.url(), DownloadError)
    assert len(server.requests) == 1


# refusals


@pytest.mark.parametrize("code", [204, 206, 304, 400, 401, 403, 404, 410, 451])
def test_a_final_status_is_refused_without_a_retry(serve, refusal, code):
    server = serve(status(code))
    assert f"127.0.0.1 answered {code}" in refusal(server.url(), SourceRefused)
    assert len(server.requests) == 1


def test_a_declared_length_over_the_cap_is_refused_before_the_body(serve, refusal):
    def endless(handler):
        reply(handler, length=10**9)
        drip_on(handler)

    server = serve(endless)
    assert "1000000 bytes" in refusal(server.url(), DownloadTooLarge)
    assert len(server.requests) == 1


def test_a_body_over_the_cap_without_a_length_is_refused_while_it_comes(serve, refusal, tmp_path):
    def endless(handler):
        start_chunked(handler)
        while not handler.closing.is_set():
            send_chunk(handler, bytes(10_000))

    refusal(serve(endless).url(), DownloadTooLarge)
    assert (tmp_path / "source").stat().st_size <= 10**6


def test_a_file_of_exactly_the_cap_is_downloaded(serve, fetch, refusal):
    server = serve(whole)
    assert fetch(server.url(), max_bytes=len(SOUND)) == SOUND
    refusal(server.url(), DownloadTooLarge, max_bytes=len(SOUND) - 1)


def test_a_full_disk_is_reported_as_such_fault_injected(serve, refusal, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    server = serve(whole)
    monkeypatch.setattr(Path, "open", full)
    sentence = "The worker could not store the file of audio_url: No space left on device."
    assert refusal(server.url(), WorkerFailed) == sentence
    assert len(server.requests) == 1


# redirects


def redirects(count: int):
    """Answers: `count` redirects to the same server, then the file."""

    def answer(handler, n):
        reply(handler, 302, Location=f"/{n}{SECRET}") if n < count else whole(handler)

    return answer


@pytest.mark.parametrize("count", [1, 25, MAX_REDIRECTS])
def test_redirects_are_followed(serve, fetch, count):
    server = serve(each=redirects(count))
    assert fetch(server.url()) == SOUND and len(server.requests) == count + 1


@pytest.mark.parametrize("count", [MAX_REDIRECTS + 1, 10**6], ids=["one too many", "a loop"])
def test_too_many_redirects_are_refused(serve, refusal, count):
    server = serve(each=redirects(count))
    assert "redirects more than 30 times" in refusal(server.url(), AddressRefused)
    assert len(server.requests) == MAX_REDIRECTS + 1


HEADERS = {"Authorization": "Bearer SECRET", "cookie": "a=b", "User-Agent": "curl/8"}


def sent(server, number: int) -> dict:
    """Those of HEADERS that the request of that number had."""
    return {
        name: value
        for name, value in server.requests[number][1].items()
        if HEADERS.get(name) == value
    }


def test_the_requests_headers_are_sent_with_every_attempt_and_redirect_to_the_same_origin(
    serve, fetch
):
    server = serve(lambda handler: reply(handler, 302, Location=SECRET), status(503), whole)
    assert fetch(server.url(), headers=HEADERS) == SOUND
    assert [sent(server, i) for i in range(3)] == [HEADERS] * 3


def test_the_requests_headers_are_sent_to_no_other_origin(serve, fetch):
    """Another port is another origin."""
    first = serve(lambda handler: reply(handler, 302, Location=other.url()), whole)
    other = serve(lambda handler: reply(handler, 302, Location=first.url()))
    assert fetch(first.url(), headers=HEADERS) == SOUND
    assert sent(first, 0) == HEADERS and sent(other, 0) == {} and "curl" not in str(other.requests)


def test_a_request_that_http_does_not_allow_is_refused_at_once(serve, refusal):
    """parse_request refuses this header; what its check overlooks is no failure of the network."""
    server = serve(each=whole)
    message = refusal(server.url(), InvalidRequest, headers={"Authorization": "Bearer SECRET "})
    assert "cannot be sent" in message and "audio_headers" in message
    assert server.requests == []


def test_the_requests_headers_are_not_logged(serve, fetch, caplog):
    caplog.set_level(logging.DEBUG)
    assert fetch(serve(whole).url(), headers=HEADERS) == SOUND
    assert "SECRET" not in caplog.text and "curl/8" not in caplog.text


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "data:audio/wav;base64,AAAA",
        "http://",
        "http://[::1",
    ],
)
def test_a_redirect_to_anything_but_http_is_refused(serve, refusal, target):
    refusal(serve(lambda handler: reply(handler, 302, Location=target)).url(), AddressRefused)


def test_the_body_of_a_redirect_is_not_read(serve, fetch):
    def endless(handler):
        reply(handler, 302, length=-1, Location=SECRET)
        drip_on(handler)

    assert fetch(serve(endless, whole).url()) == SOUND


def test_a_password_in_the_url_is_sent_to_its_host_only(serve, fetch):
    other = serve(whole)
    server = serve(lambda handler: reply(handler, 302, Location=other.url()))
    fetch(server.url().replace("//", "//us%40er:pass@"))
    ((_, told),), ((_, not_told),) = server.requests, other.requests
    assert (
        told["Authorization"] == "Basic " + base64.b64encode(b"us@er:pass").decode()
        and "Authorization" not in not_told
    )


# cookies of redirects

# name: (what the first host sets, first host, second host, what the second gets)
COOKIES = {
    "as SharePoint does": ("FedAuth=a; path=/; HttpOnly", "a.test", "a.test", "FedAuth=a"),
    "of a parent domain": ("k=1; Domain=a.test", "www.a.test", "cdn.a.test", "k=1"),
    "to another host": ("k=1; path=/", "a.test", "b.test", None),
    "to a host below": ("k=1; path=/", "a.test", "www.a.test", None),
    "to a sibling": ("k=1; path=/", "www.a.test", "cdn.a.test", None),
    "for another domain": ("k=1; Domain=b.test", "a.test", "b.test", None),
    "for a registry's domain": ("k=1; Domain=co.uk", "a.co.uk", "b.co.uk", None),
    "for a top-level domain": ("k=1; Domain=test", "a.test", "b.test", None),
    "for TLS only": ("k=1; Secure", "a.test", "a.test", None),
    "for another path": ("k=1; path=/elsewhere", "a.test", "a.test", None),
    "that has ended": ("k=1; Max-Age=0", "a.test", "a.test", None),
    "not in ASCII": ("k=\xfc; path=/", "a.test", "a.test", None),
    "that is nonsense": ("; ;=;,\t=", "a.test", "a.test", None),
}


def test_a_cookie_of_a_redirect_returns_to_its_own_domain_only(serve, fetch, names):
    for name, (cookie, first, second, returned) in COOKIES.items():
        names |= {first: ["127.0.0.1"], second: ["127.0.0.1"]}
        target = f"http://{second}:{{port}}{SECRET}"

        def to_second(handler, cookie=cookie, target=target):
            place = target.format(port=handler.server.server_port)
            reply(handler, 302, Set_Cookie=cookie, Location=place)

        server = serve(to_second, whole)
        assert fetch(f"http://{first}:{server.port}/private/link") == SOUND, name
        assert server.requests[1][1].get("Cookie") == returned, name


def test_a_cookie_lasts_for_one_download(serve, fetch):
    server = serve(
        lambda handler: reply(handler, 302, Set_Cookie="k=1; path=/", Location=SECRET), whole
    )
    for _ in range(2):
        assert fetch(server.url()) == SOUND
    assert [headers.get("Cookie") for _, headers in server.requests] == [None, "k=1", None]


def test_a_cookie_of_a_redirect_replaces_the_clients_of_that_name(serve, fetch):
    server = serve(
        lambda handler: reply(handler, 302, Set_Cookie="k=new; path=/", Location=SECRET), whole
    )
    assert fetch(server.url(), headers={"Cookie": "k=old; other=1"}) == SOUND
    assert server.requests[0][1]["Cookie"] == "k=old; other=1"
    assert server.requests[1][1]["Cookie"] == "other=1; k=new"


# addresses


@pytest.fixture
def names(monkeypatch):
    """Host name → addresses, injected into the resolver."""
    known, look_up = {}, socket.getaddrinfo
    at = lambda host, *args, **more: [
        info for address in known.get(host, [host]) for info in look_up(address, *args, **more)
    ]  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", at)
    return known


def test_every_address_of_a_host_is_tried(serve, fetch, names):
    # Nobody listens at the first address.
    server, names["two.test"] = (
        serve(whole),
        ["127.0.0.2", "127.0.0.1"],
    )
    assert fetch(f"http://two.test:{server.port}{SECRET}") == SOUND
    assert server.requests[0][1]["Host"] == f"two.test:{server.port}"


def test_a_host_that_answers_at_no_address_is_a_failed_download(serve, refusal, names):
    server, names["two.test"] = serve(whole), ["127.0.0.2", "127.0.0.3"]
    assert "connection failed" in refusal(f"http://two.test:{server.port}{SECRET}", DownloadError)


def test_the_certificate_is_checked_against_the_host_name(
    serve, fetch, refusal, names, monkeypatch, tmp_path
):
    make_certificate(tmp_path / "pem", "named.test")
    context, asked_for = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(tmp_path / "pem")
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    server = serve(whole)
    server.use(context)
    trusting = ssl.create_default_context(cafile=tmp_path / "pem")
    monkeypatch.setattr(web, "_tls", lambda: trusting)
    names |= {"named.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}

    assert fetch(f"https://named.test:{server.port}{SECRET}") == SOUND and asked_for == [
        "named.test"
    ]
    for host, problem in (("other.test", "another host name"), ("127.0.0.1", "another address")):
        sentence = refusal(f"https://{host}:{server.port}{SECRET}", TlsFailed)
        assert sentence.startswith(f"The certificate of {host} is for {problem}; ")


ISSUER, NOW = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)


def make_certificate(path: Path, name: str, *, issued: bool = False, old: bool = False) -> None:
    """A key and its certificate for one host name, signed by itself or by ISSUER."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")] if issued else [])
    begin = NOW - datetime.timedelta(days=2 if old else 0, minutes=1)
    certificate = (
        x509.CertificateBuilder(
            issuer,
            x509.Name([]),
            key.public_key(),
            x509.random_serial_number(),
            begin,
            begin + datetime.timedelta(hours=1),
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(ISSUER if issued else key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    "certificate, problem",
    [
        ({}, "is self-signed"),
        ({"old": True}, "has expired"),
        ({"issued": True}, "comes without the certificate of its issuer, or the issuer is not"),
    ],
    ids=["self-signed", "expired", "incomplete"],
)
def test_a_certificate_that_is_not_valid_is_named_and_not_retried(
    serve, refusal, names, monkeypatch, tmp_path, certificate, problem
):
    make_certificate(tmp_path / "pem", "named.test", **certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    server = serve(whole)
    server.use(context)
    if certificate.get("old"):
        trusting = ssl.create_default_context(cafile=tmp_path / "pem")
        monkeypatch.setattr(web, "_tls", lambda: trusting)
    names["named.test"] = ["127.0.0.1"]
    sentence = refusal(f"https://named.test:{server.port}{SECRET}", TlsFailed)
    assert sentence.startswith(f"The certificate of named.test {problem}")


def test_tls_to_a_plain_port_is_named_and_not_retried(serve, refusal):
    server = serve(whole)
    sentence = refusal(server.url().replace("http:", "https:"), TlsFailed)
    assert sentence.startswith("127.0.0.1 does not answer with TLS at this port")


def test_a_handshake_that_breaks_off_is_retried(serve, refusal, names):
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = []

        def close_at_once():
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(server.accept()[0].close())

        thread = threading.Thread(target=close_at_once)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}{SECRET}"
        assert "connection failed, 3 times" in refusal(url, DownloadError)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(accepted) == 3


@pytest.fixture
def public_only(monkeypatch):
    """As on RunPod; tests/run.sh allows private addresses for the other tests."""
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)


# The SDK accepts these values.
PRIVATE = [
    *(
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "localhost",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
    ),
    *(
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
    ),
    *(
        "192.0.0.192",
        "168.63.129.16",
        "192.88.99.1",
        "[2002:7f00:1::]",
        "[fec0::1]",
        "[::ffff:192.0.0.192]",
    ),
]


@pytest.mark.parametrize("host", PRIVATE)
def test_an_address_that_is_not_public_is_never_contacted(serve, refusal, public_only, host):
    server = serve(whole)
    message = refusal(f"http://{host}:{server.port}{SECRET}", AddressRefused)
    assert "not a public http or https address" in message and server.requests == []


def test_a_host_that_does_not_resolve_has_an_error_of_its_own(refusal):
    assert (
        refusal(f"http://nowhere.invalid{SECRET}", HostNotFound)
        == "The host of audio_url does not resolve: nowhere.invalid."
    )


def resolver_that_fails(monkeypatch, times: float) -> None:
    """The first `times` look-ups of a name find no resolver; later ones are real."""
    look_up, count = socket.getaddrinfo, itertools.count()

    def unreachable(host, *args, **more):
        if next(count) < times:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def test_a_resolver_that_fails_twice_is_asked_again_fault_injected(serve, fetch, monkeypatch):
    server = serve(whole)
    resolver_that_fails(monkeypatch, times=2)
    assert fetch(server.url()) == SOUND


def test_a_resolver_that_goes_on_failing_is_a_failed_download_fault_injected(refusal, monkeypatch):
    resolver_that_fails(monkeypatch, times=inf)
    sentence = refusal(f"http://named.test{SECRET}", DownloadError)
    assert "look-up of its name failed, 3 times" in sentence


@pytest.fixture
def hanging(monkeypatch):
    """The look-up of a name that begins with "hangs" lasts as long as the test; these names."""
    look_up, end, asked = socket.getaddrinfo, threading.Event(), []

    def hangs(host, *args, **more):
        if host.startswith("hangs"):
            asked.append(host)
            end.wait(60)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    yield asked
    end.set()
    assert wait_until(lambda: not any(t.name == "resolver" for t in threading.enumerate()))


def test_look_ups_that_hang_delay_no_other_download_fault_injected(serve, tmp_path, hanging):
    server = serve(whole)

    async def beside_hanging_ones():
        hosts = [f"http://hangs-{i}.test/" for i in range(40)]
        downloads = [fetched(host, tmp_path, max_bytes=1, timeout=60) for host in hosts]
        jobs = [asyncio.create_task(download) for download in downloads]
        await asyncio.to_thread(wait_until, lambda: len(hanging) == len(jobs))
        for job in jobs[::2]:
            job.cancel()
        path = await fetched(server.url(), tmp_path, max_bytes=10**6, timeout=20)
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)
        return path.read_bytes()

    assert asyncio.run(beside_hanging_ones()) == SOUND


def test_look_ups_of_one_host_that_hang_share_one_thread_fault_injected(tmp_path, hanging):
    async def together():
        url = f"http://hangs.test{SECRET}"
        jobs = [fetched(url, tmp_path, max_bytes=1, timeout=0.3) for _ in range(40)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    kinds = {type(error) for error in asyncio.run(together())}
    assert kinds == {DownloadTimeout} and hanging == ["hangs.test"]


def test_a_look_up_that_hangs_is_given_up_fault_injected(refusal, hanging, monkeypatch):
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.1)
    assert "3 times" in refusal(f"http://hangs.test{SECRET}", DownloadError, timeout=60)


def test_a_worker_without_open_files_left_is_itself_the_cause_fault_injected(refusal, monkeypatch):
    async def refused(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", refused)
    sentence = "The worker could not open a connection: Too many open files."
    assert refusal(f"http://127.0.0.1{SECRET}", WorkerFailed) == sentence


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".invalid", "nul\0.invalid", "*"])
def test_an_invalid_host_name_is_a_download_error(fetch, host):
    """The port is taken and deaf: some systems look up `*` as their own address."""
    with socket.socket() as deaf, pytest.raises(DownloadError) as refused:
        deaf.bind(("127.0.0.1", 0))
        fetch(f"http://{host}:{deaf.getsockname()[1]}{SECRET}")
    assert "SECRET" not in str(refused.value)


# time


def drip(handler) -> None:
    """A byte every 50 ms, for ever."""
    reply(handler, length=10**5)
    drip_on(handler)


def drip_headers(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    drip_on(handler)


def drip_on(handler) -> None:
    while not handler.closing.wait(0.05):
        handler.wfile.write(b"x")


@pytest.mark.parametrize(
    "slow",
    [drip, drip_headers, lambda handler: handler.closing.wait()],
    ids=["body", "headers", "no answer"],
)
def test_a_slow_server_is_given_up_when_the_time_is_over(serve, refusal, slow):
    began = time.monotonic()
    assert "in the time allowed" in refusal(serve(slow).url(), DownloadTimeout, timeout=1)
    assert time.monotonic() - began < 3


def test_retries_end_with_the_time_allowed(serve, refusal, monkeypatch):
    monkeypatch.setattr(patience, "BACKOFF_SECONDS", 60)
    refusal(serve(status(503)).url(), DownloadTimeout, timeout=0.3)
    assert wait_until(lambda: not running_downloads())


@contextmanager
def running(url: str, folder: Path):
    """(runner, task) of an event loop in which a download is running."""

    async def begin():
        task = asyncio.create_task(fetched(url, folder, max_bytes=10**6, timeout=60))
        await asyncio.to_thread(wait_until, lambda: (folder / "source").exists())
        return task

    with asyncio.Runner() as runner:
        yield runner, runner.run(begin())


def test_a_cancelled_download_closes_its_connection_and_leaves_no_task(serve, tmp_path):
    closed = threading.Event()

    def half(handler):
        reply(handler, body=SOUND[:1000], length=len(SOUND))
        handler.connection.recv(1)  # ends when the client closes
        closed.set()

    async def cancel():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with running(serve(half).url(), tmp_path) as (runner, task):
        assert len(running_downloads()) == 1 and not closed.is_set()
        runner.run(cancel())
    assert closed.wait(5)
    assert wait_until(lambda: not running_downloads())


def test_64_downloads_at_once_share_one_thread(serve, tmp_path):
    together = threading.Barrier(64)

    def when_all_are_there(handler):
        together.wait(20)
        whole(handler)

    async def run():
        folders = [tmp_path / str(i) for i in range(64)]
        for folder in folders:
            folder.mkdir()
        return await asyncio.gather(
            *(fetched(server.url(), folder, max_bytes=10**6, timeout=30) for folder in folders)
        )

    server = serve(when_all_are_there)
    assert {path.read_bytes() for path in asyncio.run(run())} == {SOUND}
    names = [t.name for t in threading.enumerate()]
    assert names.count("downloads") == 1 and "download" not in names


def test_servers_that_send_headers_slowly_occupy_no_thread_of_the_shared_pool(
    serve, fetch, refusal
):
    slow, quick = serve(drip_headers), serve(whole)

    async def together():
        jobs = [fetched(slow.url(), Path("unused"), max_bytes=1, timeout=0.3) for _ in range(40)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        return found, await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5)

    found, pool = asyncio.run(together())
    assert {type(e) for e in found} == {DownloadTimeout} and pool == "free"
    assert fetch(quick.url()) == SOUND
    assert wait_until(lambda: not running_downloads())


def chunks_of_one_byte(handler) -> None:
    start_chunked(handler)
    flood(handler, b"1\r\nx\r\n" * 1000)


def small_gzip_members(handler) -> None:
    reply(handler, length=-1, Content_Encoding="gzip")
    flood(handler, gzip.compress(bytes(100)) * 1000)


def flood(handler, block: bytes) -> None:
    while not handler.closing.is_set():
        handler.wfile.write(block)


ENDLESS = [chunks_of_one_byte, small_gzip_members]


@pytest.mark.parametrize("endless", ENDLESS, ids=lambda f: f.__name__)
def test_endless_bodies_block_neither_the_jobs_event_loop_nor_other_downloads(
    serve, endless, tmp_path
):
    floods, quick, gaps = [serve(endless) for _ in range(4)], serve(whole), []

    async def beside_floods():
        for i in range(len(floods) + 1):
            (tmp_path / str(i)).mkdir()
        jobs = [
            asyncio.create_task(
                fetched(server.url(), tmp_path / str(i), max_bytes=2**40, timeout=60)
            )
            for i, server in enumerate(floods)
        ]
        while not all(server.requests for server in floods):
            await asyncio.sleep(0.005)
        last = time.monotonic()
        for _ in range(200):
            await asyncio.sleep(0.005)
            last, gap = time.monotonic(), time.monotonic() - last
            gaps.append(gap)
        path = await fetched(quick.url(), tmp_path / str(len(floods)), max_bytes=10**6, timeout=60)
        assert path.read_bytes() == SOUND
        assert len(running_downloads()) == len(floods) and not any(job.done() for job in jobs), (
            "no flood any more"
        )
        assert not running_downloads() & asyncio.all_tasks(), "they are read in the jobs' loop"
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)

    asyncio.run(beside_floods())
    print(f"{endless.__name__}: largest gap of a 5 ms ticker {max(gaps) * 1000:.0f} ms")
    assert wait_until(lambda: not running_downloads())


EMPTY_BLOCK = b"\0\0\0\xff\xff"  # a stored block of a deflate stream, not its last
GZIP_HEADER = gzip.compress(b"")[:10]
WITHOUT_CONTENT = {  # how a compressed body begins and how it goes on
    "members": (b"", gzip.compress(b"")),
    "blocks": (GZIP_HEADER, EMPTY_BLOCK),
    "a name in the header": (GZIP_HEADER[:3] + b"\x08" + GZIP_HEADER[4:], b"name"),
}


@pytest.mark.parametrize("start, more", WITHOUT_CONTENT.values(), ids=WITHOUT_CONTENT)
def test_a_compressed_body_that_goes_on_without_content_is_a_failed_download(
    serve, refusal, monkeypatch, start, more
):
    monkeypatch.setattr(answers, "MAX_PADDING_BYTES", 10_000)

    def endless(handler):
        reply(handler, body=start, length=-1, Content_Encoding="gzip")
        flood(handler, more * 1000)

    assert "not compressed as its header says" in refusal(serve(endless).url(), DownloadError)


def test_endless_interim_answers_are_a_failed_download(serve, refusal):
    server = serve(lambda handler: flood(handler, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000))
    assert "connection failed, 3 times" in refusal(server.url(), DownloadError)


def test_interim_answers_before_the_file_are_skipped(serve, fetch):
    def after_some(handler):
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        whole(handler)

    assert fetch(serve(after_some).url()) == SOUND


def test_headers_that_do_not_end_are_no_answer_in_time(serve, refusal, monkeypatch):
    monkeypatch.setattr(web, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(web, "READ_SECONDS", 0.2)
    server = serve(drip_headers)
    assert "no answer in time, 3 times" in refusal(server.url(), DownloadError)
    assert len(server.requests) == 3


# the log


def test_a_malformed_header_puts_no_url_into_the_log(serve, refusal, caplog):
    def broken(handler):
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 700000\r\n\r\n" + SOUND
        )

    caplog.set_level(logging.DEBUG)
    assert "connection failed" in refusal(serve(broken).url(), DownloadError)
    assert "SECRET" not in caplog.text and "private" not in caplog.text


def test_neither_the_url_nor_the_target_of_a_redirect_is_logged(serve, fetch, caplog):
    caplog.set_level(logging.DEBUG)
    assert fetch(serve(each=redirects(1)).url()) == SOUND
    assert "SECRET" not in caplog.text and "private" not in caplog.text
