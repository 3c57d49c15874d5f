"""An S3 bucket for results that are too large for RunPod: whose it is, and the upload.

Knows nothing of what is in a result. A client's bucket must have a public address.
"""

import time
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
from contract.settings import Settings
from recording.public_addresses import public_addresses

MAX_UPLOAD_SECONDS = 120
URL_SECONDS = 7 * 86_400  # a presigned URL is valid as long as those of the SDK's own uploads
MAX_ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; the pause doubles
TIMEOUTS = {"connect": 10, "read": 60, "write": 60}  # seconds without progress
CLIENTS_KEYS = ("endpointUrl", "accessId", "accessSecret", "bucketName")


@dataclass(frozen=True, slots=True)
class Bucket:
    """An S3 bucket, from a request's `s3Config` or the worker's settings."""

    endpoint_url: str
    access_id: str
    access_secret: str
    name: str = ""  # "" stands for month and year, as in the SDK's own uploads
    trusted: bool = False  # a bucket from the settings may have a private address


class UploadRefused(Exception):
    """The bucket has answered with an HTTP status that is no success."""


def bucket_for(job: dict[str, Any], settings: Settings) -> Bucket | None:
    """The bucket for a large result: the job's `s3Config`, or else that of the settings, if any."""
    config = job.get("s3Config")
    given = [config.get(key) for key in CLIENTS_KEYS] if isinstance(config, dict) else []
    texts = [value for value in given if isinstance(value, str) and value]
    if len(texts) == len(CLIENTS_KEYS):
        endpoint_url, access_id, access_secret, bucket_name = texts
        return Bucket(endpoint_url, access_id, access_secret, bucket_name)
    if not settings.bucket_endpoint_url:
        return None
    return Bucket(
        settings.bucket_endpoint_url,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_name,
        trusted=True,
    )


def upload(content: bytes, bucket: Bucket, name: str) -> str:
    """Store `content` as `name`. Returns a presigned URL, which is valid for URL_SECONDS. Blocks.

    The client of boto3 is the SDK's, but not its `upload_in_memory_object`, which sends pieces of
    25 KB from threads of its own: the process would wait for them to end.

    Raises NotPublic, UploadRefused, and dozens of errors of boto3 and httpcore.
    """
    from runpod.serverless.utils.rp_upload import get_boto_client

    credentials = {
        "endpointUrl": bucket.endpoint_url,
        "accessId": bucket.access_id,
        "accessSecret": bucket.access_secret,
    }
    client, _ = get_boto_client(credentials)
    place = {"Bucket": bucket.name or time.strftime("%m-%y"), "Key": name}
    if bucket.trusted:
        client.put_object(**place, Body=content)
    else:
        _put(client.generate_presigned_url("put_object", Params=place), content)
    return str(client.generate_presigned_url("get_object", Params=place, ExpiresIn=URL_SECONDS))


def _put(url: str, content: bytes) -> None:
    """PUT to a public address.

    boto3 would look the bucket's name up again after a check, and the second answer may be private.
    """
    tls = httpx.create_ssl_context(trust_env=False)
    with httpcore.ConnectionPool(ssl_context=tls, network_backend=_PublicNetwork()) as pool:
        for attempt in range(MAX_ATTEMPTS):
            response = pool.request("PUT", url, content=content, extensions={"timeout": TIMEOUTS})
            if response.status < 500:
                break
            time.sleep(PAUSE_SECONDS * 2**attempt)
    if not 200 <= response.status < 300:
        raise UploadRefused(f"the bucket answered {response.status}")


class _PublicNetwork(httpcore.SyncBackend):
    """Connects to addresses that were checked. TLS and the Host header still use the name."""

    def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        addresses = public_addresses(host, port)
        for address in addresses:
            try:
                return super().connect_tcp(address, port, *args, **kwargs)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise httpcore.ConnectError("the host has no address")
