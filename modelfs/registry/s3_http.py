"""Requests to one bucket that are made by the thousand: a signature, a connection, a few headers.

A GET of 4 KiB costs boto3 0.85 ms of processor time, most of it in what need not be gone through
each time (endpoint rules, validation, hooks), and botocore's signer, connections and parser alone
0.60; this costs 0.35, and a thousand small files wait for it. The signature is that of Version 4,
as botocore makes it. What goes through a proxy is left to boto3.
"""

import hashlib
import hmac
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlsplit

import boto3.session
import botocore.httpsession
import urllib3
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.utils import get_environ_proxies
from urllib3.connection import HTTPConnection

from modelfs.registry.bodies import FileBody
from modelfs.registry.wire import PORTS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY_SAFE = "/~"  # what botocore leaves as it is in a key
VALUE_SAFE = "-_.~"  # and in a value of a query
EMPTY_SHA256 = hashlib.sha256().hexdigest()
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]


def now() -> str:
    """Return this moment as a signature has it."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


class Signature:
    """What proves who sends a request: AWS Signature Version 4 in the header Authorization."""

    def __init__(self, host: str, region: str) -> None:
        self._host = host
        self._region = region
        self._known: tuple[tuple[str, str], bytes] | None = None  # (secret, day) -> key

    def sign(
        self,
        keys: ReadOnlyCredentials,
        request: tuple[str, str, str],
        headers: Mapping[str, str],
        digest: str,
        at: str | None = None,
    ) -> dict[str, str]:
        """Return the headers to send: `headers`, whose names are in lower case, and the proof.

        `request` is method, path and query, as they are sent; `digest` the body's SHA-256 in hex,
        `at` the moment (20251122T100000Z), now where it is None.
        """
        moment = at or now()
        signed = {
            **headers,
            "host": self._host,
            "x-amz-content-sha256": digest,
            "x-amz-date": moment,
        }
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        ordered = sorted(signed)
        names = ";".join(ordered)
        lines = [f"{name}:{signed[name]}" for name in ordered]
        canonical = "\n".join((*request, *lines, "", names, digest))
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        asked = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{asked}"
        key = self._key(str(keys.secret_key), moment[:8])
        proof = hmac.digest(key, text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={proof}"
        )
        return signed

    def _key(self, secret: str, day: str) -> bytes:
        known = self._known
        if known is not None and known[0] == (secret, day):
            return known[1]
        key = f"AWS4{secret}".encode()
        for word in (day, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        self._known = (secret, day), key
        return key


class _Connection(HTTPConnection):
    def send(self, data: Any) -> None:
        if isinstance(data, FileBody):
            data.send_to(self.sock)
        else:
            super().send(data)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


@dataclass(frozen=True)
class _Place:
    """Where the bucket is: the URL before a key, its path alone, and who reaches it."""

    base: str
    path: str
    signature: Signature
    pool: urllib3.HTTPConnectionPool


class BucketHttp:
    """Sends requests to one bucket; any thread may call.

    `serves` tells whether it can, `is_plain` whether without TLS: a FileBody goes by that alone.
    """

    def __init__(
        self, session: boto3.session.Session, client: "S3Client", bucket: str, verify: str | None
    ) -> None:
        """Take limits from `client`, credentials from the session; `verify` names a CA bundle."""
        core: Any = session._session
        config: Any = client.meta.config
        url = client.meta.endpoint_url
        proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
        self.proxies = proxies
        self.serves = not proxies
        self.is_plain = urlsplit(url).scheme == "http"
        self._credentials = core.get_credentials
        self._client = client
        self._bucket = bucket
        known = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        self.trusted = str(verify or known or botocore.httpsession.where())
        self._parser = core.get_component("response_parser_factory").create_parser("rest-xml")
        self._agent = config.user_agent
        self._options = {
            "maxsize": config.max_pool_connections,
            "timeout": urllib3.Timeout(connect=config.connect_timeout, read=config.read_timeout),
            "socket_options": SOCKET_OPTIONS,
        }
        self._place: _Place | None = None
        self._placing = threading.Lock()

    def base(self) -> str:
        """Return the URL before the key, as boto3 addresses the bucket."""
        return self._where().base

    def keys(self) -> ReadOnlyCredentials:
        """Return what signs a request now; raises NoCredentialsError."""
        credentials = self._credentials()
        if credentials is None:
            raise NoCredentialsError
        return credentials.get_frozen_credentials()  # type: ignore[no-any-return]

    def send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        *,
        body: FileBody | None = None,
        digest: str = EMPTY_SHA256,
    ) -> urllib3.BaseHTTPResponse:
        """Return the answer to a request, its body unread; see Signature of `headers`, `digest`.

        Raises urllib3's errors, and botocore's where there are no credentials.
        """
        place = self._place or self._where()
        path = place.path + quote(key, safe=KEY_SAFE)
        asked = "&".join(f"{name}={quote(query[name], safe=VALUE_SAFE)}" for name in sorted(query))
        signed = place.signature.sign(self.keys(), (method, path, asked), headers, digest)
        signed["user-agent"] = self._agent
        chunks: Any = None if body is None else [body]  # each goes to the connection as it is
        return place.pool.urlopen(
            *(method, f"{path}?{asked}" if asked else path, chunks, signed),
            redirect=False,
            retries=False,
            assert_same_host=False,
            preload_content=False,
        )

    def error_of(self, response: urllib3.BaseHTTPResponse, operation: str) -> ClientError:
        """Return the error that boto3 would raise of an answer; its body is read."""
        shape = self._client.meta.service_model.operation_model(operation).output_shape
        said = {"status_code": response.status, "headers": response.headers, "body": response.data}
        return ClientError(self._parser.parse(said, shape), operation)

    def tls_context(self) -> ssl.SSLContext:
        """Return what verifies the endpoint's certificate; `trusted` is a file or a folder."""
        if os.path.isdir(self.trusted):
            return ssl.create_default_context(capath=self.trusted)
        return ssl.create_default_context(cafile=self.trusted)

    def close(self) -> None:
        """Close the connections that are kept."""
        if self._place is not None:
            self._place.pool.close()

    def _where(self) -> _Place:
        with self._placing:
            if self._place is None:
                self._place = self._find()
            return self._place

    def _find(self) -> _Place:
        wish = {"Bucket": self._bucket, "Key": "k"}
        url = self._client.generate_presigned_url("get_object", Params=wish)
        base = url.partition("?")[0].removesuffix("k")
        parts, region = urlsplit(base), self._client.meta.region_name
        host = parts.hostname or ""
        return _Place(
            *(base, parts.path),
            Signature(_host_header(parts), region),
            self._pool(host, parts.port),
        )

    def _pool(self, host: str, port: int | None) -> urllib3.HTTPConnectionPool:
        if self.is_plain:
            return _Pool(host, port, **self._options)
        context = self.tls_context()
        return urllib3.HTTPSConnectionPool(host, port, ssl_context=context, **self._options)


def _host_header(url: SplitResult) -> str:
    host = url.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return name if url.port in (None, PORTS[url.scheme]) else f"{name}:{url.port}"
