"""Requests to one bucket that are made by the thousand: a signature, a connection, a few headers.

A GET of 4 KiB costs boto3 0.85 ms of processor time, most of it in what need not be gone through
each time (endpoint rules, validation, hooks), and a thousand small files wait for it. The signature
is that of Version 4, as botocore makes it. What goes through a proxy is left to boto3.
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
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlsplit

import boto3.session
import botocore.httpsession
import urllib3
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection

from modelfs.errors import InvalidName
from modelfs.registry.bodies import FileBody
from modelfs.registry.connections import Connections
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
    pool: urllib3.HTTPConnectionPool  # for requests with a body
    connections: Connections


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
        self._kept = config.max_pool_connections
        self._connect_s = float(config.connect_timeout)
        self._read_s = float(config.read_timeout)
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
        self, method: str, key: str, query: Mapping[str, str], body: FileBody, digest: str
    ) -> urllib3.BaseHTTPResponse:
        """Return the answer to a request, its body unread; `digest` is the body's SHA-256 in hex.

        Raises urllib3's errors, and botocore's where there are no credentials.
        """
        length = {"content-length": str(len(body))}
        target, headers = self._signed(method, key, query, length, digest)
        chunks: Any = [body]  # each goes to the connection as it is
        return self._where().pool.urlopen(
            *(method, target, chunks, headers),
            redirect=False,
            retries=False,
            assert_same_host=False,
            preload_content=False,
        )

    def get(self, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
        """Return a GET as it is sent on one of `connections`; see Signature of `headers`.

        Raises InvalidName, and botocore's error where there are no credentials.
        """
        target, signed = self._signed("GET", key, query, headers, EMPTY_SHA256)
        lines = [f"GET {target} HTTP/1.1", "accept-encoding: identity"]
        lines += [f"{name}: {value}" for name, value in signed.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise InvalidName(f"{key!r}: a line's end in what must be asked for")
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    @property
    def connections(self) -> Connections:
        """The connections on which GETs are sent."""
        return self._where().connections

    def _signed(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        digest: str,
    ) -> tuple[str, dict[str, str]]:
        """Return what is asked for, as it is sent, and all headers."""
        place = self._where()
        path = place.path + quote(key, safe=KEY_SAFE)
        asked = "&".join(f"{name}={quote(query[name], safe=VALUE_SAFE)}" for name in sorted(query))
        signed = place.signature.sign(self.keys(), (method, path, asked), headers, digest)
        signed["user-agent"] = self._agent
        return f"{path}?{asked}" if asked else path, signed

    def error_of(
        self, status: int, headers: Mapping[str, str], body: bytes, operation: str
    ) -> ClientError:
        """Return the error that boto3 would raise of an answer."""
        shape = self._client.meta.service_model.operation_model(operation).output_shape
        said = {"status_code": status, "headers": headers, "body": body}
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
            self._place.connections.close()

    def _where(self) -> _Place:
        if self._place is None:
            with self._placing:
                if self._place is None:
                    self._place = self._find()
        return self._place

    def _find(self) -> _Place:
        wish = {"Bucket": self._bucket, "Key": "k"}
        url = self._client.generate_presigned_url("get_object", Params=wish)
        base = url.partition("?")[0].removesuffix("k")
        parts, region = urlsplit(base), self._client.meta.region_name
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        options: dict[str, Any] = {"socket_options": SOCKET_OPTIONS}
        pool_class: type[urllib3.HTTPConnectionPool] = _Pool
        if not self.is_plain:
            options["ssl_context"] = self.tls_context()
            pool_class = urllib3.HTTPSConnectionPool
        limits = urllib3.Timeout(connect=self._connect_s, read=self._read_s)
        pool = pool_class(host, port, maxsize=self._kept, timeout=limits, **options)
        kind = HTTPConnection if self.is_plain else HTTPSConnection
        make = partial(kind, host, port, timeout=self._connect_s, **options)
        connections = Connections(make, self._read_s, self._kept)
        signature = Signature(_host_header(parts), region)
        return _Place(base, parts.path, signature, pool, connections)


def _host_header(url: SplitResult) -> str:
    host = url.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return name if url.port in (None, PORTS[url.scheme]) else f"{name}:{url.port}"
